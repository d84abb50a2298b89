//! Models without a checkpoint: the shapes of a bare `config.json`, filled with random numbers where they are to be
//! computed with. What a model costs depends on its shapes alone.

use std::path::Path;

use anyhow::Result;
use burn::tensor::{Device, Distribution, Tensor};

use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, StoredDtype};
use crate::decoder::Decoder;
use crate::names::{Entry, Kind, entries};
use crate::parameter::{Weight, WeightDtype};
use crate::weights::Weights;

/// Where the weights of a model came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A checkpoint.
    Loaded,
    /// Nowhere: they are random.
    Random,
}

impl Origin {
    /// `loaded` or `random`.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Loaded => "loaded",
            Origin::Random => "random",
        }
    }
}

impl Decoder {
    /// A model directory with its weights; or, of a directory that holds only `config.json`, or of such a file itself, an
    /// untrained model of that shape ([`Decoder::random_on_device`]).
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn open(
        path: &Path,
        seed: u64,
        device: &Device,
        dtype: WeightDtype,
    ) -> Result<(Decoder, Origin)> {
        if path.is_dir() && Checkpoint::stored(path) {
            let decoder = Decoder::load_as(path, device, dtype)?;
            return Ok((decoder, Origin::Loaded));
        }
        let config = if path.is_file() {
            ModelConfig::from_file(path)?
        } else {
            ModelConfig::from_directory(path)?
        };
        Ok((
            Decoder::random_on_device(config, seed, device, dtype),
            Origin::Random,
        ))
    }

    /// As [`Decoder::random_as`], but drawn by the device itself: the host never holds a weight. Another device draws other
    /// numbers. On the CPU it is [`Decoder::random_as`]. What has no files is bf16 with [`WeightDtype::Auto`] where its
    /// `config.json` says so, on a device.
    pub fn random_on_device(
        config: ModelConfig,
        seed: u64,
        device: &Device,
        dtype: WeightDtype,
    ) -> Decoder {
        if *device == Device::flex() {
            return Decoder::random_as(config, seed, device, dtype);
        }
        let rounded = match dtype.on(device) {
            WeightDtype::Auto => config.stored_dtype == StoredDtype::Bf16,
            dtype => dtype == WeightDtype::Bf16,
        };
        device.seed(seed);
        let normal = Distribution::Normal(0.0, config.initializer_range);
        let list = entries(&config).into_iter();
        let list = list.map(|Entry { kind, shape, .. }| match (kind, shape.as_slice()) {
            (Kind::Matrix, &[out, input]) => {
                let matrix = Weight::Matrix(Tensor::random([out, input], normal, device));
                if rounded { matrix.in_bf16() } else { matrix }
            }
            (Kind::Norm, &[dim]) if !config.norm_plus_one => {
                Weight::Vector(Tensor::ones([dim], device))
            }
            (Kind::Norm | Kind::Bias, &[dim]) => Weight::Vector(Tensor::zeros([dim], device)),
            _ => unreachable!("matrices have two dimensions, norms and biases one"),
        });
        let weights = Weights::from_list(&config, list.collect());
        Decoder {
            config,
            weights,
            lora: None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama31")
    }

    #[test]
    fn a_bare_config_becomes_a_random_model_of_that_shape() {
        let (device, dir) = (Device::flex(), tempfile::tempdir().unwrap());
        let (loaded, origin) = Decoder::open(&golden(), 1, &device, WeightDtype::F32).unwrap();
        assert_eq!(origin, Origin::Loaded);
        std::fs::copy(golden().join("config.json"), dir.path().join("config.json")).unwrap();
        for path in [dir.path().to_path_buf(), golden().join("config.json")] {
            let (random, origin) = Decoder::open(&path, 1, &device, WeightDtype::F32).unwrap();
            assert_eq!(origin, Origin::Random);
            let shapes = |decoder: &Decoder| -> Vec<_> {
                let parameters = decoder.parameters().into_iter();
                parameters.map(|p| (p.name, p.tensor.shape())).collect()
            };
            assert_eq!(shapes(&random), shapes(&loaded));
        }
    }

    #[test]
    fn weights_in_a_format_that_is_not_read_are_not_replaced_by_random_ones() {
        let (device, dir) = (Device::flex(), tempfile::tempdir().unwrap());
        std::fs::copy(golden().join("config.json"), dir.path().join("config.json")).unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
        let error = Decoder::open(dir.path(), 1, &device, WeightDtype::F32).unwrap_err();
        assert!(error.to_string().contains("pytorch_model.bin"), "{error:#}");
    }
}
