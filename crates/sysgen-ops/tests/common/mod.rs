//! Random tensors and the comparison the tests of this crate share.

use burn::tensor::{Device, Tensor, TensorData};

/// Largest difference allowed, relative to the largest number of the result.
pub(crate) const RELATIVE: f32 = 1e-5;

/// Numbers in −1..1 from a seed.
pub(crate) fn tensor<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A tensor's numbers on the host.
pub(crate) fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Panics unless the two agree to [`RELATIVE`]. Numbers that should all be 0 (the scores' gradient when only one key is
/// visible) are rounding noise of inputs around 1, hence the least scale.
#[allow(dead_code)]
pub(crate) fn close(name: &str, ours: &[f32], exact: &[f32]) {
    assert_eq!(ours.len(), exact.len(), "{name}: lengths");
    let scale = exact.iter().fold(0.1f32, |scale, x| scale.max(x.abs()));
    for (index, (ours, exact)) in ours.iter().zip(exact).enumerate() {
        let error = (ours - exact).abs() / scale;
        assert!(error <= RELATIVE, "{name}: {ours} for {exact} at {index}");
    }
}
