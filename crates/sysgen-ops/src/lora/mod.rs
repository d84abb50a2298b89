//! A frozen projection with a low-rank update beside it (LoRA, arXiv 2106.09685): `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ + bias`.
//! The sum of the weights is never formed, and the frozen one never has a gradient. With a magnitude (DoRA, arXiv 2402.09353)
//! every row of the summed weight has that length: `(W + scale · B·A) · m / ‖W + scale · B·A‖`.

mod cpu;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::dropout::{Dropout, dropout};
use crate::fused;
use crate::linear;
use crate::linear::{linear_to, reference as plain};
use crate::nf4::{Nf4, nf4_linear};
use crate::packed::{Packed, packed_linear};

/// The low-rank update of one projection.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Down to the rank, `[rank, in]` (`lora_A`).
    pub a: Tensor<2>,
    /// Up from the rank, `[out, rank]` (`lora_B`).
    pub b: Tensor<2>,
    /// Multiplies the update: `alpha / rank`.
    pub scale: f32,
    /// Length of each row of the summed weight, `[out]` (`lora_magnitude_vector`), with DoRA.
    pub magnitude: Option<Tensor<1>>,
    /// What the update does not see of its input; in training only.
    pub dropout: Option<Dropout>,
}

/// The weight of a projection, as it is kept.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred
pub enum LinearWeight {
    /// As numbers, in f32 or bf16.
    Dense(Tensor<2>),
    /// In four bits, frozen.
    Nf4(Nf4),
    /// In panels, for inference.
    Packed(Packed),
}

impl LinearWeight {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            LinearWeight::Dense(weight) => weight.dims(),
            LinearWeight::Nf4(weight) => weight.shape(),
            LinearWeight::Packed(weight) => weight.shape(),
        }
    }

    /// The numbers in f32, `[out, in]`.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            LinearWeight::Dense(weight) => weight.clone().cast(DType::F32),
            LinearWeight::Nf4(weight) => weight.dequantise(),
            LinearWeight::Packed(weight) => weight.dense(),
        }
    }

    /// The tensor of a dense weight as it is, of another one the numbers in f32.
    pub fn into_tensor(self) -> Tensor<2> {
        match self {
            LinearWeight::Dense(weight) => weight,
            other => other.dense(),
        }
    }

    /// The same weight on `device`.
    #[must_use]
    pub fn to_device(&self, device: &Device) -> LinearWeight {
        match self {
            LinearWeight::Dense(weight) => LinearWeight::Dense(weight.clone().to_device(device)),
            LinearWeight::Nf4(weight) => LinearWeight::Nf4(weight.to_device(device)),
            // Panels are the CPU's.
            LinearWeight::Packed(weight) => LinearWeight::Dense(weight.dense().to_device(device)),
        }
    }

    /// [`linear`] with this weight.
    pub fn project<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            LinearWeight::Dense(weight) => linear(x, weight.clone(), bias),
            LinearWeight::Nf4(weight) => nf4_linear(x, weight, bias),
            LinearWeight::Packed(weight) => {
                let [y] = packed_linear(x, [(weight, bias.as_ref())]);
                y
            }
        }
    }

    /// [`LinearWeight::project`] in f32 whatever `x` is: what a head says of every word.
    pub fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            LinearWeight::Dense(weight) => linear_to(x, weight.clone(), None, DType::F32),
            other => other.project(x, None).cast(DType::F32),
        }
    }

    /// Some rows of the numbers, `[rows, in]`: as they are kept on a device, in f32 on the CPU.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        match self {
            LinearWeight::Packed(weight) => weight.rows(rows),
            other => {
                let ids: Vec<i32> = rows
                    .iter()
                    .map(|&row| i32::try_from(row).expect("a weight has fewer rows"))
                    .collect();
                let ids = TensorData::new(ids, [rows.len()]);
                let ids = Tensor::<1, Int>::from_data(ids, &other.device());
                self.rows_of(ids)
            }
        }
    }

    /// [`LinearWeight::rows`] whose numbers are on the weight's device already.
    pub fn rows_of(&self, rows: Tensor<1, Int>) -> Tensor<2> {
        let weight = self.clone().into_tensor();
        let dtype = if fused::keeps(&weight) {
            DType::F32
        } else {
            weight.dtype()
        };
        weight.select(0, rows).cast(dtype)
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            LinearWeight::Dense(weight) => weight.device(),
            LinearWeight::Nf4(weight) => weight.device(),
            LinearWeight::Packed(_) => Device::flex(),
        }
    }
}

/// [`linear`](crate::linear) with an adapter; gradients go to x and the adapter.
///
/// With DoRA and dropout, what the frozen weight adds to the update's direction sees the dropped input, as in PEFT.
///
/// # Shapes
/// * `x`: `[.., in]`, `weight`: `[out, in]`, `bias`: `[out]`, the last two frozen
/// * output: `[.., out]`
pub fn lora_linear<const D: usize>(
    x: Tensor<D>,
    weight: &LinearWeight,
    bias: Option<Tensor<1>>,
    adapter: &Adapter,
) -> Tensor<D> {
    let [output, input] = weight.shape();
    let [rank, _] = adapter.a.dims();
    assert_eq!(
        x.dims()[D - 1],
        input,
        "lora_linear: x [.., in], weight [out, in]"
    );
    assert_eq!(adapter.a.dims(), [rank, input], "lora_linear: a [rank, in]");
    assert_eq!(
        adapter.b.dims(),
        [output, rank],
        "lora_linear: b [out, rank]"
    );
    let bare = adapter.magnitude.is_none() && adapter.dropout.is_none();
    if let (LinearWeight::Dense(weight), true) = (weight, bare && fused::serves(&x)) {
        return beside(x, weight.clone(), bias, adapter);
    }
    let seen = match adapter.dropout {
        Some(settings) => dropout(x.clone(), settings),
        None => x.clone(),
    };
    let down = linear(seen.clone(), adapter.a.clone(), None).mul_scalar(adapter.scale);
    let update = linear(down, adapter.b.clone(), None);
    let Some(magnitude) = &adapter.magnitude else {
        return weight.project(x, bias) + update;
    };
    let lengths = row_lengths(weight, adapter);
    let magnitude = magnitude.clone().cast(DType::F32);
    let factor = match magnitude.is_autodiff() {
        true => magnitude / lengths.autodiff(),
        false => magnitude / lengths,
    };
    let factor = factor.cast(x.dtype());
    let mut shape = [1; D];
    shape[D - 1] = output;
    let turned = (weight.project(seen.clone(), None) + update) * factor.reshape(shape);
    match (adapter.dropout, bias) {
        (None, None) => turned,
        (None, Some(bias)) => turned + bias.cast(x.dtype()).reshape(shape),
        (Some(_), bias) => weight.project(x - seen, bias) + turned,
    }
}

/// The update added where the wide product lies (CPU).
fn beside<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter: &Adapter,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [output, input] = weight.dims();
    let [rank, _] = adapter.a.dims();
    shape[D - 1] = output;
    let op = cpu::LoraLinear {
        input,
        output,
        rank,
        scale: adapter.scale,
        weight: fused::frozen(weight),
        bias: bias.map(fused::frozen),
    };
    let inputs = [x.into(), adapter.a.clone().into(), adapter.b.clone().into()];
    fused::apply(op, inputs, shape)
}

/// `‖W + scale · B·A‖` of every row, `[out]`, outside of any graph: DoRA takes it for a constant.
///
/// `‖w + s·b·A‖² = ‖w‖² + 2s · b·(A·wᵀ) + s² · b·(A·Aᵀ)·bᵀ` for a row w of W and b of B, so the sum is not formed.
pub fn row_lengths(weight: &LinearWeight, adapter: &Adapter) -> Tensor<1> {
    let [output, _] = weight.shape();
    let weight = weight.dense().inner();
    let [a, b] = [&adapter.a, &adapter.b].map(|x| x.clone().inner().cast(DType::F32));
    let scale = f64::from(adapter.scale);
    let crossed = linear(weight.clone(), a.clone(), None);
    let squared = linear(b.clone(), linear(a.clone(), a, None), None);
    let of_weight = weight.powi_scalar(2).sum_dim(1);
    let of_both = (crossed * b.clone()).sum_dim(1).mul_scalar(2.0 * scale);
    let of_update = (squared * b).sum_dim(1).mul_scalar(scale * scale);
    (of_weight + of_both + of_update)
        .clamp_min(0.0)
        .sqrt()
        .reshape([output])
}

/// The weight of the projection with its adapter merged into it, `[out, in]`, in f32.
pub fn merged(weight: &LinearWeight, adapter: &Adapter) -> Tensor<2> {
    let [output, _] = weight.shape();
    let update = linear(adapter.b.clone(), adapter.a.clone().transpose(), None);
    let sum = weight.dense() + update.mul_scalar(adapter.scale);
    match &adapter.magnitude {
        None => sum,
        Some(magnitude) => {
            let lengths = sum.clone().powi_scalar(2).sum_dim(1).sqrt();
            sum * (magnitude.clone().reshape([output, 1]) / lengths)
        }
    }
}

/// [`lora_linear`] in plain Burn tensors; forms the summed weight.
pub fn reference<const D: usize>(
    x: Tensor<D>,
    weight: &LinearWeight,
    bias: Option<Tensor<1>>,
    adapter: &Adapter,
) -> Tensor<D> {
    let weight = weight.dense();
    let seen = match adapter.dropout {
        Some(settings) => crate::dropout::reference(x.clone(), settings),
        None => x.clone(),
    };
    let update = adapter.b.clone().matmul(adapter.a.clone());
    let update = update.mul_scalar(adapter.scale);
    let Some(magnitude) = &adapter.magnitude else {
        return plain(x, weight, bias) + plain(seen, update, None);
    };
    let [output, _] = weight.dims();
    let sum = weight.clone() + update;
    let lengths = sum.clone().detach().powi_scalar(2).sum_dim(1).sqrt();
    let turned = sum * (magnitude.clone().reshape([output, 1]) / lengths);
    plain(x.clone(), weight.clone(), bias) - plain(seen.clone(), weight, None)
        + plain(seen, turned, None)
}
