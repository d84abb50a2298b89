//! `linear_cross_entropy` on a device, one slice of the vocabulary at a time, so that the head is read once each way
//! and every gradient of the head is finished in one product.
//!
//! Forward keeps of every position, from slice to slice, the largest logit m, `Σ exp(l − m)` and the target's logit;
//! backward makes a slice's logits again and turns them into `(exp(l − lse) − [target]) · dloss · slope`.

use std::ops::Range;

use burn::tensor::DType;
use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric;
use burn_cubecl::tensor::CubeTensor;

use super::kernels::{differentiate, finish, take_in};
use crate::device::Kernels;
use crate::launch::{
    addresses, buffer, contiguous, element, elementwise, empty, in_dtype, product, row_wise,
    transposed, upload, vector_size, written,
};

/// Bytes of logits, and of their gradient, that exist at a time.
const SLICE_BYTES: usize = 384 << 20;
/// Words of a slice, at most; wider ones are not faster.
const SLICE_WORDS: usize = 16_384;
/// A slice starts at a multiple of this, so that its rows of the head can be addressed without a copy.
const ALIGN: usize = 256;

/// Inputs are hidden and head; saves them, the targets and the log-sum-exp of every position.
#[derive(Debug)]
pub(super) struct LinearCrossEntropy {
    pub(super) targets: Vec<u32>,
    pub(super) softcap: Option<f32>,
}

impl Kernels for LinearCrossEntropy {
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [hidden, head] = inputs.try_into().expect("two inputs");
        let (hidden, head) = (contiguous(hidden), contiguous(head));
        let positions = self.targets.len();
        let losses = empty(&hidden, [positions], DType::F32);
        if positions == 0 {
            return (losses, vec![hidden.clone(), head, hidden.clone(), hidden]);
        }
        let targets = upload(&hidden, &self.targets);
        let state = empty(&hidden, [3, positions], DType::F32);
        let sums = empty(&hidden, [positions], DType::F32);
        for words in self.slices(&hidden, &head) {
            let logits = logits(&hidden, &head, &words);
            let vector = vector_size(&[&logits], &[words.len()]);
            let (count, units) = row_wise(&hidden.client, positions, words.len() / vector);
            // SAFETY: a cube touches one row of `positions`, in steps that end at its width.
            unsafe {
                take_in::launch_unchecked(
                    &hidden.client,
                    count,
                    units,
                    addresses(&[&logits]),
                    vector,
                    buffer(&logits),
                    buffer(&targets),
                    buffer(&state),
                    positions,
                    words.start,
                    words.len() / vector,
                    self.softcap.unwrap_or(1.0),
                    self.softcap.is_some(),
                );
            }
        }
        let (count, units) = elementwise(&hidden.client, positions);
        // SAFETY: units past the last position return.
        unsafe {
            finish::launch_unchecked(
                &hidden.client,
                count,
                units,
                addresses(&[&state]),
                buffer(&state),
                buffer(&losses),
                buffer(&sums),
                positions,
            );
        }
        let saved = match wanted {
            [false, false] => vec![],
            _ => vec![hidden, head, targets, sums],
        };
        (losses, saved)
    }

    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let [hidden, head, targets, sums] = saved.try_into().expect("four saved tensors");
        let gradient = contiguous(gradient);
        let positions = self.targets.len();
        let [_, dim] = hidden.meta.shape().dims();
        if positions == 0 {
            let zeros = |like: &CubeTensor| {
                let shape = like.meta.shape().clone();
                numeric::zeros(like.device.clone(), shape, like.dtype)
            };
            return vec![
                wanted[0].then(|| zeros(&hidden)),
                wanted[1].then(|| zeros(&in_dtype(head.clone(), DType::F32))),
            ];
        }
        let mut d_hidden: Option<CubeTensor> = None;
        let mut d_head = wanted[1].then(|| empty(&head, head.meta.shape().clone(), DType::F32));
        for words in self.slices(&hidden, &head) {
            let logits = logits(&hidden, &head, &words);
            let d_logits = empty(&hidden, logits.meta.shape().clone(), hidden.dtype);
            let vector = vector_size(&[&logits, &d_logits], &[words.len()]);
            let total = positions * words.len() / vector;
            let (count, units) = elementwise(&hidden.client, total);
            // SAFETY: units past the last vector return.
            unsafe {
                differentiate::launch_unchecked(
                    &hidden.client,
                    count,
                    units,
                    addresses(&[&logits]),
                    vector,
                    buffer(&logits),
                    buffer(&targets),
                    buffer(&sums),
                    buffer(&gradient),
                    buffer(&d_logits),
                    total,
                    words.start,
                    words.len() / vector,
                    self.softcap.unwrap_or(1.0),
                    self.softcap.is_some(),
                    [element(&gradient), element(&d_logits)],
                );
            }
            drop(logits);
            if wanted[0] {
                let part = product(
                    d_logits.clone(),
                    rows(&head, &words, hidden.dtype),
                    DType::F32,
                );
                d_hidden = Some(match d_hidden {
                    None => part,
                    Some(sum) => numeric::add(sum, part),
                });
            }
            d_head = d_head.map(|all| {
                let part = product(transposed(d_logits), hidden.clone(), DType::F32);
                written(all, [words, 0..dim], part)
            });
        }
        let d_hidden = d_hidden.map(|sum| burn_cubecl::kernel::cast(sum, hidden.dtype));
        vec![d_hidden, d_head]
    }
}

impl LinearCrossEntropy {
    /// The words whose logits exist together.
    fn slices(&self, hidden: &CubeTensor, head: &CubeTensor) -> Vec<Range<usize>> {
        let vocab = head.meta.shape()[0];
        let bytes_of_a_word = self.targets.len() * (DType::F32.size() + hidden.dtype.size());
        let most = (SLICE_BYTES / bytes_of_a_word).clamp(ALIGN, SLICE_WORDS);
        let width = vocab.div_ceil(vocab.div_ceil(most)).next_multiple_of(ALIGN);
        let starts = (0..vocab).step_by(width);
        starts
            .map(|start| start..vocab.min(start + width))
            .collect()
    }
}

/// The head's rows of some words in the format that they are multiplied in; a view where the device can address one.
fn rows(head: &CubeTensor, words: &Range<usize>, dtype: DType) -> CubeTensor {
    let [_, dim] = head.meta.shape().dims();
    in_dtype(slice(head.clone(), &[words.clone(), 0..dim]), dtype)
}

/// `[positions, words]` in f32.
fn logits(hidden: &CubeTensor, head: &CubeTensor, words: &Range<usize>) -> CubeTensor {
    let rows = rows(head, words, hidden.dtype);
    product(hidden.clone(), transposed(rows), DType::F32)
}
