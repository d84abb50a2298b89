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
use burn::tensor::{DType, Shape, Tensor, TensorData, bf16};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::FlexTensor;

use crate::simd::scale;

/// An operation on contiguous f32 slices that knows its own gradient. An input in bf16 comes as an empty slice: the operation
/// holds it itself ([`in_bf16`]), and its gradient is f32.
pub(crate) trait Fused: Debug + Send + Sync + 'static {
    /// The output, and what the gradient needs besides inputs and output. Nothing is `wanted` outside a graph.
    fn forward(&self, inputs: &[&[f32]], wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>);

    /// Whether the gradient reads input `index`; what nobody reads is not kept.
    fn keeps_input(&self, _index: usize, _wanted: &[bool]) -> bool {
        true
    }

    /// Whether the gradient reads the output.
    fn keeps_output(&self) -> bool {
        false
    }

    /// The gradient of every input that is `wanted`, in order; anything (an empty vector) for the others.
    fn backward(&self, pass: Pass) -> Vec<Vec<f32>>;
}

/// What a gradient is made of; an input or output that was not kept is empty.
pub(crate) struct Pass<'a> {
    pub(crate) inputs: &'a [&'a [f32]],
    pub(crate) output: &'a [f32],
    pub(crate) saved: Vec<Vec<f32>>,
    /// Gradient of the output.
    pub(crate) gradient: &'a [f32],
    pub(crate) wanted: &'a [bool],
}

impl Pass<'_> {
    /// Of an operation that makes its gradients on the way forward and saves them: these, where the same gradient comes back
    /// at every place, and what `anew` makes where it does not.
    pub(crate) fn saved_or(self, anew: impl FnOnce(Self) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let factor = self.gradient.first().copied().unwrap_or(1.0);
        if self.gradient.iter().any(|&gradient| gradient != factor) {
            return anew(Pass {
                saved: Vec::new(),
                ..self
            });
        }
        let mut saved = self.saved;
        if factor != 1.0 {
            saved.iter_mut().for_each(|values| scale(values, factor));
        }
        saved
    }
}

/// Whether a tensor is f32 on the CPU backend, with or without autodiff.
pub(crate) fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && Input::from_dispatch(tensor.clone().into_dispatch()).is_some()
}

/// Whether a parameter is f32 or bf16 on the CPU backend, outside of any graph.
pub(crate) fn keeps<const D: usize>(tensor: &Tensor<D>) -> bool {
    let kind = tensor.clone().into_dispatch().kind;
    matches!(tensor.dtype(), DType::F32 | DType::BF16)
        && matches!(kind, DispatchTensorKind::Flex(BackendTensor::Float(_)))
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
    contiguous(Input::from(tensor).primitive)
}

fn contiguous(primitive: Primitive) -> FlexTensor {
    match primitive {
        Primitive::Plain(tensor) => tensor.to_contiguous(),
        Primitive::Graph(tensor) => tensor.into_primitive().to_contiguous(),
    }
}

/// [`values`] of a weight that has no gradient by the operation's definition.
pub(crate) fn frozen<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let primitive = Input::from(tensor).primitive;
    if let Primitive::Graph(tensor) = &primitive {
        assert!(!tensor.is_tracked(), "a frozen weight asks for a gradient");
    }
    contiguous(primitive)
}

/// The numbers of a contiguous f32 tensor.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .expect("made contiguous, and `serves` admits f32 only")
}

/// The numbers of a weight, in what they are kept in.
#[derive(Clone, Copy)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// The numbers of a contiguous tensor.
pub(crate) fn numbers(tensor: &FlexTensor) -> Numbers<'_> {
    match tensor.dtype() {
        DType::BF16 => Numbers::Bf16(tensor.as_slice().expect("contiguous bf16")),
        _ => Numbers::F32(slice(tensor)),
    }
}

/// A weight's values if it is kept in bf16, for the operation to hold.
pub(crate) fn in_bf16(weight: &Tensor<2>) -> Option<FlexTensor> {
    (weight.dtype() == DType::BF16).then(|| values(weight.clone()))
}

/// What an operation sees of an input.
fn seen(tensor: &FlexTensor) -> &[f32] {
    match numbers(tensor) {
        Numbers::F32(numbers) => numbers,
        Numbers::Bf16(_) => &[],
    }
}

/// A primitive whose storage is exactly the tensor's numbers, so that it can be written in place.
pub(crate) fn writable<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let held = values(tensor);
    let width = held.dtype().size();
    if held.shape().num_elements() * width == held.bytes().len() {
        held
    } else {
        FlexTensor::from_data(held.into_data())
    }
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
        let (output, _) = op.forward(&inputs.each_ref().map(seen), &[false; N]);
        return from_flex(tensor(output, shape));
    }

    let mut wanted = [false; N];
    let (primitives, nodes): (Vec<_>, Vec<_>) = inputs
        .into_iter()
        .zip(&mut wanted)
        .map(|(input, wanted)| {
            let tensor = match input.primitive {
                Primitive::Graph(tensor) => tensor,
                Primitive::Plain(tensor) => <Autodiff<Flex> as AutodiffBackend>::from_inner(tensor),
            };
            *wanted = tensor.is_tracked();
            let (primitive, node) = tensor.into_parts();
            (primitive.to_contiguous(), node)
        })
        .unzip();
    let Ok(nodes) = <[_; N]>::try_from(nodes) else {
        unreachable!("one node for each of N inputs")
    };
    let slices: Vec<&[f32]> = primitives.iter().map(seen).collect();
    let (output, saved) = op.forward(&slices, &wanted);
    let output = tensor(output, shape);
    let output = match Gradient
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::UnTracked(prepared) => prepared.finish(output),
        OpsKind::Tracked(prepared) => {
            let shapes = primitives.iter().map(|input| input.shape()).collect();
            let inputs = primitives
                .into_iter()
                .enumerate()
                .map(|(index, input)| op.keeps_input(index, &wanted).then_some(input))
                .collect();
            let state = State {
                output: op.keeps_output().then(|| output.clone()),
                op: Arc::new(op),
                inputs,
                shapes,
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
    inputs: Vec<Option<FlexTensor>>,
    shapes: Vec<Shape>,
    output: Option<FlexTensor>,
    saved: Arc<Vec<Vec<f32>>>,
}

/// The numbers of a kept tensor, none of one that was not.
fn kept(tensor: &Option<FlexTensor>) -> &[f32] {
    tensor.as_ref().map_or(&[], seen)
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
            shapes,
            output,
            saved,
        } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let results = op.backward(Pass {
            inputs: &inputs.iter().map(kept).collect::<Vec<_>>(),
            output: kept(&output),
            saved: Arc::try_unwrap(saved).unwrap_or_else(|shared| (*shared).clone()),
            gradient: slice(&gradient),
            wanted: &wanted,
        });
        drop(gradient);
        for ((parent, result), shape) in ops.parents.into_iter().zip(results).zip(shapes) {
            if let Some(parent) = parent {
                gradients.register::<Flex>(parent.id, tensor(result, shape));
            }
        }
    }
}
