//! The tensors of a decoder as they are seen from outside: named parameters.

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData, bf16};

use crate::device::has_bf16;

/// A parameter under its name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Hugging Face name.
    pub name: String,
    /// Its values.
    pub tensor: Weight,
}

/// What matrices (projections, embedding table, head) are kept in. Norms and biases are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// bf16 where the files have it, f32 elsewhere: nothing is rounded. For weights that are not trained.
    #[default]
    Auto,
    /// f32, to which f16 and bf16 files convert without loss.
    F32,
    /// bf16; what the files have in another format is rounded to the nearest.
    Bf16,
}

impl WeightDtype {
    /// What of it the device can do: one without bf16 has f32.
    pub(crate) fn on(self, device: &Device) -> WeightDtype {
        if has_bf16(device) {
            self
        } else {
            WeightDtype::F32
        }
    }
}

/// The tensor of a parameter.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Norms and biases, `[dim]`.
    Vector(Tensor<1>),
    /// Linear layers `[out, in]` and the embedding table `[vocab, dim]`.
    Matrix(Tensor<2>),
}

impl Weight {
    /// A weight from host values on `device`; `shape` has one or two sizes.
    pub fn from_values(values: Vec<f32>, shape: &[usize], device: &Device) -> Weight {
        let data = TensorData::new(values, shape.to_vec());
        match shape.len() {
            1 => Weight::Vector(Tensor::from_data(data, device)),
            2 => Weight::Matrix(Tensor::from_data(data, device)),
            rank => panic!("a weight has one or two dimensions, not {rank}"),
        }
    }

    /// A matrix from numbers in bf16, kept so.
    pub(crate) fn from_bf16(values: Vec<bf16>, shape: &[usize], device: &Device) -> Weight {
        let data = TensorData::new(values, shape.to_vec());
        Weight::Matrix(Tensor::from_data(data, (device, DType::BF16)))
    }

    /// The same, a matrix rounded to the nearest bf16.
    #[must_use]
    pub fn in_bf16(self) -> Weight {
        match self {
            Weight::Matrix(tensor) => Weight::Matrix(tensor.cast(DType::BF16)),
            vector => vector,
        }
    }

    /// Whether it is kept in bf16.
    pub fn is_bf16(&self) -> bool {
        match self {
            Weight::Vector(tensor) => tensor.dtype() == DType::BF16,
            Weight::Matrix(tensor) => tensor.dtype() == DType::BF16,
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Weight::Vector(tensor) => tensor.device(),
            Weight::Matrix(tensor) => tensor.device(),
        }
    }

    /// Sizes of its dimensions.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Weight::Vector(tensor) => tensor.dims().to_vec(),
            Weight::Matrix(tensor) => tensor.dims().to_vec(),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its values on the host as f32, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        let data = match self {
            Weight::Vector(tensor) => tensor.clone().try_into_vec_as::<f32>(),
            Weight::Matrix(tensor) => tensor.clone().try_into_vec_as::<f32>(),
        };
        data.expect("float tensors of this crate can be read as f32")
    }

    /// The same values on the autodiff device, marked to receive a gradient.
    #[must_use]
    pub fn autodiff(self) -> Weight {
        match self {
            Weight::Vector(tensor) => Weight::Vector(tensor.autodiff().require_grad()),
            Weight::Matrix(tensor) => Weight::Matrix(tensor.autodiff().require_grad()),
        }
    }

    /// The same values on the autodiff device, without a gradient.
    #[must_use]
    pub(crate) fn untracked(self) -> Weight {
        match self {
            Weight::Vector(tensor) => Weight::Vector(tensor.autodiff()),
            Weight::Matrix(tensor) => Weight::Matrix(tensor.autodiff()),
        }
    }

    /// The tensor of a parameter that is known to be a matrix.
    pub(crate) fn matrix(self) -> Tensor<2> {
        match self {
            Weight::Matrix(tensor) => tensor,
            Weight::Vector(_) => panic!("a matrix became a vector"),
        }
    }

    /// The tensor of a parameter that is known to be a vector.
    pub(crate) fn vector(self) -> Tensor<1> {
        match self {
            Weight::Vector(tensor) => tensor,
            Weight::Matrix(_) => panic!("a vector became a matrix"),
        }
    }

    /// Takes this parameter's gradient out of `gradients`; `None` where the loss does not depend on it.
    pub fn take_gradient(&self, gradients: &mut Gradients) -> Option<Weight> {
        match self {
            Weight::Vector(tensor) => tensor.grad_remove(gradients).map(Weight::Vector),
            Weight::Matrix(tensor) => tensor.grad_remove(gradients).map(Weight::Matrix),
        }
    }
}
