//! Compares every operation on a device with the CPU and says how far they are apart; exits 1 if that is not rounding.
//!
//! `cargo run -p sysgen-ops --features cuda --example parity -- bf16` (or `f32`, `f16`); with `--features wgpu` on Vulkan.
//! A second word runs the operations that have it in their names.

use std::process::ExitCode;

use burn::tensor::{DType, Device};
use sysgen_ops::parity;

fn main() -> ExitCode {
    let dtype = match std::env::args().nth(1).as_deref() {
        None | Some("f32") => DType::F32,
        Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        Some(word) => {
            eprintln!("{word:?} is not known; use f32, bf16 or f16");
            return ExitCode::FAILURE;
        }
    };
    let part = std::env::args().nth(2).unwrap_or_default();
    let (device, part) = (device(), part.as_str());
    let operations = parity::operations().filter(|op| op.contains(part));
    let comparisons: Vec<_> = operations
        .flat_map(|op| parity::compare_operation(op, &device, dtype))
        .collect();
    for comparison in &comparisons {
        println!("{comparison}");
    }
    let failed = comparisons.iter().filter(|c| !c.passes()).count();
    println!("{failed} of {} differ", comparisons.len());
    ExitCode::from(u8::from(failed > 0))
}

#[cfg(feature = "cuda")]
fn device() -> Device {
    sysgen_ops::decide_tf32(false);
    Device::cuda(0)
}

#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
fn device() -> Device {
    Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
}

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn device() -> Device {
    eprintln!("built without `--features cuda` or `wgpu`: comparing the CPU with itself");
    Device::flex()
}
