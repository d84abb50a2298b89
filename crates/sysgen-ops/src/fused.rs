//! How a hand-written CPU operation enters Burn's graph: host slices in, host slices out, with its own gradient.
//!
//! An operation implements [`Fused`]; its wrapper asks [`serves`] and calls [`apply`]. Everything that knows Burn's
//! backend internals (Flex primitives, autodiff nodes, dispatch) is in this file, or for devices in `device`.

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, DispatchAutodiffContext, DispatchTensor,
    DispatchTensorKind, Flex, TensorMetadata, tensor::FloatTensor,
};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::FlexTensor;

/// An operation on contiguous f32 slices that knows its own gradient.
pub(crate) trait Fused: Debug + Send + Sync + 'static {
    /// The output, and what the gradient needs besides inputs and output (may be empty).
    fn forward(&self, inputs: &[&[f32]]) -> (Vec<f32>, Vec<f32>);

    /// The gradient of every input that is `wanted`, in order; anything (an empty vector) for the others.
    fn backward(&self, pass: Pass) -> Vec<Vec<f32>>;
}

/// What a gradient is made of.
pub(crate) struct Pass<'a> {
    pub(crate) inputs: &'a [&'a [f32]],
    pub(crate) output: &'a [f32],
    pub(crate) saved: &'a [f32],
    /// Gradient of the output.
    pub(crate) gradient: &'a [f32],
    pub(crate) wanted: &'a [bool],
}

/// Whether a tensor is f32 on the CPU backend, with or without autodiff.
pub(crate) fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && Input::from_dispatch(tensor.clone().into_dispatch()).is_some()
}

/// An input of [`apply`].
pub(crate) struct Input {
    primitive: Primitive,
    context: DispatchAutodiffContext,
}

enum Primitive {
    Plain(FlexTensor),
    Graph(FloatTensor<Autodiff<Flex>>),
}

impl Input {
    fn from_dispatch(tensor: DispatchTensor) -> Option<Self> {
        // Other variants exist when other backends are compiled in.
        #[allow(unreachable_patterns)]
        let primitive = match tensor.kind {
            DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => Primitive::Plain(tensor),
            DispatchTensorKind::Autodiff(inner) => match *inner {
                DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => {
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
            .expect("all tensors of a fused operation live on the CPU backend")
    }
}

/// A tensor's values without its place in the graph, for inputs that never have a gradient.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    match Input::from(tensor).primitive {
        Primitive::Plain(tensor) => tensor.to_contiguous(),
        Primitive::Graph(tensor) => tensor.into_primitive().to_contiguous(),
    }
}

/// The numbers of a contiguous f32 tensor.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .expect("made contiguous, and `serves` admits f32 only")
}

/// Wraps host numbers as a CPU tensor without autodiff.
pub(crate) fn plain<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    from_flex(tensor(values, Shape::from(shape)))
}

/// Wraps a CPU primitive as a tensor without autodiff.
pub(crate) fn from_flex<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_dispatch(DispatchTensor {
        kind: DispatchTensorKind::Flex(BackendTensor::Float(tensor)),
        autodiff: DispatchAutodiffContext::Disabled,
    })
}

/// Runs `op`, recording its gradient when an input takes part in a graph.
pub(crate) fn apply<const N: usize, const D: usize>(
    op: impl Fused,
    inputs: [Input; N],
    shape: [usize; D],
) -> Tensor<D> {
    let context = inputs
        .iter()
        .map(|input| input.context)
        .find(|context| *context != DispatchAutodiffContext::Disabled)
        .unwrap_or_default();
    let shape = Shape::from(shape);
    if context == DispatchAutodiffContext::Disabled {
        let inputs = inputs.map(|input| match input.primitive {
            Primitive::Plain(tensor) => tensor.to_contiguous(),
            Primitive::Graph(_) => unreachable!("a graph tensor has an enabled context"),
        });
        let (output, _) = op.forward(&inputs.each_ref().map(slice));
        return from_flex(tensor(output, shape));
    }

    let (primitives, nodes): (Vec<_>, Vec<_>) = inputs
        .into_iter()
        .map(|input| {
            let (primitive, node) = match input.primitive {
                Primitive::Graph(tensor) => tensor.into_parts(),
                Primitive::Plain(tensor) => {
                    <Autodiff<Flex> as AutodiffBackend>::from_inner(tensor).into_parts()
                }
            };
            (primitive.to_contiguous(), node)
        })
        .unzip();
    let Ok(nodes) = <[_; N]>::try_from(nodes) else {
        unreachable!("one node for each of N inputs")
    };
    let slices: Vec<&[f32]> = primitives.iter().map(slice).collect();
    let (output, saved) = op.forward(&slices);
    let output = tensor(output, shape);
    let output = match Gradient
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::UnTracked(prepared) => prepared.finish(output),
        OpsKind::Tracked(prepared) => {
            let state = State {
                op: Arc::new(op),
                inputs: primitives,
                output: output.clone(),
                saved: Arc::new(saved),
            };
            prepared.finish(state, output)
        }
    };
    Tensor::from_dispatch(DispatchTensor {
        kind: DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(
            BackendTensor::Autodiff(output),
        ))),
        autodiff: context,
    })
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

#[derive(Clone, Debug)]
struct State {
    op: Arc<dyn Fused>,
    inputs: Vec<FlexTensor>,
    output: FlexTensor,
    saved: Arc<Vec<f32>>,
}

#[derive(Debug)]
struct Gradient;

impl<const N: usize> Backward<Flex, N> for Gradient {
    type State = State;

    fn backward(
        self,
        ops: Ops<State, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let State {
            op,
            inputs,
            output,
            saved,
        } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let results = op.backward(Pass {
            inputs: &inputs.iter().map(slice).collect::<Vec<_>>(),
            output: slice(&output),
            saved: &saved,
            gradient: slice(&gradient),
            wanted: &wanted,
        });
        drop(gradient);
        for ((parent, result), input) in ops.parents.into_iter().zip(results).zip(inputs) {
            if let Some(parent) = parent {
                gradients.register::<Flex>(parent.id, tensor(result, input.shape()));
            }
        }
    }
}
