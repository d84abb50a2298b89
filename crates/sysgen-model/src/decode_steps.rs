//! Decoding steps on a device: one new token for each of some texts, and the logits after it.
//!
//! A step of a GPU is hundreds of short kernels, which the host takes longer to start than the GPU to run. So a step is
//! padded to a power of two of texts, its numbers go into memory that stays where it is, and for each such size it is
//! recorded once (a CUDA graph) and started as one from then on. A recording is believed when its first replays gave the bits
//! that launching gave, one of them for numbers other than those it was recorded with; where one is refused, or gives other
//! bits, all steps are launched as before.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use sysgen_ops::{Graph, PagedCache, StepInputs};

use crate::cache::KvCache;
use crate::cached::{NewTokens, Run};
use crate::decoder::Decoder;

/// Steps of a size before it is recorded: they choose its kernels.
const LAUNCHED_FIRST: usize = 1;
/// Recordings of a size that are tried. How much memory one asks for depends a little on who is faster, the host or CubeCL's
/// thread: what an earlier one lacked, a later one finds.
const ATTEMPTS: usize = 3;
/// Replays that are compared with launching.
const COMPARED: usize = 2;

/// The decoding steps of one decoder over one cache.
#[derive(Debug)]
pub struct DecodeSteps {
    decoder: Decoder,
    /// The cache's own memory.
    layers: Vec<PagedCache>,
    /// Blocks that a text may have.
    blocks: usize,
    sizes: BTreeMap<usize, Size>,
    records: bool,
    refusal: Option<String>,
    replayed: usize,
}

/// Steps of a number of texts.
#[derive(Debug)]
struct Size {
    inputs: StepInputs,
    launched: usize,
    attempts: usize,
    graph: Option<Graph<Tensor<2>>>,
    /// Replays that gave the bits of launching.
    agreed: usize,
}

impl DecodeSteps {
    /// Steps with this decoder and this cache; nothing on the CPU, where a step has nothing to gain. `records` says whether they
    /// may be recorded.
    pub fn new(decoder: &Decoder, cache: &KvCache, records: bool) -> Option<DecodeSteps> {
        let layers = cache.layers.iter().map(PagedCache::on_device);
        let longest = decoder.config.max_position_embeddings;
        Some(DecodeSteps {
            decoder: decoder.clone(),
            layers: layers.collect::<Option<_>>()?,
            blocks: longest.div_ceil(cache.block_size()).min(cache.blocks()),
            sizes: BTreeMap::new(),
            records,
            refusal: None,
            replayed: 0,
        })
    }

    /// Reads one new token of each run and returns the logits after it, row after row of `vocab_size`.
    ///
    /// # Panics
    /// There is no run; a run is not of one token, or longer than its blocks or than the model was made for; or an id is at
    /// or above `vocab_size`.
    pub fn logits(&mut self, runs: &[Run]) -> Vec<f32> {
        assert!(!runs.is_empty(), "a decoding step without runs");
        let vocab_size = self.decoder.config.vocab_size;
        let count = runs.len().next_power_of_two();
        let half = self.decoder.config.rope.rotary_dim / 2;
        let size = self.sizes.entry(count).or_insert_with(|| Size {
            inputs: StepInputs::new(&self.layers[0], count, half, count * self.blocks)
                .expect("these caches are on a device"),
            launched: 0,
            attempts: 0,
            graph: None,
            agreed: 0,
        });
        let padding_block = [size.inputs.padding_block()];
        let padding = Run {
            blocks: &padding_block,
            start: 0,
            ids: &[0],
        };
        let mut runs = runs.to_vec();
        let wanted = runs.len() * vocab_size;
        runs.resize(count, padding);
        let tokens = NewTokens::of(&runs, vocab_size);
        self.decoder.put(&tokens, &mut size.inputs);

        let (decoder, layers) = (&self.decoder, &mut self.layers);
        let mut launch = |inputs: &StepInputs| {
            let hidden = decoder.pass(decoder.start(inputs), None, layers);
            decoder.logits(hidden)
        };
        let result = size.step(self.records, &mut launch, wanted);
        let (logits, replayed) = result.unwrap_or_else(|refusal| {
            self.records = false;
            self.refusal = Some(refusal);
            (host(&launch(&size.inputs), wanted), false)
        });
        if !self.records {
            for size in self.sizes.values_mut() {
                size.graph = None;
            }
        }
        self.replayed += usize::from(replayed);
        logits
    }

    /// Why steps are no longer recorded, told once.
    pub fn take_refusal(&mut self) -> Option<String> {
        self.refusal.take()
    }

    /// Steps that were started as one, since they were last asked for.
    pub fn take_replayed(&mut self) -> usize {
        std::mem::take(&mut self.replayed)
    }
}

impl Size {
    /// The first `wanted` logits, and whether they come from a graph alone; or why there can be no graph.
    fn step(
        &mut self,
        records: bool,
        launch: &mut (impl FnMut(&StepInputs) -> Tensor<2> + Send),
        wanted: usize,
    ) -> Result<(Vec<f32>, bool), String> {
        if records && self.graph.is_none() && self.launched >= LAUNCHED_FIRST {
            let inputs = &self.inputs;
            self.attempts += 1;
            match Graph::record(inputs, || launch(inputs)) {
                Ok(graph) => self.graph = Some(graph),
                Err(reason) if self.attempts == ATTEMPTS => return Err(reason),
                Err(_) => {}
            }
        }
        let Some(graph) = &self.graph else {
            self.launched += 1;
            return Ok((host(&launch(&self.inputs), wanted), false));
        };
        let replayed = host(graph.replay()?, wanted);
        if self.agreed == COMPARED {
            return Ok((replayed, true));
        }
        // A step may be computed twice: it writes the same keys and values to the same places.
        let launched = host(&launch(&self.inputs), wanted);
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        if !launched.iter().zip(&replayed).all(same) {
            return Err("a replayed step gave other logits than the launched one".into());
        }
        self.agreed += 1;
        Ok((launched, false))
    }
}

/// The first numbers of a tensor.
fn host(logits: &Tensor<2>, wanted: usize) -> Vec<f32> {
    let [_, vocab_size] = logits.dims();
    let rows = logits.clone().narrow(0, 0, wanted / vocab_size);
    rows.try_into_vec_as::<f32>().expect("logits are floats")
}
