//! Decoding: new tokens of several texts at once, their keys and values kept in a cache on the host.
//! Everything but attention is computed on one flat list of tokens, without padding; attention looks at one text's
//! cache at a time. Which texts share a call therefore does not change a text's result (on the CPU not by a bit).

use burn::tensor::{Tensor, TensorData};
use sysgen_ops::{CachedRun, Heads, cached_attention};

use crate::cache::KvCache;
use crate::decoder::Decoder;
use crate::layer::norm;
use crate::tokens::assert_ids;

/// New tokens of one text.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The text's slot in the cache.
    pub slot: usize,
    /// Position of the first new token: at most what the slot holds; what it holds from there on is replaced.
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
    /// Two runs share a slot, a run is empty or starts beyond what its slot holds, or an id is at or above
    /// `vocab_size`.
    pub fn forward_cached(&self, runs: &[Run], cache: &mut KvCache) -> Tensor<2> {
        self.forward_runs(runs, cache, true)
    }

    /// [`Decoder::forward_cached`] that returns every token's hidden state, `[tokens of all runs, dim]`.
    pub fn forward_cached_all(&self, runs: &[Run], cache: &mut KvCache) -> Tensor<2> {
        self.forward_runs(runs, cache, false)
    }

    fn forward_runs(&self, runs: &[Run], cache: &mut KvCache, last_only: bool) -> Tensor<2> {
        assert_valid(runs, cache, self.config.vocab_size);
        let config = &self.config;
        let ids: Vec<u32> = runs
            .iter()
            .flat_map(|run| run.ids.iter().copied())
            .collect();
        let positions: Vec<u32> = runs
            .iter()
            .flat_map(|run| (run.start as u32..).take(run.ids.len()))
            .collect();
        let lengths: Vec<usize> = runs
            .iter()
            .flat_map(|run| std::iter::repeat_n(run.start + run.ids.len(), run.ids.len()))
            .collect();
        let count = ids.len();
        let rotation = self.rotation(&positions, &lengths, [1, count]);

        let mut x = self.embed(&ids, [1, count]);
        for (index, (layer, window)) in self.weights.layers.iter().zip(&config.windows).enumerate()
        {
            let [q, k, v] = layer.project(config, x.clone(), &rotation);
            let (mut q, k, v) = (host(q), host(k), host(v));
            let width = config.kv_heads * config.head_dim;
            let mut at = 0;
            for run in runs {
                let rows = at * width..(at + run.ids.len()) * width;
                cache.append(index, run.slot, run.start, &k[rows.clone()], &v[rows]);
                at += run.ids.len();
            }
            // Nobody asks for the last layer's result of the other tokens.
            let only_last = last_only && index + 1 == config.layers && count > runs.len();
            if only_last {
                q = last_rows(&q, runs, config.heads * config.head_dim);
                x = Tensor::from_data(
                    TensorData::new(
                        last_rows(&host(x), runs, config.hidden_size),
                        [1, runs.len(), config.hidden_size],
                    ),
                    &self.device(),
                );
            }
            let looks: Vec<CachedRun> = runs
                .iter()
                .map(|run| {
                    let (keys, values) = cache.held(index, run.slot);
                    let tokens = if only_last { 1 } else { run.ids.len() };
                    CachedRun {
                        tokens,
                        start: run.start + run.ids.len() - tokens,
                        keys,
                        values,
                    }
                })
                .collect();
            let heads = Heads {
                query: config.heads,
                key_value: config.kv_heads,
                size: config.head_dim,
            };
            let attended = cached_attention(&q, &looks, heads, self.attention_shape(*window));
            let rows = attended.len() / (config.heads * config.head_dim);
            let attended = Tensor::from_data(
                TensorData::new(attended, [1, rows, config.heads * config.head_dim]),
                &self.device(),
            );
            x = layer.finish(config, x, attended);
        }
        for run in runs {
            cache.set_length(run.slot, run.start + run.ids.len());
        }
        let [_, rows, dim] = x.dims();
        norm(config, x.reshape([rows, dim]), &self.weights.norm)
    }
}

/// The row of every run's last token, from rows of all tokens.
fn last_rows(all: &[f32], runs: &[Run], width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(runs.len() * width);
    let mut end = 0;
    for run in runs {
        end += run.ids.len();
        rows.extend_from_slice(&all[(end - 1) * width..end * width]);
    }
    rows
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .try_into_vec_as::<f32>()
        .expect("float tensors of this crate can be read as f32")
}

fn assert_valid(runs: &[Run], cache: &KvCache, vocab_size: usize) {
    assert!(!runs.is_empty(), "forward_cached without runs");
    let mut seen = vec![false; cache.slots()];
    for run in runs {
        assert!(!run.ids.is_empty(), "an empty run for slot {}", run.slot);
        assert!(
            !std::mem::replace(&mut seen[run.slot], true),
            "two runs for slot {}",
            run.slot
        );
        assert!(
            run.start <= cache.len(run.slot),
            "slot {} holds {} tokens, a run starts at {}",
            run.slot,
            cache.len(run.slot),
            run.start
        );
        assert_ids(run.ids, vocab_size);
    }
}
