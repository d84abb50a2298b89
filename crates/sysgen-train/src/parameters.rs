//! How many numbers a model has and how many of them are trained, counted from its shape without a weight at hand.

use sysgen_model::{Lora, ModelConfig, parameter_shapes};

/// How many numbers a model has, by what happens to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Parameters {
    /// All of the model's own.
    pub model: u64,
    /// Of these, in the projections of the layers.
    pub projections: u64,
    /// Of all, in matrices: these, the embedding table and the head.
    pub matrices: u64,
    /// What is trained: all of them, or the adapters.
    pub trained: u64,
    /// Trained in the layer that has most.
    pub layer: u64,
    /// In the embedding table, and as many in a head of its own, where they are trained.
    pub table: u64,
}

/// Counts the parameters of `config` without a weight at hand.
pub fn parameters(config: &ModelConfig, lora: Option<&Lora>) -> Parameters {
    let mut counted = Parameters::default();
    let mut layers: Vec<(Option<String>, u64)> = Vec::new();
    for (name, shape) in parameter_shapes(config) {
        let count: u64 = shape.iter().map(|&n| n as u64).product();
        counted.model += count;
        let projection = name.contains(".layers.") && shape.len() == 2;
        if shape.len() == 2 {
            counted.matrices += count;
        }
        if lora.is_none() && shape.len() == 2 && !projection {
            counted.table = count;
        }
        if projection {
            counted.projections += count;
        }
        let trained = match lora {
            None => count,
            Some(lora) if projection && is_target(&name, lora) => {
                let magnitudes = if lora.dora { shape[0] } else { 0 };
                (lora.rank * (shape[0] + shape[1]) + magnitudes) as u64
            }
            Some(_) => 0,
        };
        counted.trained += trained;
        let Some((_, layer)) = name.split_once(".layers.") else {
            continue;
        };
        let layer = layer.split('.').next().map(str::to_string);
        match layers.last_mut() {
            Some((last, sum)) if *last == layer => *sum += trained,
            _ => layers.push((layer, trained)),
        }
    }
    counted.layer = layers.iter().map(|(_, sum)| *sum).max().unwrap_or(0);
    counted
}

/// Whether a parameter has an adapter beside it, if it is a projection.
pub(crate) fn is_target(name: &str, lora: &Lora) -> bool {
    let module = name.trim_end_matches(".weight").rsplit('.').next();
    lora.target_modules.is_empty()
        || lora
            .target_modules
            .iter()
            .any(|t| Some(t.as_str()) == module)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    /// The shape of a published model (`tests/standins`).
    fn stand_in(name: &str) -> ModelConfig {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/standins");
        ModelConfig::from_file(&Path::new(folder).join(name)).unwrap()
    }

    pub(crate) fn phi4() -> ModelConfig {
        stand_in("phi4.json")
    }

    pub(crate) fn llama31() -> ModelConfig {
        stand_in("llama31-8b.json")
    }

    pub(crate) fn lora() -> Lora {
        Lora {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: Vec::new(),
            rslora: false,
            dora: false,
        }
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        assert_eq!(parameters(&phi4(), None).model, 14_659_507_200);
        assert_eq!(parameters(&llama31(), None).model, 8_030_261_248);
        // PEFT, r = 16 on all linear layers of Llama-3.1-8B.
        assert_eq!(parameters(&llama31(), Some(&lora())).trained, 41_943_040);
    }
}
