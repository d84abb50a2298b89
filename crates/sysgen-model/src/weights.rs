//! The tensors of a decoder as layers; they are listed in the order of `names.rs`.

use burn::tensor::{DType, Device, Tensor};

use sysgen_ops::{Adapter, Dropout, LinearWeight, Nf4, Packed};

use crate::config::{ModelConfig, StoredDtype};
use crate::names::{Entry, entries};
use crate::parameter::Weight;

/// `x · weightᵀ + bias`, and the adapter's share if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: LinearWeight,
    pub(crate) bias: Option<Tensor<1>>,
    pub(crate) adapter: Option<Adapter>,
}

impl Linear {
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.clone();
        match &self.adapter {
            None => self.weight.project(x, bias),
            Some(adapter) => sysgen_ops::lora_linear(x, &self.weight, bias, adapter),
        }
    }

    pub(crate) fn device(&self) -> Device {
        self.weight.device()
    }

    /// In panels where that is possible.
    fn pack(self) -> Linear {
        Linear {
            weight: pack(self.weight),
            ..self
        }
    }

    /// The same on the autodiff device with only the adapter tracked, which is added to `tracked`.
    fn autodiff_adapter(&mut self, tracked: &mut Vec<Weight>) {
        if let LinearWeight::Dense(weight) = &mut self.weight {
            *weight = weight.clone().autodiff();
        }
        untrack(&mut self.bias);
        let Some(adapter) = &mut self.adapter else {
            return;
        };
        for tensor in [&mut adapter.a, &mut adapter.b] {
            *tensor = tensor.clone().autodiff().require_grad();
            tracked.push(Weight::Matrix(tensor.clone()));
        }
        if let Some(magnitude) = &mut adapter.magnitude {
            *magnitude = magnitude.clone().autodiff().require_grad();
            tracked.push(Weight::Vector(magnitude.clone()));
        }
    }
}

/// A vector, if there is one, on the autodiff device without a gradient.
fn untrack<'a>(vector: impl IntoIterator<Item = &'a mut Tensor<1>>) {
    for tensor in vector {
        *tensor = tensor.clone().autodiff();
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
            Projection::Separate(linears) => match packed(linears) {
                Some(weights) => sysgen_ops::packed_linear(x, weights),
                None => std::array::from_fn(|i| linears[i].forward(x.clone())),
            },
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

/// Weights and biases where all are in panels: then one call multiplies with all of them.
fn packed<const N: usize>(linears: &[Linear; N]) -> Option<[(&Packed, Option<&Tensor<1>>); N]> {
    let mut all = [None; N];
    for (linear, packed) in linears.iter().zip(&mut all) {
        if let (LinearWeight::Packed(weight), None) = (&linear.weight, &linear.adapter) {
            *packed = Some((weight, linear.bias.as_ref()));
        }
    }
    all.iter()
        .all(Option::is_some)
        .then(|| all.map(|packed| packed.expect("all are there")))
}

/// A weight in panels where that is possible.
fn pack(weight: LinearWeight) -> LinearWeight {
    let packed = match &weight {
        LinearWeight::Dense(dense) => Packed::pack(dense),
        _ => None,
    };
    packed.map_or(weight, LinearWeight::Packed)
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
    pub(crate) embedding: LinearWeight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor<1>,
    /// `None` where the head is the embedding table.
    pub(crate) head: Option<LinearWeight>,
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
        Weights::from_source(config, Source::of(list))
    }

    /// Takes tensors in the order of [`entries`], in which they have been found to fit, one at a time. With `nf4` the
    /// projections are quantised as they come.
    pub(crate) fn from_source(config: &ModelConfig, mut list: Source) -> Weights {
        Weights {
            embedding: LinearWeight::Dense(list.matrix()),
            layers: (0..config.layers)
                .map(|_| Layer::from_list(config, &mut list))
                .collect(),
            norm: list.vector(),
            head: (!config.tied).then(|| LinearWeight::Dense(list.matrix())),
        }
    }

    /// For inference: what products are made of in panels.
    pub(crate) fn pack(self) -> Weights {
        Weights {
            // A table that is only looked things up in stays as it is.
            embedding: match self.head {
                None => pack(self.embedding),
                Some(_) => self.embedding,
            },
            layers: self.layers.into_iter().map(Layer::pack).collect(),
            norm: self.norm,
            head: self.head.map(pack),
        }
    }

    /// The tensors in the order of [`entries`].
    pub(crate) fn into_list(self) -> Vec<Weight> {
        self.into_kept()
            .into_iter()
            .map(Kept::into_weight)
            .collect()
    }

    /// The parameters as they are kept, in the order of [`entries`].
    pub(crate) fn into_kept(self) -> Vec<Kept> {
        let mut list = vec![Kept::Matrix(self.embedding, None)];
        for layer in self.layers {
            layer.into_kept(&mut list);
        }
        list.push(Kept::Vector(self.norm));
        list.extend(self.head.map(|head| Kept::Matrix(head, None)));
        list
    }
}

/// A parameter as the model keeps it.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred
pub(crate) enum Kept {
    Vector(Tensor<1>),
    /// With the adapter beside it.
    Matrix(LinearWeight, Option<Adapter>),
}

impl Kept {
    /// Its tensor, without the adapter; what is not dense becomes so.
    pub(crate) fn into_weight(self) -> Weight {
        match self {
            Kept::Vector(tensor) => Weight::Vector(tensor),
            Kept::Matrix(weight, _) => Weight::Matrix(weight.into_tensor()),
        }
    }

    /// The format of its numbers where they are dense.
    pub(crate) fn stored_dtype(&self) -> StoredDtype {
        match self {
            Kept::Matrix(LinearWeight::Dense(weight), None) if weight.dtype() == DType::BF16 => {
                StoredDtype::Bf16
            }
            _ => StoredDtype::F32,
        }
    }
}

impl Layer {
    /// The same on the autodiff device, and what of it is trained, in the order of the names, to ask for its gradients:
    /// every parameter, or with adapters these alone.
    pub(crate) fn autodiff(&self, config: &ModelConfig, adapters: bool) -> (Layer, Vec<Weight>) {
        if adapters {
            return self.autodiff_adapters();
        }
        let mut list = Vec::new();
        self.clone().into_list(&mut list);
        let list: Vec<Weight> = list.into_iter().map(Weight::autodiff).collect();
        let layer = Layer::from_list(config, &mut Source::of(list.clone()));
        (layer, list)
    }

    fn autodiff_adapters(&self) -> (Layer, Vec<Weight>) {
        let (mut layer, mut tracked) = (self.clone(), Vec::new());
        for linear in layer.projections() {
            linear.autodiff_adapter(&mut tracked);
        }
        untrack([&mut layer.input_norm, &mut layer.feed_forward_norm]);
        untrack(layer.head_norms.iter_mut().flatten());
        untrack(&mut layer.post_attention_norm);
        untrack(&mut layer.post_feed_forward_norm);
        (layer, tracked)
    }

    /// The same with every trained parameter replaced by what `map` makes of it, in the order of [`Layer::autodiff`].
    pub(crate) fn map_trained(
        mut self,
        config: &ModelConfig,
        adapters: bool,
        mut map: impl FnMut(Weight) -> Weight,
    ) -> Layer {
        if !adapters {
            let mut list = Vec::new();
            self.into_list(&mut list);
            let list = list.into_iter().map(map);
            return Layer::from_list(config, &mut Source::new(list, false));
        }
        for linear in self.projections() {
            if let Some(adapter) = linear.adapter.take() {
                linear.adapter = Some(Adapter {
                    a: map(Weight::Matrix(adapter.a)).matrix(),
                    b: map(Weight::Matrix(adapter.b)).matrix(),
                    magnitude: (adapter.magnitude)
                        .map(|magnitude| map(Weight::Vector(magnitude)).vector()),
                    ..adapter
                });
            }
        }
        self
    }

    /// The same with what its adapters do not see, drawn from `seed` for each of them.
    pub(crate) fn with_dropout(&self, probability: f64, seed: u64) -> Layer {
        let mut layer = self.clone();
        for (index, linear) in layer.projections().into_iter().enumerate() {
            if let Some(adapter) = &mut linear.adapter {
                // Two odd numbers keep the streams of neighbouring layers and modules apart.
                let seed = seed ^ (index as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
                adapter.dropout = Some(Dropout { probability, seed });
            }
        }
        layer
    }

    /// Its projections, in the order of the names.
    pub(crate) fn projections(&mut self) -> Vec<&mut Linear> {
        let mut all = self.qkv.linears();
        all.push(&mut self.output);
        all.extend(self.gate_up.linears());
        all.push(&mut self.down);
        all
    }

    fn pack(self) -> Layer {
        Layer {
            qkv: self.qkv.pack(),
            output: self.output.pack(),
            gate_up: self.gate_up.pack(),
            down: self.down.pack(),
            ..self
        }
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
        let mut kept = Vec::new();
        self.into_kept(&mut kept);
        list.extend(kept.into_iter().map(Kept::into_weight));
    }

    fn into_kept(self, list: &mut Vec<Kept>) {
        list.push(Kept::Vector(self.input_norm));
        self.qkv.into_kept(list);
        list.extend(self.head_norms.into_iter().flatten().map(Kept::Vector));
        self.output.into_kept(list);
        list.extend(self.post_attention_norm.map(Kept::Vector));
        list.push(Kept::Vector(self.feed_forward_norm));
        self.gate_up.into_kept(list);
        self.down.into_kept(list);
        list.extend(self.post_feed_forward_norm.map(Kept::Vector));
    }
}

impl<const N: usize> Projection<N> {
    fn pack(self) -> Projection<N> {
        match self {
            Projection::Separate(linears) => {
                Projection::Separate(Box::new(linears.map(Linear::pack)))
            }
            Projection::Fused(linear) => Projection::Fused(Box::new(linear.pack())),
        }
    }

    fn linears(&mut self) -> Vec<&mut Linear> {
        match self {
            Projection::Separate(linears) => linears.iter_mut().collect(),
            Projection::Fused(linear) => vec![linear],
        }
    }

    fn into_kept(self, list: &mut Vec<Kept>) {
        match self {
            Projection::Separate(linears) => linears
                .into_iter()
                .for_each(|linear| linear.into_kept(list)),
            Projection::Fused(linear) => linear.into_kept(list),
        }
    }
}

impl Linear {
    fn into_kept(self, list: &mut Vec<Kept>) {
        list.push(Kept::Matrix(self.weight, self.adapter));
        list.extend(self.bias.map(Kept::Vector));
    }
}

/// Hands out the checked tensors one after the other.
pub(crate) struct Source<'a> {
    list: Box<dyn Iterator<Item = Weight> + 'a>,
    nf4: bool,
}

impl<'a> Source<'a> {
    /// Tensors that are made when they are asked for; with `nf4` projections become four bits wide.
    pub(crate) fn new(list: impl Iterator<Item = Weight> + 'a, nf4: bool) -> Source<'a> {
        let list = Box::new(list);
        Source { list, nf4 }
    }

    fn of(list: Vec<Weight>) -> Source<'static> {
        Source::new(list.into_iter(), false)
    }

    fn next(&mut self) -> Weight {
        self.list
            .next()
            .expect("the number of parameters was checked")
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
        let weight = self.matrix();
        let weight = if self.nf4 {
            let (shape, device) = (weight.dims(), weight.device());
            let values = Weight::Matrix(weight).to_vec();
            LinearWeight::Nf4(Nf4::quantise(&values, shape, &device))
        } else {
            LinearWeight::Dense(weight)
        };
        Linear {
            weight,
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
