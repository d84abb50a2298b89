//! Which device computes: the words a configuration may use, turned into a Burn device.

use anyhow::{Result, bail};
use burn::tensor::Device;

/// The device named by `spec`: `cpu`, `auto` (CUDA where there is one, otherwise the CPU), `cuda` or `cuda:<index>`.
///
/// # Errors
/// An unknown word; CUDA in a build without it; no usable driver or GPU; an index beyond the GPUs present. A GPU that
/// was asked for by name is never replaced by the CPU.
pub fn device(spec: &str) -> Result<Device> {
    match spec {
        "cpu" => Ok(Device::flex()),
        "auto" => Ok(cuda_devices()
            .into_iter()
            .next()
            .unwrap_or_else(Device::flex)),
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

/// What computes, for a person: `cpu`, or the GPU's index and name.
pub fn device_name(device: &Device) -> String {
    let Some(index) = cuda_devices().iter().position(|other| other == device) else {
        return "cpu".into();
    };
    match gpu_name(device) {
        Some(name) => format!("cuda:{index} ({name})"),
        None => format!("cuda:{index}"),
    }
}

fn cuda(index: usize) -> Result<Device> {
    if !cfg!(feature = "cuda") {
        bail!(
            "device = \"cuda\": this program was built without CUDA; build it with `--features cuda`, or use device = \"cpu\""
        );
    }
    let devices = cuda_devices();
    let count = devices.len();
    match devices.into_iter().nth(index) {
        Some(device) => Ok(device),
        None if count == 0 => bail!(
            "device = \"cuda:{index}\": no NVIDIA driver or no GPU was found on this machine (does `nvidia-smi` list one?); use device = \"cpu\""
        ),
        None => bail!(
            "device = \"cuda:{index}\": this machine has {count} GPU(s), cuda:0 to cuda:{}",
            count - 1
        ),
    }
}

/// Enumerating is safe without a driver; `Device::cuda` is not (it panics on first use).
#[cfg(feature = "cuda")]
fn cuda_devices() -> Vec<Device> {
    Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()
}

#[cfg(feature = "cuda")]
fn gpu_name(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

#[cfg(not(feature = "cuda"))]
fn gpu_name(_: &Device) -> Option<String> {
    None
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
