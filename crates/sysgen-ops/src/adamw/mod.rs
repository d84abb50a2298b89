//! The AdamW step (decoupled weight decay) and the squared norm used for clipping.

mod cpu;
#[cfg(feature = "cube")]
mod cuda;
mod eight_bit;
#[cfg(feature = "cube")]
mod eight_bit_cuda;
mod rounding;

use burn::tensor::{DType, Tensor, bf16};

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

pub use eight_bit::{MomentOrder, Moments8, Quantised, adamw_8bit_step, moments8_bytes};

/// What every parameter shares in one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 for parameters that do not decay.
    pub weight_decay: f64,
    /// Start of the random bits with which a parameter in bf16 is rounded: another one for each parameter and step. Those in
    /// f32 are not rounded.
    pub rounding_seed: u32,
}

/// A parameter's running averages; zeros before the first step.
#[derive(Clone, Debug)]
pub struct Moments<const D: usize> {
    /// Average of the gradient.
    pub first: Tensor<D>,
    /// Average of the squared gradient.
    pub second: Tensor<D>,
}

impl<const D: usize> Moments<D> {
    /// Zeros in the shape, and on the device, of a parameter; f32 whatever its dtype.
    pub fn zeros_like(parameter: &Tensor<D>) -> Self {
        let zeros = || parameter.zeros_like().cast(DType::F32);
        Self {
            first: zeros(),
            second: zeros(),
        }
    }
}

/// One step as `torch.optim.AdamW` takes it: `step` counts from 1, `gradient` is already divided and clipped. A parameter in
/// bf16 is widened, updated in f32 and rounded stochastically.
///
/// Tensors that nobody else holds are updated in place. All tensors live on the plain (not autodiff) device.
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: Moments<D>,
    settings: &AdamW,
    step: u64,
) -> (Tensor<D>, Moments<D>) {
    let shape = parameter.dims();
    assert_eq!(
        shape,
        gradient.dims(),
        "adamw_step: a gradient for every number"
    );
    assert_eq!(
        shape,
        moments.first.dims(),
        "adamw_step: moments for every number"
    );
    #[cfg(feature = "cube")]
    if device::serves(&parameter) {
        let moments = [moments.first, moments.second].map(device::primitive);
        let (parameter, gradient) = (device::primitive(parameter), device::primitive(gradient));
        let (parameter, moments) = cuda::step(parameter, gradient, moments, settings, step);
        let [first, second] = moments.map(device::plain);
        return (device::plain(parameter), Moments { first, second });
    }
    if !fused::keeps(&parameter) {
        return reference(parameter, gradient, moments, settings, step);
    }
    let gradient = fused::values(gradient);
    let mut parameter = fused::writable(parameter);
    let mut first = fused::writable(moments.first);
    let mut second = fused::writable(moments.second);
    let (g, m, v) = (
        fused::slice(&gradient),
        first.storage_mut(),
        second.storage_mut(),
    );
    match parameter.dtype() {
        DType::BF16 => cpu::step::<bf16>(parameter.storage_mut(), g, m, v, settings, step),
        _ => cpu::step::<f32>(parameter.storage_mut(), g, m, v, settings, step),
    }
    let moments = Moments {
        first: fused::from_flex(first),
        second: fused::from_flex(second),
    };
    (fused::from_flex(parameter), moments)
}

/// The sum of all squares, in f64.
pub fn squared_norm<const D: usize>(tensor: &Tensor<D>) -> f64 {
    squared_norms(std::iter::once(flat(tensor)))[0]
}

/// [`squared_norm`] of each of several tensors on one device, which is waited for once.
pub fn squared_norms(tensors: impl ExactSizeIterator<Item = Tensor<1>>) -> Vec<f64> {
    #[cfg(feature = "cube")]
    {
        let mut tensors = tensors.peekable();
        let first = tensors.peek().filter(|first| device::serves(first));
        if let Some(first) = first.cloned().map(device::primitive) {
            let mut norms = cuda::SquaredNorms::new(&first, tensors.len());
            drop(first);
            for tensor in tensors {
                norms.add(device::primitive(tensor));
            }
            return norms.read();
        }
        tensors.map(squared_norm_on_host).collect()
    }
    #[cfg(not(feature = "cube"))]
    tensors.map(squared_norm_on_host).collect()
}

/// The numbers of a tensor one after the other.
pub fn flat<const D: usize>(tensor: &Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.clone().reshape([count])
}

fn squared_norm_on_host(tensor: Tensor<1>) -> f64 {
    if fused::serves(&tensor) {
        return cpu::squared_norm(fused::slice(&fused::values(tensor)));
    }
    f64::from(tensor.powi_scalar(2).sum().into_scalar::<f32>())
}

/// [`adamw_step`] in plain Burn tensors.
pub(crate) fn reference<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: Moments<D>,
    settings: &AdamW,
    step: u64,
) -> (Tensor<D>, Moments<D>) {
    let AdamW {
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        ..
    } = *settings;
    let first = moments.first.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
    let second =
        moments.second.mul_scalar(beta2) + (gradient.clone() * gradient).mul_scalar(1.0 - beta2);
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    let root = second
        .clone()
        .sqrt()
        .div_scalar(correction2.sqrt())
        .add_scalar(epsilon);
    let parameter = parameter.mul_scalar(1.0 - learning_rate * weight_decay)
        - (first.clone() / root).mul_scalar(learning_rate / correction1);
    (parameter, Moments { first, second })
}
