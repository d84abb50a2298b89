//! Training's forward and backward pass, one graph for each decoder layer. A layer's gradients are handed on as soon as they
//! exist, or used at once to update it, and with recomputation only the layers' inputs are kept: a layer is run once more
//! when its gradients are due. All ways run the same operations on the same numbers.

use std::borrow::Cow;

use burn::tensor::Tensor;
use sysgen_ops::LinearWeight;

use crate::decoder::Decoder;
use crate::layer::{Scene, norm};
use crate::parameter::Weight;
use crate::tokens::Tokens;
use crate::weights::Layer;

/// A layer that has been run forward.
#[allow(clippy::large_enum_variant)] // there are a few dozen
enum Passed {
    /// Its input alone.
    Input(Tensor<3>),
    /// Its graph.
    Graph(Graph),
}

/// One layer under autodiff.
struct Graph {
    input: Tensor<3>,
    parameters: Vec<Weight>,
    output: Tensor<3>,
}

/// How a backward pass is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Layers' insides are not kept but computed again: less memory, a third more work, the same numbers.
    pub gradient_checkpointing: bool,
    /// Start of the random bits of this pass, where adapters have dropout.
    pub dropout_seed: u64,
}

impl Decoder {
    /// The loss of `tokens`, and the gradient of every trained parameter it depends on.
    ///
    /// `loss` gets the hidden states after the final norm `[batch, time, dim]` and the head `[vocab, dim]`, both tracked,
    /// and returns one number. `gradients` gets the place of a parameter in [`Decoder::trainable`] and its gradient, in
    /// f32, the last layer's first. The decoder lives on a plain (not autodiff) device.
    ///
    /// # Panics
    /// As [`Decoder::hidden`].
    pub fn backward(
        &self,
        tokens: &Tokens,
        pass: Pass,
        loss: impl FnOnce(Tensor<3>, Tensor<2>) -> Tensor<1>,
        mut gradients: impl FnMut(usize, Weight),
    ) -> Tensor<1> {
        // The copy shares the tensors, and nothing replaces them.
        let mut decoder = self.clone();
        decoder.backward_and_update(tokens, pass, loss, |place, parameter, gradient| {
            gradients(place, gradient);
            parameter
        })
    }

    /// [`Decoder::backward`] that replaces each parameter by what `update` makes of it and its gradient, as soon as nothing
    /// more is computed with the old one. The parameter has no other owner in this decoder, so that it can be written in
    /// place, and no gradient is kept here.
    ///
    /// # Panics
    /// As [`Decoder::hidden`].
    pub fn backward_and_update(
        &mut self,
        tokens: &Tokens,
        pass: Pass,
        loss: impl FnOnce(Tensor<3>, Tensor<2>) -> Tensor<1>,
        mut update: impl FnMut(usize, Weight, Weight) -> Weight,
    ) -> Tensor<1> {
        tokens.assert_valid(self.config.vocab_size);
        let plain = self.scene(tokens);
        let tracked = plain.autodiff();
        let adapters = self.lora.is_some();
        let count = self.trainable_count();
        let mut place = match adapters {
            true => count,
            false => count - 1 - usize::from(!self.config.tied),
        };

        let mut x = self.embed(&tokens.ids, [tokens.batch, tokens.time]);
        let mut layers = std::mem::take(&mut self.weights.layers);
        let windows = self.config.windows.clone();
        let mut passed = Vec::with_capacity(layers.len());
        for (index, (layer, window)) in layers.iter().zip(&windows).enumerate() {
            let layer = self.training_layer(layer, index, pass.dropout_seed);
            if pass.gradient_checkpointing {
                passed.push(Passed::Input(x.clone()));
                x = self.layer(&layer, *window, x, &plain);
            } else {
                let graph = self.graph(&layer, *window, x, &tracked);
                x = graph.output.clone().inner();
                passed.push(Passed::Graph(graph));
            }
        }

        let (value, mut gradient, table) = self.end(x, loss, count, &mut update);
        let mut done = Vec::with_capacity(layers.len());
        while let (Some(layer), Some(passed)) = (layers.pop(), passed.pop()) {
            let graph = match passed {
                Passed::Graph(graph) => graph,
                Passed::Input(x) => {
                    let index = layers.len();
                    let layer = self.training_layer(&layer, index, pass.dropout_seed);
                    self.graph(&layer, windows[index], x, &tracked)
                }
            };
            let Graph {
                input,
                parameters,
                output,
            } = graph;
            let mut all = sysgen_ops::backward(output, gradient);
            gradient = input
                .grad_remove(&mut all)
                .expect("the residual stream runs through every layer");
            place -= parameters.len();
            let gradients: Vec<Option<Weight>> = parameters
                .iter()
                .map(|parameter| parameter.take_gradient(&mut all))
                .collect();
            // From here on the layer alone has its parameters.
            drop((parameters, all));
            let mut gradients = gradients.into_iter().zip(place..);
            done.push(layer.map_trained(
                &self.config,
                adapters,
                |parameter| match gradients.next() {
                    Some((Some(gradient), place)) => update(place, parameter, gradient),
                    _ => parameter,
                },
            ));
        }
        done.reverse();
        self.weights.layers = done;

        if adapters {
            return value;
        }
        if let Some(scale) = self.config.embedding_scale {
            gradient = gradient.mul_scalar(scale);
        }
        let [batch, time, dim] = gradient.dims();
        let rows = gradient.reshape([batch * time, dim]);
        // A tied head's gradient is whole only with what its rows add as embeddings.
        let table = table.unwrap_or_else(|| {
            let [rows, dim] = self.weights.embedding.shape();
            Tensor::zeros([rows, dim], &self.device())
        });
        let gradient = sysgen_ops::add_rows(table, &tokens.ids, rows);
        update_matrix(&mut self.weights.embedding, |old| {
            update(0, old, Weight::Matrix(gradient))
        });
        value
    }

    /// Final norm and loss: its value, the gradient of the residual stream `x`, and of the embedding table if that is the
    /// head.
    fn end(
        &mut self,
        x: Tensor<3>,
        loss: impl FnOnce(Tensor<3>, Tensor<2>) -> Tensor<1>,
        count: usize,
        update: &mut impl FnMut(usize, Weight, Weight) -> Weight,
    ) -> (Tensor<1>, Tensor<3>, Option<Tensor<2>>) {
        let x = x.autodiff().require_grad();
        let weight = Weight::Vector(self.weights.norm.clone());
        let head = self.head().autodiff();
        let (weight, head) = if self.lora.is_some() {
            (weight.untracked(), head)
        } else {
            (weight.autodiff(), head.require_grad())
        };
        let Weight::Vector(norm_weight) = &weight else {
            unreachable!("made of a vector above");
        };
        let hidden = norm(&self.config, x.clone(), norm_weight);
        let value = loss(hidden, head.clone());
        let mut all = value.backward();
        let mut of_head = head.grad_remove(&mut all);
        let of_norm = weight.take_gradient(&mut all);
        drop((head, weight));
        if let Some(head) = &mut self.weights.head
            && let Some(gradient) = of_head.take()
        {
            update_matrix(head, |old| update(count - 1, old, Weight::Matrix(gradient)));
        }
        if let Some(gradient) = of_norm {
            let old = Weight::Vector(take(&mut self.weights.norm));
            let place = count - 1 - usize::from(!self.config.tied);
            self.weights.norm = update(place, old, gradient).vector();
        }
        let gradient = x
            .grad_remove(&mut all)
            .expect("the loss depends on the hidden states");
        (value.inner(), gradient, of_head)
    }

    /// A layer as this pass sees it: with dropout where adapters have it.
    fn training_layer<'a>(&self, layer: &'a Layer, index: usize, seed: u64) -> Cow<'a, Layer> {
        match &self.lora {
            Some(lora) if lora.dropout > 0.0 => {
                let number = index as u64 + 1;
                let seed = seed.wrapping_add(number.wrapping_mul(0xa076_1d64_78bd_642f));
                Cow::Owned(layer.with_dropout(lora.dropout, seed))
            }
            _ => Cow::Borrowed(layer),
        }
    }

    fn graph(&self, layer: &Layer, window: Option<usize>, x: Tensor<3>, scene: &Scene) -> Graph {
        let (layer, parameters) = layer.autodiff(&self.config, self.lora.is_some());
        let input = x.autodiff().require_grad();
        let output = self.layer(&layer, window, input.clone(), scene);
        Graph {
            input,
            parameters,
            output,
        }
    }

    fn trainable_count(&self) -> usize {
        match self.lora {
            None => crate::names::entries(&self.config).len(),
            Some(_) => self.trainable().len(),
        }
    }
}

/// A matrix, without a second owner, becomes what `update` makes of it.
fn update_matrix(weight: &mut LinearWeight, update: impl FnOnce(Weight) -> Weight) {
    let LinearWeight::Dense(matrix) = weight else {
        unreachable!("of matrices only plain ones are trained");
    };
    *matrix = update(Weight::Matrix(take(matrix))).matrix();
}

/// The tensor, without a second owner; nothing is left in its place.
fn take<const D: usize>(tensor: &mut Tensor<D>) -> Tensor<D> {
    let nothing = Tensor::empty([0; D], &tensor.device());
    std::mem::replace(tensor, nothing)
}
