//! One optimizer step, and the loss of rows that are not trained on.
//!
//! Sums travel, the mean is taken once: the loss of a step is the sum over the supervised tokens of all its micro-batches,
//! divided by their number. How a step is cut into micro-batches therefore does not change what it does.

use burn::tensor::{Int, Tensor, TensorData};
use sysgen_core::hash::seed_from;
use sysgen_model::{Decoder, Pass};
use sysgen_ops::linear_cross_entropy;

use crate::batch::Batch;
use crate::distill::Distiller;
use crate::optim::{GradientSum, Optimizer, clip_coefficient};

/// A model in training.
pub struct Trainer {
    decoder: Option<Decoder>, // None only while a step has it
    /// AdamW and its moments.
    pub optimizer: Optimizer,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Keep only the layers' inputs and compute their insides again going back.
    pub gradient_checkpointing: bool,
    /// Start of the random numbers of adapters' dropout.
    pub seed: u64,
    /// The teacher whose probabilities are learnt from beside the data, if there is one.
    pub distiller: Option<Distiller>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over the supervised tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens seen, without padding.
    pub tokens: usize,
    /// Tokens learnt.
    pub supervised_tokens: usize,
    /// False when loss or gradient were not finite: then weights and moments are as before.
    pub applied: bool,
    /// Each row's mean loss, in the order of the micro-batches; none where a row learns nothing or its loss is not finite.
    pub row_losses: Vec<Option<f32>>,
}

impl Trainer {
    /// Starts or goes on training `decoder`, which lives on a plain (not autodiff) device.
    pub fn new(decoder: Decoder, optimizer: Optimizer, max_grad_norm: f64) -> Trainer {
        Trainer {
            decoder: Some(decoder),
            optimizer,
            max_grad_norm,
            gradient_checkpointing: false,
            seed: 0,
            distiller: None,
        }
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder {
        self.decoder
            .as_ref()
            .expect("only `step` takes the decoder, and it puts it back")
    }

    /// The trained model.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
            .expect("only `step` takes the decoder, and it puts it back")
    }

    /// One optimizer step over these micro-batches.
    pub fn step(&mut self, batches: &[Batch], learning_rate: f64) -> StepReport {
        let supervised_tokens: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let tokens = batches.iter().map(|batch| batch.token_count).sum();
        let decoder = self
            .decoder
            .take()
            .expect("only `step` takes the decoder, and it puts it back");
        let mut gradient = GradientSum::default();
        let mut losses = Vec::with_capacity(batches.len());
        let mut of_positions: Vec<Option<Tensor<1>>> = vec![None; batches.len()];
        let weight = 1.0 / supervised_tokens as f32;
        let learnt = batches.iter().enumerate();
        for (index, batch) in learnt.filter(|(_, batch)| !batch.targets.is_empty()) {
            let softcap = decoder.config.final_softcap;
            losses.push(decoder.backward(
                &batch.tokens,
                self.pass(index),
                |hidden, head| {
                    let losses = match &self.distiller {
                        None => position_losses(hidden, head, batch, weight, softcap),
                        Some(distiller) => distiller.losses(hidden, head, batch, weight, softcap),
                    };
                    of_positions[index] = Some(losses.clone().inner());
                    losses.sum()
                },
                |place, part| gradient.add(place, part),
            )); // read after all of them are on their way to the device
        }
        let loss: f64 = losses
            .into_iter()
            .map(|loss| f64::from(loss.into_scalar::<f32>()))
            .sum();
        let row_losses = batches
            .iter()
            .zip(of_positions)
            .flat_map(|(batch, losses)| row_losses(batch, losses, weight))
            .collect();
        let grad_norm = gradient.global_norm();
        let applied = supervised_tokens > 0 && loss.is_finite() && grad_norm.is_finite();
        self.decoder = Some(if applied {
            let scale = clip_coefficient(grad_norm, self.max_grad_norm);
            let (frozen, parameters) = decoder.split();
            let parameters = self
                .optimizer
                .update(parameters, gradient, scale, learning_rate);
            frozen.join(parameters)
        } else {
            decoder
        });
        StepReport {
            loss,
            grad_norm,
            tokens,
            supervised_tokens,
            applied,
            row_losses,
        }
    }
}

impl Trainer {
    /// How micro-batch `index` of the present step is run. What is dropped is a function of seed, update and micro-batch.
    fn pass(&self, index: usize) -> Pass {
        let parts = [self.seed, self.optimizer.updates, index as u64].map(|part| part.to_string());
        Pass {
            gradient_checkpointing: self.gradient_checkpointing,
            dropout_seed: seed_from(&["dropout", &parts[0], &parts[1], &parts[2]]),
        }
    }
}

/// The mean loss over the supervised tokens of these batches, by the same chunked loss as training; 0 tokens give NaN.
pub fn mean_loss(decoder: &Decoder, batches: &[Batch]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches.iter().filter(|batch| !batch.targets.is_empty()) {
        let hidden = decoder.hidden(&batch.tokens);
        let losses = position_losses(
            hidden,
            decoder.head(),
            batch,
            1.0,
            decoder.config.final_softcap,
        );
        let loss = losses.sum();
        sum += f64::from(loss.into_scalar::<f32>());
        count += batch.targets.len();
    }
    sum / count as f64
}

/// The mean loss of each row of `batch`, from those of its positions, which carry `weight`.
fn row_losses(batch: &Batch, losses: Option<Tensor<1>>, weight: f32) -> Vec<Option<f32>> {
    let losses = losses.and_then(|losses| losses.try_into_vec_as::<f32>().ok());
    let mut losses = losses.unwrap_or_default().into_iter();
    let rows = batch.row_targets.iter().map(|&count| {
        let sum: f64 = losses.by_ref().take(count).map(f64::from).sum();
        let mean = (sum / f64::from(weight) / count as f64) as f32;
        (count > 0 && mean.is_finite()).then_some(mean)
    });
    rows.collect()
}

/// The losses of the supervised positions times `weight`, `[supervised]`. Only they reach the head.
fn position_losses(
    hidden: Tensor<3>,
    head: Tensor<2>,
    batch: &Batch,
    weight: f32,
    softcap: Option<f32>,
) -> Tensor<1> {
    let supervised = select(hidden, &batch.predict_at);
    linear_cross_entropy(supervised, head, &batch.targets, weight, softcap)
}

/// The hidden states at some flat positions, `[positions, dim]`.
pub(crate) fn select(hidden: Tensor<3>, at: &[u32]) -> Tensor<2> {
    let [rows, time, dim] = hidden.dims();
    let at: Vec<i64> = at.iter().map(|&at| i64::from(at)).collect();
    let count = at.len();
    let at = Tensor::<1, Int>::from_data(TensorData::new(at, [count]), &hidden.device());
    hidden.reshape([rows * time, dim]).select(0, at)
}
