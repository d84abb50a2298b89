//! Decoding: new tokens of several texts at once, their keys and values kept in a paged cache. Everything but attention
//! is computed on one flat list of tokens, without padding; attention looks at one text's blocks at a time. Which texts
//! share a call therefore does not change a text's result (on the CPU not by a bit).

use burn::tensor::{Int, Tensor, TensorData};
use sysgen_ops::{PagedCache, PagedRun, PagedStep, StepInputs, StepNumbers};

use crate::cache::KvCache;
use crate::decoder::Decoder;
use crate::layer::{Rotation, norm};
use crate::tokens::assert_ids;

/// New tokens of one text.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The text's blocks in the cache, in order; enough of them for its positions and the new ones.
    pub blocks: &'a [u32],
    /// Position of the first new token. The cache must hold all earlier ones; what it holds from there on is replaced.
    pub start: usize,
    /// At least one token.
    pub ids: &'a [u32],
}

impl Decoder {
    /// Runs new tokens through the model and returns the hidden state (after the final norm) of every run's last
    /// token, `[runs, dim]`. With longrope, a text that grows beyond the original length keeps the earlier keys'
    /// rotation.
    ///
    /// # Panics
    /// A run is empty or longer than its blocks, or an id is at or above `vocab_size`.
    pub fn forward_cached(&self, runs: &[Run], cache: &mut KvCache) -> Tensor<2> {
        self.forward_runs(runs, cache, true)
    }

    /// [`Decoder::forward_cached`] that returns every token's hidden state, `[tokens of all runs, dim]`.
    pub fn forward_cached_all(&self, runs: &[Run], cache: &mut KvCache) -> Tensor<2> {
        self.forward_runs(runs, cache, false)
    }

    fn forward_runs(&self, runs: &[Run], cache: &mut KvCache, last_only: bool) -> Tensor<2> {
        assert!(!runs.is_empty(), "forward_cached without runs");
        let tokens = NewTokens::of(runs, self.config.vocab_size);
        let (count, blocks) = (tokens.ids.len(), runs.iter().map(|run| run.blocks.len()));
        let half = self.config.rope.rotary_dim / 2;
        let start = match StepInputs::new(&cache.layers[0], count, half, blocks.sum()) {
            Some(mut inputs) => {
                self.put(&tokens, &mut inputs);
                self.start(&inputs)
            }
            None => Start {
                x: self.embed(&tokens.ids, [1, count]),
                rotation: self.rotation(&tokens.positions, &tokens.lengths, [1, count]),
                step: cache.layers[0].step(&tokens.runs),
            },
        };
        // Nobody asks for the last layer's result of the other tokens.
        let last: Vec<PagedRun> = tokens.runs.iter().map(last_position).collect();
        let last = (last_only && count > runs.len()).then(|| Last {
            rows: last_rows(&tokens.runs, &self.device()),
            step: cache.layers[0].step(&last),
        });
        self.pass(start, last, &mut cache.layers)
    }

    /// Tells a device of new tokens.
    pub(crate) fn put(&self, tokens: &NewTokens, inputs: &mut StepInputs) {
        let [cos, sin] = self.angles(&tokens.positions, &tokens.lengths);
        inputs.put(StepNumbers {
            ids: &tokens.ids,
            cos: &cos,
            sin: &sin,
            runs: &tokens.runs,
        });
    }

    /// What a pass starts from where a device has all its numbers.
    pub(crate) fn start(&self, inputs: &StepInputs) -> Start<'static> {
        let rows = self.weights.embedding.rows_of(inputs.ids());
        let [cos, sin] = inputs.angles();
        let [_, count, _] = cos.dims();
        Start {
            x: self.embedded(rows, [1, count]),
            rotation: Rotation { cos, sin },
            step: inputs.step(),
        }
    }

    /// All layers and the final norm: the hidden state of every token, or of the `last` ones alone.
    pub(crate) fn pass(
        &self,
        start: Start,
        mut last: Option<Last>,
        layers: &mut [PagedCache],
    ) -> Tensor<2> {
        let config = &self.config;
        let (heads, kv_heads, size) = (config.heads, config.kv_heads, config.head_dim);
        let Start {
            mut x,
            rotation,
            mut step,
        } = start;
        let [_, count, _] = x.dims();
        let windows = self.weights.layers.iter().zip(&config.windows);
        for (index, ((layer, window), cache)) in windows.zip(layers).enumerate() {
            let [q, k, v] = layer.project(config, x.clone(), &rotation);
            let mut q = q.reshape([count, heads, size]);
            cache.write(
                k.reshape([count, kv_heads, size]),
                v.reshape([count, kv_heads, size]),
                &step,
            );
            if index + 1 == config.layers
                && let Some(last) = last.take()
            {
                step = last.step;
                q = q.select(0, last.rows.clone());
                x = x.select(1, last.rows);
            }
            let [rows, _, _] = q.dims();
            let attended = cache.attend(q, &step, self.attention_shape(*window));
            x = layer.finish(config, x, attended.reshape([1, rows, heads * size]));
        }
        let [_, rows, dim] = x.dims();
        norm(config, x.reshape([rows, dim]), &self.weights.norm)
    }
}

/// What a pass starts from.
pub(crate) struct Start<'a> {
    /// The embeddings, `[1, tokens, dim]`.
    x: Tensor<3>,
    rotation: Rotation,
    step: PagedStep<'a>,
}

/// The tokens whose hidden state is asked for.
pub(crate) struct Last<'a> {
    /// Among all tokens.
    rows: Tensor<1, Int>,
    step: PagedStep<'a>,
}

/// The new tokens of all runs, one after the other.
pub(crate) struct NewTokens<'a> {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Of each token's text, up to the last new one.
    lengths: Vec<usize>,
    runs: Vec<PagedRun<'a>>,
}

impl<'a> NewTokens<'a> {
    pub(crate) fn of(runs: &[Run<'a>], vocab_size: usize) -> NewTokens<'a> {
        let mut tokens = NewTokens {
            ids: Vec::new(),
            positions: Vec::new(),
            lengths: Vec::new(),
            runs: Vec::new(),
        };
        for run in runs {
            let count = run.ids.len();
            assert!(count > 0, "an empty run");
            assert_ids(run.ids, vocab_size);
            tokens.ids.extend(run.ids);
            tokens.positions.extend((run.start as u32..).take(count));
            tokens
                .lengths
                .extend(std::iter::repeat_n(run.start + count, count));
            tokens.runs.push(PagedRun {
                tokens: count,
                start: run.start,
                blocks: run.blocks,
            });
        }
        tokens
    }
}

/// A run's last new token.
fn last_position<'a>(run: &PagedRun<'a>) -> PagedRun<'a> {
    PagedRun {
        tokens: 1,
        start: run.start + run.tokens - 1,
        ..*run
    }
}

/// The row of every run's last token among the rows of all tokens.
fn last_rows(runs: &[PagedRun], device: &burn::tensor::Device) -> Tensor<1, Int> {
    let mut end = 0;
    let last = |run: &PagedRun| {
        end += run.tokens as i64;
        end - 1
    };
    let rows: Vec<i64> = runs.iter().map(last).collect();
    Tensor::from_data(TensorData::new(rows, [runs.len()]), device)
}
