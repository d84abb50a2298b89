//! Training's forward and backward pass, one graph for each decoder layer. A layer's gradients are handed on as soon as they
//! exist, and with recomputation only the layers' inputs are kept: a layer is run once more when its gradients are due.
//! Both ways run the same operations on the same numbers.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor};

use crate::decoder::Decoder;
use crate::layer::{Scene, norm};
use crate::tokens::Tokens;
use crate::weights::{Layer, Weight};

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
    /// and returns one number. `gradients` gets the place of a parameter in [`Decoder::trainable`] and its gradient, the
    /// last layer's first. The decoder lives on a plain (not autodiff) device.
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
        tokens.assert_valid(self.config.vocab_size);
        let plain = self.scene(tokens);
        let tracked = plain.autodiff();

        let mut x = self.embed(&tokens.ids, [tokens.batch, tokens.time]);
        let layers = self.training_layers(pass.dropout_seed);
        let mut passed = Vec::with_capacity(layers.len());
        for (layer, window) in layers.iter().zip(&self.config.windows) {
            if pass.gradient_checkpointing {
                passed.push(Passed::Input(x.clone()));
                x = self.layer(layer, *window, x, &plain);
            } else {
                let graph = self.graph(layer, *window, x, &tracked);
                x = graph.output.clone().inner();
                passed.push(Passed::Graph(graph));
            }
        }

        let (value, mut gradient, mut table) = self.end(x, loss, &mut gradients);
        let layers = layers.iter().zip(&self.config.windows);
        let adapters = self.lora.is_some();
        let mut place = match adapters {
            true => self.trainable_count(),
            false => self.trainable_count() - 1 - usize::from(!self.config.tied),
        };
        for ((layer, window), passed) in layers.zip(passed).rev() {
            let graph = match passed {
                Passed::Graph(graph) => graph,
                Passed::Input(x) => self.graph(layer, *window, x, &tracked),
            };
            let mut all = sysgen_ops::backward(graph.output, gradient);
            gradient = graph
                .input
                .grad_remove(&mut all)
                .expect("the residual stream runs through every layer");
            place -= graph.parameters.len();
            for (index, parameter) in graph.parameters.iter().enumerate() {
                if let Some(gradient) = parameter.take_gradient(&mut all) {
                    gradients(place + index, gradient);
                }
            }
        }

        if adapters {
            return value;
        }
        if let Some(scale) = self.config.embedding_scale {
            gradient = gradient.mul_scalar(scale);
        }
        let [batch, time, dim] = gradient.dims();
        let rows = gradient.reshape([batch * time, dim]);
        let table = table
            .take()
            .unwrap_or_else(|| self.weights.embedding.zeros_like().cast(DType::F32));
        gradients(
            0,
            Weight::Matrix(sysgen_ops::add_rows(table, &tokens.ids, rows)),
        );
        value
    }

    /// Final norm and loss: its value, the gradient of the residual stream `x`, and of the embedding table if that is the
    /// head.
    fn end(
        &self,
        x: Tensor<3>,
        loss: impl FnOnce(Tensor<3>, Tensor<2>) -> Tensor<1>,
        gradients: &mut impl FnMut(usize, Weight),
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
        let count = self.trainable_count();
        let mut table = head.grad_remove(&mut all);
        if !self.config.tied
            && let Some(head) = table.take()
        {
            gradients(count - 1, Weight::Matrix(head));
        }
        if let Some(gradient) = weight.take_gradient(&mut all) {
            gradients(count - 1 - usize::from(!self.config.tied), gradient);
        }
        let gradient = x
            .grad_remove(&mut all)
            .expect("the loss depends on the hidden states");
        (value.inner(), gradient, table)
    }

    /// The layers as this pass sees them: with dropout where adapters have it.
    fn training_layers(&self, seed: u64) -> Cow<'_, [Layer]> {
        match &self.lora {
            Some(lora) if lora.dropout > 0.0 => {
                let layers = (1u64..).zip(&self.weights.layers);
                layers
                    .map(|(number, layer)| {
                        let seed = seed.wrapping_add(number.wrapping_mul(0xa076_1d64_78bd_642f));
                        layer.with_dropout(lora.dropout, seed)
                    })
                    .collect()
            }
            _ => Cow::Borrowed(&self.weights.layers),
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
