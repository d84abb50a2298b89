//! How alike the tokens of two texts are to an encoder.

use burn::tensor::Tensor;

use crate::encoder::Encoder;

/// Tokens whose hidden states are held at a time.
const TOKENS_HELD: usize = 32_768;
/// Tokens, padding included, that go through the encoder together.
const TOKENS_TOGETHER: usize = 4_096;

impl Encoder {
    /// The cosines of the hidden states of each token of a pair's first text with each of its second text, for many pairs.
    /// `visit` gets a pair's index and its cosines `[first, second]`, row-major, in any order of pairs. Texts of a
    /// length go through the encoder together; memory does not grow with the number of pairs.
    ///
    /// # Panics
    /// As [`Encoder::hidden`].
    pub fn cosines(&self, pairs: &[[&[u32]; 2]], mut visit: impl FnMut(usize, Vec<f32>)) {
        let tokens = |pair: usize| pairs[pair][0].len() + pairs[pair][1].len();
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_key(|&pair| tokens(pair));
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut held = 0;
            let fitting = rest.iter().take_while(|&&pair| {
                held += tokens(pair);
                held <= TOKENS_HELD
            });
            let (group, later) = rest.split_at(fitting.count().max(1));
            rest = later;
            let texts: Vec<&[u32]> = group.iter().flat_map(|&pair| pairs[pair]).collect();
            let states = self.directions(&texts);
            for (&pair, both) in group.iter().zip(states.chunks(2)) {
                let cosines = sysgen_ops::linear(both[0].clone(), both[1].clone(), None);
                let cosines = cosines.try_into_vec_as::<f32>();
                visit(pair, cosines.expect("the encoder computes in f32"));
            }
        }
    }

    /// The hidden states of each text, `[tokens, dim]`, every one scaled to length 1.
    fn directions(&self, texts: &[&[u32]]) -> Vec<Tensor<2>> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| texts[text].len());
        let mut states: Vec<Option<Tensor<2>>> = vec![None; texts.len()];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            // The last text of a batch is its longest.
            let fits = |count: &usize| count * texts[rest[count - 1]].len() <= TOKENS_TOGETHER;
            let count = (1..=rest.len()).take_while(fits).count().max(1);
            let (batch, later) = rest.split_at(count);
            rest = later;
            let ids: Vec<&[u32]> = batch.iter().map(|&text| texts[text]).collect();
            let hidden = self.hidden(&ids);
            let [_, _, dim] = hidden.dims();
            let length = (hidden.clone() * hidden.clone()).sum_dim(2).sqrt();
            let directions = hidden / length;
            for (row, &text) in batch.iter().enumerate() {
                let tokens = texts[text].len();
                let state = directions.clone().slice([row..row + 1, 0..tokens, 0..dim]);
                states[text] = Some(state.reshape([tokens, dim]));
            }
        }
        let all = states.into_iter();
        all.map(|state| state.expect("every text is in a batch"))
            .collect()
    }
}
