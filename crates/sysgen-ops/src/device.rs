//! How a hand-written device operation enters Burn's graph: device tensors in, a device tensor out, with its own gradient.
//!
//! The counterpart of `fused` for CubeCL: an operation implements [`Kernels`]; its wrapper asks [`serves`] and calls
//! [`apply`]. What a kernel is launched with is in `launch`.

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, Cube, DispatchAutodiffContext, DispatchTensor,
    DispatchTensorKind, tensor::FloatTensor,
};
use burn::tensor::{DType, Int, Tensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_cubecl::tensor::CubeTensor;

/// An operation on device tensors of any strides that knows its own gradient.
pub(crate) trait Kernels: Debug + Send + Sync + 'static {
    /// The output, and what the gradient needs. An input that no gradient needs is not to be among it: what is saved
    /// stays in device memory until the backward pass.
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>);

    /// The gradient of every input that is `wanted`, in order; nothing for the others.
    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>>;
}

/// Whether a tensor is a float the kernels take, on a CubeCL device, with or without autodiff.
pub(crate) fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16)
        && Input::from_dispatch(tensor.clone().into_dispatch()).is_some()
}

/// An input of [`apply`].
pub(crate) struct Input {
    primitive: Primitive,
    context: DispatchAutodiffContext,
}

enum Primitive {
    Plain(CubeTensor),
    Graph(FloatTensor<Autodiff<Cube>>),
}

impl Input {
    fn from_dispatch(tensor: DispatchTensor) -> Option<Self> {
        let primitive = match tensor.kind {
            DispatchTensorKind::Cube(BackendTensor::Float(tensor)) => Primitive::Plain(tensor),
            DispatchTensorKind::Autodiff(inner) => match *inner {
                DispatchTensorKind::Cube(BackendTensor::Autodiff(tensor)) => {
                    Primitive::Graph(tensor)
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(Self {
            primitive,
            context: tensor.autodiff,
        })
    }
}

impl<const D: usize> From<Tensor<D>> for Input {
    fn from(tensor: Tensor<D>) -> Self {
        Self::from_dispatch(tensor.into_dispatch())
            .expect("all tensors of a device operation live on the same device")
    }
}

/// A tensor's primitive without its place in the graph.
pub(crate) fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    match Input::from(tensor).primitive {
        Primitive::Plain(tensor) => tensor,
        Primitive::Graph(tensor) => tensor.into_primitive(),
    }
}

/// The primitive of integers.
pub(crate) fn int_primitive<const D: usize>(tensor: Tensor<D, Int>) -> CubeTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Cube(BackendTensor::Int(tensor)) => tensor,
        _ => unreachable!("made on the device of an operation that `serves` admitted"),
    }
}

/// Wraps a primitive as a tensor without autodiff.
pub(crate) fn plain<const D: usize>(primitive: CubeTensor) -> Tensor<D> {
    Tensor::from_dispatch(DispatchTensor {
        kind: DispatchTensorKind::Cube(BackendTensor::Float(primitive)),
        autodiff: DispatchAutodiffContext::Disabled,
    })
}

/// Wraps a primitive of integers.
pub(crate) fn int_plain<const D: usize>(primitive: CubeTensor) -> Tensor<D, Int> {
    Tensor::from_dispatch(DispatchTensor {
        kind: DispatchTensorKind::Cube(BackendTensor::Int(primitive)),
        autodiff: DispatchAutodiffContext::Disabled,
    })
}

/// Runs `op`, recording its gradient when an input takes part in a graph.
pub(crate) fn apply<const N: usize, const D: usize>(
    op: impl Kernels,
    inputs: [Input; N],
) -> Tensor<D> {
    let context = inputs
        .iter()
        .map(|input| input.context)
        .find(|context| *context != DispatchAutodiffContext::Disabled)
        .unwrap_or_default();
    if context == DispatchAutodiffContext::Disabled {
        let inputs = inputs.map(|input| match input.primitive {
            Primitive::Plain(tensor) => tensor,
            Primitive::Graph(_) => unreachable!("a graph tensor has an enabled context"),
        });
        return plain(op.forward(inputs.into(), &[false; N]).0);
    }

    let inputs = inputs.map(|input| match input.primitive {
        Primitive::Graph(tensor) => tensor,
        Primitive::Plain(tensor) => <Autodiff<Cube> as AutodiffBackend>::from_inner(tensor),
    });
    let wanted = inputs.each_ref().map(|input| input.is_tracked());
    let (primitives, nodes): (Vec<_>, Vec<_>) =
        inputs.into_iter().map(|input| input.into_parts()).unzip();
    let Ok(nodes) = <[_; N]>::try_from(nodes) else {
        unreachable!("one node for each of N inputs")
    };
    let (output, saved) = op.forward(primitives, &wanted);
    let output = match Gradient
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::UnTracked(prepared) => prepared.finish(output),
        OpsKind::Tracked(prepared) => {
            let op = Arc::new(op);
            prepared.finish(State { op, saved }, output)
        }
    };
    Tensor::from_dispatch(DispatchTensor {
        kind: DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Cube(
            BackendTensor::Autodiff(output),
        ))),
        autodiff: context,
    })
}

#[derive(Clone, Debug)]
struct State {
    op: Arc<dyn Kernels>,
    saved: Vec<CubeTensor>,
}

#[derive(Debug)]
struct Gradient;

impl<const N: usize> Backward<Cube, N> for Gradient {
    type State = State;

    fn backward(
        self,
        ops: Ops<State, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = gradients.consume::<Cube>(&ops.node);
        let State { op, saved } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let results = op.backward(saved, gradient, &wanted);
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                gradients.register::<Cube>(parent.id, result);
            }
        }
    }
}
