//! Whether a device computes what the CPU computes: every operation, its values and its gradients, at odd shapes.
//!
//! For the tests, and for a program that is about to trust a GPU with days of work.

mod cases;
mod distillation;
mod not_a_number;

use std::fmt;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::tf32_is_allowed;

type Cases = fn(&mut Bench);

/// Every operation with a device side, and the cases it is compared on.
const OPERATIONS: &[(&str, Cases)] = &[
    ("rms_norm", cases::rms_norm),
    ("rope", cases::rope),
    ("swiglu", cases::swiglu),
    ("geglu_tanh", cases::geglu_tanh),
    ("dropout", cases::dropout),
    ("linear", cases::linear),
    ("lora_linear", cases::lora_linear),
    ("nf4_linear", cases::nf4_linear),
    ("linear_cross_entropy", cases::linear_cross_entropy),
    ("linear_distillation", distillation::linear_distillation),
    ("distillation_of_spans", distillation::distillation_of_spans),
    ("attention", cases::attention),
    ("paged_attention", cases::paged_attention),
    ("adamw_step", cases::adamw_step),
    ("adamw_8bit_step", cases::adamw_8bit_step),
    ("squared_norm", cases::squared_norm),
];

/// One result of one operation on a device beside the CPU's in f32.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Name of the operation.
    pub op: &'static str,
    /// Shapes and options, and which result: the output, or the gradient of the n-th input.
    pub case: String,
    /// Of the tensors on the device.
    pub dtype: DType,
    /// The largest difference, relative to the largest number of the result; infinite if there is a NaN.
    pub error: f64,
    /// The largest `error` that is rounding.
    pub tolerance: f64,
}

impl Comparison {
    /// Whether the difference is rounding.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes() { "ok" } else { "DIFFERS" };
        let Self {
            op,
            case,
            dtype,
            error,
            tolerance,
        } = self;
        write!(
            f,
            "{verdict:7} {op} {case}, {dtype:?}: {error:.1e} of {tolerance:.0e}"
        )
    }
}

/// Whether all planes (warps) of `device` have one size, as `paged_attention` needs them. Those of some graphics cards differ
/// from kernel to kernel; NVIDIA's have 32 units.
#[cfg(feature = "cube")]
pub fn has_one_plane_size(device: &Device) -> bool {
    let probe = crate::device::primitive(Tensor::<1>::empty([1], device));
    crate::launch::plane_size(&probe.client).is_some()
}

/// The names of all operations with a device side.
pub fn operations() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().map(|(op, _)| *op)
}

/// Runs every operation on `device` (without autodiff) in `dtype` and on the CPU in f32 from the same numbers.
pub fn compare(device: &Device, dtype: DType) -> Vec<Comparison> {
    operations()
        .flat_map(|op| compare_operation(op, device, dtype))
        .collect()
}

/// [`compare`] for one operation.
///
/// # Panics
/// It is none of [`operations`].
pub fn compare_operation(op: &str, device: &Device, dtype: DType) -> Vec<Comparison> {
    let (op, cases) = OPERATIONS
        .iter()
        .find(|(name, _)| *name == op)
        .unwrap_or_else(|| panic!("parity: no operation `{op}`"));
    let mut bench = Bench {
        device: device.clone(),
        dtype,
        op,
        comparisons: Vec::new(),
    };
    cases(&mut bench);
    bench.comparisons
}

/// Where the cases are run and what they gave.
struct Bench {
    device: Device,
    dtype: DType,
    op: &'static str,
    comparisons: Vec<Comparison>,
}

impl Bench {
    /// Compares output and gradients of `run` for inputs of the given shapes (handed over flat), between −1 and 1.
    fn pass<const D: usize>(
        &mut self,
        case: &str,
        shapes: &[&[usize]],
        run: impl Fn(&[Tensor<1>]) -> Tensor<D>,
    ) {
        for (result, [ours, exact]) in self.results(shapes, run) {
            self.record(format!("{case}: {result}"), &ours, &exact);
        }
    }

    /// Output and gradients of `run` by name: the device's and the CPU's.
    fn results<const D: usize>(
        &self,
        shapes: &[&[usize]],
        run: impl Fn(&[Tensor<1>]) -> Tensor<D>,
    ) -> Vec<(String, [Vec<f32>; 2])> {
        let results = |device: Device, dtype: DType| {
            let device = device.autodiff();
            let inputs: Vec<Tensor<1>> = shapes
                .iter()
                .enumerate()
                .map(|(seed, shape)| {
                    let input: Tensor<1> =
                        self.tensor(seed as u64 + 1, [shape.iter().product()], &device, dtype);
                    input.require_grad()
                })
                .collect();
            let output = run(&inputs);
            let weights = self.tensor(99, output.dims(), &device, output.dtype());
            let gradients = (output.clone() * weights).sum().backward();
            let mut results = vec![numbers(output)];
            for input in &inputs {
                results.push(input.grad(&gradients).map(numbers).unwrap_or_default());
            }
            results
        };
        let exact = results(Device::flex(), DType::F32);
        let ours = results(self.device.clone(), self.dtype);
        let names = (0..).map(|index| match index {
            0 => "output".to_string(),
            _ => format!("gradient {index}"),
        });
        let pairs = ours
            .into_iter()
            .zip(exact)
            .map(|(ours, exact)| [ours, exact]);
        names.zip(pairs).collect()
    }

    /// Notes how far `ours` is from `exact`. Results that should be 0 are rounding noise of inputs around 1, hence the
    /// least scale.
    fn record(&mut self, case: String, ours: &[f32], exact: &[f32]) {
        let scale = exact.iter().fold(0.1f32, |scale, x| scale.max(x.abs()));
        let error = match ours.len() == exact.len() {
            false => f64::INFINITY,
            true => ours.iter().zip(exact).fold(0.0, |error: f64, (x, y)| {
                let difference = f64::from((x - y).abs() / scale);
                if difference.is_nan() {
                    f64::INFINITY
                } else {
                    error.max(difference)
                }
            }),
        };
        self.comparisons.push(Comparison {
            op: self.op,
            case,
            dtype: self.dtype,
            error,
            tolerance: tolerance(&self.device, self.dtype),
        });
    }

    /// Given numbers, rounded to [`Bench::dtype`].
    fn on_device<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::new(values, shape).convert_dtype(self.dtype);
        Tensor::from_data(data, (&self.device, self.dtype))
    }

    /// Numbers between −1 and 1 that [`Bench::dtype`] can hold, the same ones on every device.
    fn tensor<const D: usize>(
        &self,
        seed: u64,
        shape: [usize; D],
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Eight bits after the point: bf16 holds them.
                ((state >> 56) as f32 - 127.5) / 128.0
            })
            .collect();
        let data = TensorData::new(values, shape).convert_dtype(dtype);
        Tensor::from_data(data, (device, dtype))
    }
}

/// A few units in the last place, for the sums of hundreds of products.
fn tolerance(device: &Device, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 3e-2,
        DType::F16 => 5e-3,
        // The first eleven bits of what is multiplied.
        _ if on_cuda(device) && tf32_is_allowed() => 2e-3,
        // Full f32 there, too, but from kernels and functions of `exp` that no GPU of ours has run yet. Numbers that were
        // rounded to TF32 on the way are off by more.
        _ if on_cuda(device) => 1e-4,
        _ => 1e-5,
    }
}

#[cfg(feature = "cuda")]
fn on_cuda(device: &Device) -> bool {
    use burn::backend::DispatchDevice;
    use cubecl::device::RuntimeId;
    matches!(device.as_dispatch(), DispatchDevice::Cube(device) if device.runtime() == RuntimeId::Cuda)
}

#[cfg(not(feature = "cuda"))]
fn on_cuda(_device: &Device) -> bool {
    false
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_to_vec().expect("just made f32")
}
