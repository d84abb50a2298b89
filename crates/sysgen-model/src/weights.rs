//! The tensors of a decoder, as named parameters from outside and as layers inside.
//! Both views list them in the order of `names.rs`.

use burn::tensor::{Device, Gradients, Tensor, TensorData};

use sysgen_ops::Adapter;

use crate::config::ModelConfig;
use crate::names::{Entry, entries};

/// A parameter under its name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Hugging Face name.
    pub name: String,
    /// Its values.
    pub tensor: Weight,
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

    /// Its values on the host, row-major.
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

    /// Takes this parameter's gradient out of `gradients`; `None` where the loss does not depend on it.
    pub fn take_gradient(&self, gradients: &mut Gradients) -> Option<Weight> {
        match self {
            Weight::Vector(tensor) => tensor.grad_remove(gradients).map(Weight::Vector),
            Weight::Matrix(tensor) => tensor.grad_remove(gradients).map(Weight::Matrix),
        }
    }
}

/// `x · weightᵀ + bias`, and the adapter's share if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    pub(crate) adapter: Option<Adapter>,
}

impl Linear {
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        match &self.adapter {
            None => sysgen_ops::linear(x, weight, bias),
            Some(adapter) => sysgen_ops::lora_linear(x, weight, bias, adapter),
        }
    }

    /// The same on the autodiff device with only the adapter tracked, which is added to `tracked`.
    fn autodiff_adapter(&mut self, tracked: &mut Vec<Weight>) {
        if let Some(Adapter { a, b, .. }) = &mut self.adapter {
            for tensor in [a, b] {
                *tensor = tensor.clone().autodiff().require_grad();
                tracked.push(Weight::Matrix(tensor.clone()));
            }
        }
    }
}

/// One matrix per output, or one for all (Phi).
#[derive(Clone, Debug)]
pub(crate) enum Projection<const N: usize> {
    Separate(Box<[Linear; N]>),
    Fused(Box<Linear>),
}

impl<const N: usize> Projection<N> {
    /// The `N` outputs, of the given widths.
    pub(crate) fn forward(&self, x: Tensor<3>, widths: [usize; N]) -> [Tensor<3>; N] {
        match self {
            Projection::Separate(linears) => std::array::from_fn(|i| linears[i].forward(x.clone())),
            Projection::Fused(linear) => {
                let all = linear.forward(x);
                let mut from = 0;
                widths.map(|width| {
                    from += width;
                    all.clone().narrow(2, from - width, width)
                })
            }
        }
    }
}

/// One decoder layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Tensor<1>,
    pub(crate) qkv: Projection<3>,
    /// Norms on each head of q and of k.
    pub(crate) head_norms: Option<[Tensor<1>; 2]>,
    pub(crate) output: Linear,
    pub(crate) post_attention_norm: Option<Tensor<1>>,
    pub(crate) feed_forward_norm: Tensor<1>,
    pub(crate) gate_up: Projection<2>,
    pub(crate) down: Linear,
    pub(crate) post_feed_forward_norm: Option<Tensor<1>>,
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Tensor<2>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor<1>,
    /// `None` where the head is the embedding table.
    pub(crate) head: Option<Tensor<2>>,
}

impl Weights {
    /// Takes tensors in the order of [`entries`].
    ///
    /// # Panics
    /// A tensor is missing, left over, or has another shape.
    pub(crate) fn from_list(config: &ModelConfig, list: Vec<Weight>) -> Weights {
        let expected = entries(config);
        assert_eq!(list.len(), expected.len(), "number of parameters");
        for (Entry { name, shape, .. }, weight) in expected.iter().zip(&list) {
            assert_eq!(&weight.shape(), shape, "shape of {name}");
        }
        let mut list = Source(list.into_iter());
        Weights {
            embedding: list.matrix(),
            layers: (0..config.layers)
                .map(|_| Layer::from_list(config, &mut list))
                .collect(),
            norm: list.vector(),
            head: (!config.tied).then(|| list.matrix()),
        }
    }

    /// The tensors in the order of [`entries`].
    pub(crate) fn into_list(self) -> Vec<Weight> {
        let mut list = vec![Weight::Matrix(self.embedding)];
        for layer in self.layers {
            layer.into_list(&mut list);
        }
        list.push(Weight::Vector(self.norm));
        list.extend(self.head.map(Weight::Matrix));
        list
    }
}

impl Layer {
    /// The same on the autodiff device, and what of it is trained, in the order of the names, to ask for its gradients:
    /// every parameter, or with adapters these alone.
    pub(crate) fn autodiff(&self, config: &ModelConfig, adapters: bool) -> (Layer, Vec<Weight>) {
        let mut list = Vec::new();
        self.clone().into_list(&mut list);
        let place = if adapters {
            Weight::untracked
        } else {
            Weight::autodiff
        };
        let list: Vec<Weight> = list.into_iter().map(place).collect();
        let mut layer = Layer::from_list(config, &mut Source(list.clone().into_iter()));
        if !adapters {
            return (layer, list);
        }
        let mut tracked = Vec::new();
        let mut source = self.clone();
        for (linear, own) in layer.projections().into_iter().zip(source.projections()) {
            linear.adapter = own.adapter.take();
            linear.autodiff_adapter(&mut tracked);
        }
        (layer, tracked)
    }

    /// Its projections, in the order of the names.
    pub(crate) fn projections(&mut self) -> Vec<&mut Linear> {
        let mut all = self.qkv.linears();
        all.push(&mut self.output);
        all.extend(self.gate_up.linears());
        all.push(&mut self.down);
        all
    }

    fn from_list(config: &ModelConfig, list: &mut Source) -> Layer {
        let biases = config.biases;
        // Struct fields are evaluated in the order written, which is the order of the names.
        Layer {
            input_norm: list.vector(),
            qkv: list.projection(config.fused, biases.qkv),
            head_norms: config.qk_norm.then(|| [list.vector(), list.vector()]),
            output: list.linear(biases.output),
            post_attention_norm: config.post_norms.then(|| list.vector()),
            feed_forward_norm: list.vector(),
            gate_up: list.projection(config.fused, biases.feed_forward),
            down: list.linear(biases.feed_forward),
            post_feed_forward_norm: config.post_norms.then(|| list.vector()),
        }
    }

    fn into_list(self, list: &mut Vec<Weight>) {
        list.push(Weight::Vector(self.input_norm));
        self.qkv.into_list(list);
        list.extend(self.head_norms.into_iter().flatten().map(Weight::Vector));
        self.output.into_list(list);
        list.extend(self.post_attention_norm.map(Weight::Vector));
        list.push(Weight::Vector(self.feed_forward_norm));
        self.gate_up.into_list(list);
        self.down.into_list(list);
        list.extend(self.post_feed_forward_norm.map(Weight::Vector));
    }
}

impl<const N: usize> Projection<N> {
    fn linears(&mut self) -> Vec<&mut Linear> {
        match self {
            Projection::Separate(linears) => linears.iter_mut().collect(),
            Projection::Fused(linear) => vec![linear],
        }
    }

    fn into_list(self, list: &mut Vec<Weight>) {
        match self {
            Projection::Separate(linears) => linears
                .into_iter()
                .for_each(|linear| linear.into_list(list)),
            Projection::Fused(linear) => linear.into_list(list),
        }
    }
}

impl Linear {
    fn into_list(self, list: &mut Vec<Weight>) {
        list.push(Weight::Matrix(self.weight));
        list.extend(self.bias.map(Weight::Vector));
    }
}

/// Hands out the checked tensors one after the other.
struct Source(std::vec::IntoIter<Weight>);

impl Source {
    fn next(&mut self) -> Weight {
        self.0.next().expect("the number of parameters was checked")
    }

    fn vector(&mut self) -> Tensor<1> {
        match self.next() {
            Weight::Vector(tensor) => tensor,
            Weight::Matrix(_) => unreachable!("the shapes were checked"),
        }
    }

    fn matrix(&mut self) -> Tensor<2> {
        match self.next() {
            Weight::Matrix(tensor) => tensor,
            Weight::Vector(_) => unreachable!("the shapes were checked"),
        }
    }

    fn linear(&mut self, bias: bool) -> Linear {
        Linear {
            weight: self.matrix(),
            bias: bias.then(|| self.vector()),
            adapter: None,
        }
    }

    fn projection<const N: usize>(&mut self, fused: bool, bias: bool) -> Projection<N> {
        if fused {
            Projection::Fused(Box::new(self.linear(bias)))
        } else {
            Projection::Separate(Box::new(std::array::from_fn(|_| self.linear(bias))))
        }
    }
}
