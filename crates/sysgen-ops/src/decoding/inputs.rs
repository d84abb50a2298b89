//! The host's numbers of a pass in one buffer of the device.

use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::bytes::Bytes;
use cubecl::prelude::*;

use super::StepNumbers;
use crate::attention::paged::cuda::{NUMBERS, Positions, push_positions};
use crate::attention::{PagedCache, PagedShape, PagedStep};
use crate::device::{int_plain, plain};
use crate::launch::empty;

const WORD: usize = size_of::<u32>();

/// Room for the numbers of passes over a fixed number of tokens. Each [`StepInputs::put`] is one upload into the same memory, so
/// that kernels that were recorded with these tensors find the numbers of the newest pass in them.
#[derive(Debug)]
pub struct StepInputs {
    /// All sections in words of 32 bits, each where a tensor may begin.
    buffer: CubeTensor,
    sections: Sections,
    shape: PagedShape,
    tokens: usize,
    /// Angles of a token.
    half: usize,
}

/// Where they begin, in words. The blocks are last: only those of the texts at hand are uploaded.
#[derive(Clone, Copy, Debug)]
struct Sections {
    cos: usize,
    sin: usize,
    positions: usize,
    blocks: usize,
    end: usize,
}

impl StepInputs {
    /// Room for `tokens` tokens with `half` angles each, of texts that have `blocks` blocks together, for caches like `cache`.
    /// Nothing on the CPU, which reads the host's numbers where they are.
    pub fn new(
        cache: &PagedCache,
        tokens: usize,
        half: usize,
        blocks: usize,
    ) -> Option<StepInputs> {
        let keys = cache.device_keys()?;
        let alignment = (keys.client.properties().memory.alignment as usize).div_ceil(WORD);
        let mut end = 0;
        let mut section = |words: usize| {
            let start = end;
            end = (start + words).next_multiple_of(alignment);
            start
        };
        section(tokens); // ids
        let sections = Sections {
            cos: section(tokens * half),
            sin: section(tokens * half),
            positions: section(tokens * NUMBERS),
            blocks: section(blocks),
            end,
        };
        Some(StepInputs {
            buffer: empty(keys, [sections.end], DType::U32),
            sections,
            shape: cache.shape(),
            tokens,
            half,
        })
    }

    /// A block that no text has, for tokens that only fill the pass up.
    pub fn padding_block(&self) -> u32 {
        self.shape.blocks as u32
    }

    /// Replaces all numbers.
    ///
    /// # Panics
    /// They are more or fewer than there is room for, a run is longer than its blocks, or a block is not in the cache.
    pub fn put(&mut self, numbers: StepNumbers) {
        let StepNumbers {
            ids,
            cos,
            sin,
            runs,
        } = numbers;
        let held = runs.iter().flat_map(|run| run.blocks);
        assert!(
            held.clone()
                .all(|&block| block as usize <= self.shape.blocks),
            "StepInputs: a block is outside the cache of {}",
            self.shape.blocks
        );
        let (mut positions, mut blocks) = (Vec::new(), Vec::new());
        push_positions(self.shape, runs, &mut positions, &mut blocks);
        let Sections {
            blocks: listed,
            end,
            ..
        } = self.sections;
        assert_eq!(
            [ids.len(), positions.len(), cos.len(), sin.len()],
            [1, NUMBERS, self.half, self.half].map(|each| each * self.tokens),
            "StepInputs: numbers of {} tokens",
            self.tokens
        );
        assert!(
            listed + blocks.len() <= end,
            "StepInputs: {} blocks where {} have room",
            blocks.len(),
            end - listed
        );
        let mut words = vec![0; listed + blocks.len()];
        let mut place = |start: usize, values: &mut dyn Iterator<Item = u32>| {
            for (word, value) in words[start..].iter_mut().zip(values) {
                *word = value;
            }
        };
        place(0, &mut ids.iter().copied());
        place(self.sections.cos, &mut cos.iter().map(|x| x.to_bits()));
        place(self.sections.sin, &mut sin.iter().map(|x| x.to_bits()));
        place(self.sections.positions, &mut positions.into_iter());
        place(listed, &mut blocks.into_iter());
        let unused = (end - words.len()) * WORD;
        let handle = self.buffer.handle.clone().offset_end(unused as u64);
        let bytes = Bytes::from_bytes_vec(u32::as_bytes(&words).to_vec());
        self.buffer.client.write(&handle, bytes);
    }

    /// The ids, `[tokens]`.
    pub fn ids(&self) -> Tensor<1, Int> {
        int_plain(self.section(0, [self.tokens], DType::I32))
    }

    /// cos and sin, `[1, tokens, rotary / 2]` each.
    pub fn angles(&self) -> [Tensor<3>; 2] {
        let shape = [1, self.tokens, self.half];
        [self.sections.cos, self.sections.sin]
            .map(|start| plain(self.section(start, shape, DType::F32)))
    }

    /// The positions.
    pub fn step(&self) -> PagedStep<'static> {
        let Sections {
            positions,
            blocks,
            end,
            ..
        } = self.sections;
        let positions = Positions {
            numbers: self.section(positions, [self.tokens * NUMBERS], DType::U32),
            blocks: self.section(blocks, [end - blocks], DType::U32),
        };
        PagedStep::on_device(self.tokens, positions)
    }

    /// A part of the buffer as a tensor of its own.
    fn section(&self, start: usize, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
        let shape = shape.into();
        let after = self.sections.end - start - shape.num_elements();
        let handle = self.buffer.handle.clone();
        let handle = handle
            .offset_start((start * WORD) as u64)
            .offset_end((after * WORD) as u64);
        let (client, device) = (self.buffer.client.clone(), self.buffer.device.clone());
        CubeTensor::new_contiguous(client, device, shape, handle, dtype)
    }

    pub(super) fn client(&self) -> &Client {
        &self.buffer.client
    }
}
