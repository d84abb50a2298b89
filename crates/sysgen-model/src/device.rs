//! Which device computes: the words a configuration may use, turned into a Burn device.

use anyhow::{Result, bail};
use burn::tensor::{DType, Device};
use sysgen_ops::decide_tf32;

use crate::cuda::{self, cuda_needs};
use crate::memory;

/// The device named by `spec`: `cpu`, `auto` (the first GPU where there is one, otherwise the CPU), `cuda` or
/// `cuda:<index>`.
///
/// # Errors
/// An unknown word; CUDA in a build without it; no usable driver or GPU, or nothing to compile kernels with; an index
/// beyond the GPUs present. Neither a GPU that was asked for nor one that is there is ever replaced by the CPU.
pub fn device(spec: &str) -> Result<Device> {
    match spec {
        "cpu" => Ok(Device::flex()),
        "auto" if cuda_devices().is_empty() => Ok(Device::flex()),
        "auto" => cuda(0),
        _ => {
            let index = match spec.split_once(':') {
                None if spec == "cuda" => Some(0),
                Some(("cuda", index)) => index.parse::<usize>().ok(),
                _ => None,
            };
            let Some(index) = index else {
                bail!("device = \"{spec}\" is not known; use auto, cpu, cuda or cuda:<index>");
            };
            cuda(index)
        }
    }
}

/// Lets every GPU of this process round f32 numbers to TF32 to multiply them. Without it they do not, as in PyTorch; to be
/// called before [`device`] first opens one.
pub fn allow_tf32() {
    decide_tf32(true);
}

/// Whether weights in bf16 can be kept on it, and computed with.
pub fn has_bf16(device: &Device) -> bool {
    *device == Device::flex() || device.supports_dtype(DType::BF16)
}

/// What computes, for a person: `cpu`, or the GPU's index, name and memory.
pub fn device_name(device: &Device) -> String {
    let index = cuda_devices().iter().position(|other| other == device);
    index.map_or("cpu".into(), gpu_name)
}

/// The names of all devices of this machine, the CPU first.
pub fn device_names() -> Vec<String> {
    let gpus = 0..cuda_devices().len();
    std::iter::once("cpu".into())
        .chain(gpus.map(gpu_name))
        .collect()
}

/// Free memory of a GPU in bytes; nothing for the CPU.
pub(crate) fn free_gpu_memory(device: &Device) -> Option<usize> {
    let index = cuda_devices().iter().position(|other| other == device)?;
    cuda::free_memory(index)
}

fn gpu_name(index: usize) -> String {
    let name = cuda::gpu(index).unwrap_or_default();
    format!("cuda:{index} ({name})")
}

fn cuda(index: usize) -> Result<Device> {
    for need in cuda_needs() {
        if let Err(missing) = need.found {
            bail!("device = \"cuda:{index}\": {missing}; or use device = \"cpu\"");
        }
    }
    let devices = cuda_devices();
    let count = devices.len();
    let Some(device) = devices.into_iter().nth(index) else {
        bail!(
            "device = \"cuda:{index}\": this machine has {count} GPU(s), the last one is cuda:{}",
            count.saturating_sub(1)
        );
    };
    // Burn would use it, and settles with the first product.
    decide_tf32(false);
    memory::using(gpu_name(index));
    Ok(device)
}

/// Enumerating is safe without a driver; `Device::cuda` is not (it panics on first use).
#[cfg(feature = "cuda")]
fn cuda_devices() -> Vec<Device> {
    Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Vec<Device> {
    Vec::new()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert!(!device("cpu").unwrap().is_autodiff());
        device("auto").unwrap();
    }

    #[test]
    fn an_unknown_device_is_named_with_the_known_ones() {
        for spec in ["gpu", "cuda:", "cuda:x", "CPU", "metal:0"] {
            let message = device(spec).unwrap_err().to_string();
            assert!(
                message.contains(spec) && message.contains("auto, cpu, cuda"),
                "{message}"
            );
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn asking_for_cuda_without_it_says_how_to_get_it() {
        let message = device("cuda:1").unwrap_err().to_string();
        assert!(message.contains("--features cuda"), "{message}");
    }
}
