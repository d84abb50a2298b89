//! The device kernels against the CPU, on whatever Vulkan device there is: a graphics card or a software one.

use burn::tensor::{DType, Device, DeviceKind, DeviceType};
use sysgen_ops::parity;

#[test]
fn kernels_agree_with_the_cpu() {
    if Device::enumerate(DeviceType::Wgpu).is_empty() {
        eprintln!("SKIPPED: no Vulkan device, so no kernel was run");
        return;
    }
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let comparisons = parity::compare(&device, DType::F32);
    for comparison in &comparisons {
        println!("{comparison}");
    }
    let failed: Vec<_> = comparisons.iter().filter(|c| !c.passes()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn the_cpu_agrees_with_itself() {
    for comparison in parity::compare(&Device::flex(), DType::F32) {
        assert!(comparison.error == 0.0, "{comparison}");
    }
}
