//! Decoding: new tokens of several texts at once, their keys and values kept in a paged cache. Everything but attention
//! is computed on one flat list of tokens, without padding; attention looks at one text's blocks at a time. Which texts
//! share a call therefore does not change a text's result (on the CPU not by a bit).

use burn::tensor::{Int, Tensor, TensorData};
use sysgen_ops::PagedRun;

use crate::cache::KvCache;
use crate::decoder::Decoder;
use crate::layer::norm;
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
        let config = &self.config;
        let (mut ids, mut positions, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for run in runs {
            assert!(!run.ids.is_empty(), "an empty run");
            assert_ids(run.ids, config.vocab_size);
            ids.extend(run.ids);
            positions.extend((run.start as u32..).take(run.ids.len()));
            lengths.extend(std::iter::repeat_n(
                run.start + run.ids.len(),
                run.ids.len(),
            ));
        }
        let new: Vec<PagedRun> = runs
            .iter()
            .map(|run| PagedRun {
                tokens: run.ids.len(),
                start: run.start,
                blocks: run.blocks,
            })
            .collect();
        let last: Vec<PagedRun> = new
            .iter()
            .map(|run| PagedRun {
                tokens: 1,
                start: run.start + run.tokens - 1,
                ..*run
            })
            .collect();
        let (count, (heads, kv_heads, size)) =
            (ids.len(), (config.heads, config.kv_heads, config.head_dim));
        let rotation = self.rotation(&positions, &lengths, [1, count]);

        let mut x = self.embed(&ids, [1, count]);
        for (index, (layer, window)) in self.weights.layers.iter().zip(&config.windows).enumerate()
        {
            let [q, k, v] = layer.project(config, x.clone(), &rotation);
            let mut q = q.reshape([count, heads, size]);
            let cache = &mut cache.layers[index];
            cache.write(
                k.reshape([count, kv_heads, size]),
                v.reshape([count, kv_heads, size]),
                &new,
            );
            let mut looks = &new;
            // Nobody asks for the last layer's result of the other tokens.
            if last_only && index + 1 == config.layers && count > runs.len() {
                looks = &last;
                let rows = last_rows(&new, &self.device());
                q = q.select(0, rows.clone());
                x = x.select(1, rows);
            }
            let [rows, _, _] = q.dims();
            let attended = cache.attend(q, looks, self.attention_shape(*window));
            x = layer.finish(config, x, attended.reshape([1, rows, heads * size]));
        }
        let [_, rows, dim] = x.dims();
        norm(config, x.reshape([rows, dim]), &self.weights.norm)
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
