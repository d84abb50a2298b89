//! The arithmetic a training step asks for: what "model FLOPs utilisation" is measured against.

use sysgen_model::{Decoder, ModelConfig, Weight};

/// Which weights learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    /// All of them.
    Full,
    /// Low-rank adapters beside frozen ones.
    Lora,
}

impl Method {
    /// Operations for each weight and token: two forward, two for the gradient of the input, and two for that of the
    /// weight where it learns.
    fn per_weight(self) -> f64 {
        match self {
            Method::Full => 6.0,
            Method::Lora => 4.0,
        }
    }
}

/// Floating-point operations of a step over rows of `seq` tokens, `supervised` of its `tokens` being learnt.
///
/// Every matrix counts once for each token, the head only for supervised ones, the embedding (a table) never; attention
/// counts for the positions a token sees, three times (forward once, backward twice). Adapters, norms, soft-caps and
/// whatever is computed a second time to save memory do not count.
pub(crate) fn of_step(
    decoder: &Decoder,
    method: Method,
    tokens: usize,
    supervised: usize,
    seq: usize,
) -> f64 {
    let config = &decoder.config;
    let table = (config.vocab_size * config.hidden_size) as f64;
    let parameters = decoder.parameters();
    let matrices = parameters.iter().map(|parameter| match &parameter.tensor {
        Weight::Matrix(tensor) => tensor.dims().iter().product::<usize>() as f64,
        Weight::Vector(_) => 0.0,
    });
    let tables = if config.tied { table } else { 2.0 * table };
    let body = matrices.sum::<f64>() - tables;
    let linear = method.per_weight() * (body * tokens as f64 + table * supervised as f64);
    let width = (config.heads * config.head_dim) as f64;
    let attention = 12.0 * width * tokens as f64 * seen(config, seq);
    linear + attention
}

/// Positions a token sees, itself included: the mean over a row, summed over the layers.
fn seen(config: &ModelConfig, seq: usize) -> f64 {
    let of_layer = |window: &Option<usize>| {
        let window = window.unwrap_or(seq);
        (1..=seq).map(|t| t.min(window)).sum::<usize>() as f64 / seq as f64
    };
    config.windows.iter().map(of_layer).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use sysgen_model::Device;

    use super::*;

    #[test]
    fn a_small_llama_counted_by_hand() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama31");
        let decoder = Decoder::load(&path, &Device::flex()).unwrap();
        let (dim, wide, vocab, layers) = (64.0, 160.0, 320.0, 3.0);
        // q and o; k and v of half the heads; gate, up, down.
        let kv = (decoder.config.kv_heads * decoder.config.head_dim) as f64;
        let body = layers * (2.0 * dim * dim + 2.0 * dim * kv + 3.0 * dim * wide);
        let attention = layers * 12.0 * dim * 10.0 * 5.5;
        let full = 6.0 * (body * 10.0 + vocab * dim * 4.0) + attention;
        assert_eq!(of_step(&decoder, Method::Full, 10, 4, 10), full);
        assert_eq!(
            of_step(&decoder, Method::Lora, 10, 4, 10),
            (full - attention) / 6.0 * 4.0 + attention
        );
    }
}
