//! One optimizer step, and the loss of rows that are not trained on.
//!
//! Sums travel, the mean is taken once: the loss of a step is the sum over the supervised tokens of all its micro-batches,
//! divided by their number. How a step is cut into micro-batches therefore does not change what it does, nor on which
//! devices they are computed (see [`crate::workers`]).

use std::cell::Cell;

use burn::tensor::{Int, Tensor, TensorData};
use sysgen_core::hash::seed_from;
use sysgen_model::{Decoder, Device, Pass, Weight};
use sysgen_ops::linear_cross_entropy;

use crate::batch::Batch;
use crate::distill::Distiller;
use crate::optim::{GradientSum, Optimizer, clip_coefficient, square};
use crate::workers::Worker;

/// A model in training.
pub struct Trainer {
    decoder: Option<Decoder>, // None only while a step has it
    /// AdamW and its moments.
    pub optimizer: Optimizer,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Keep only the layers' inputs and compute their insides again going back.
    pub gradient_checkpointing: bool,
    /// Update a layer's parameters while going back, as soon as their gradients are there, and keep none of these.
    pub optimizer_in_backward: bool,
    /// Start of the random numbers of adapters' dropout.
    pub seed: u64,
    /// The teacher whose probabilities are learnt from beside the data, if there is one.
    pub distiller: Option<Distiller>,
    /// Devices that compute beside the decoder's own.
    workers: Vec<Worker>,
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
    /// True when a gradient was not finite after others had been used (`optimizer_in_backward`): then the model is that of
    /// no step any more.
    pub partly_applied: bool,
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
            optimizer_in_backward: false,
            seed: 0,
            distiller: None,
            workers: Vec::new(),
        }
    }

    /// Has micro-batches computed on these devices, the first of which is the decoder's own; the others get a copy of model
    /// and teacher. Asked for once, when the teacher is there.
    pub fn use_devices(&mut self, devices: &[Device]) {
        let start = |(number, device): (usize, &Device)| {
            Worker::start(number, self.decoder(), self.distiller.as_ref(), device)
        };
        self.workers = devices.iter().enumerate().skip(1).map(start).collect();
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

    /// [`mean_loss`] of the model as it is, on all devices. The sums are added in the order of the batches, whoever computed
    /// them, so that it is the same number to the bit.
    pub fn mean_loss(&mut self, batches: &[Batch]) -> f64 {
        let decoder = (self.decoder.as_ref()).expect("only `step` takes the decoder");
        if self.workers.is_empty() {
            return mean_loss(decoder, batches);
        }
        let learning: Vec<&Batch> = learning(batches).collect();
        let trained = decoder.trainable();
        (self.workers.iter_mut()).for_each(|worker| worker.take_weights(&trained));
        drop(trained);
        let mut sums = Vec::with_capacity(learning.len());
        for round in learning.chunks(1 + self.workers.len()) {
            for (worker, batch) in self.workers.iter_mut().zip(&round[1..]) {
                worker.measure(batch);
            }
            let first = measured(decoder, round[0]);
            let others = self.workers.iter_mut().zip(&round[1..]);
            let losses: Vec<Losses> = others.map(|(worker, _)| worker.measured()).collect();
            sums.push(sum(&first.read()));
            sums.extend(losses.into_iter().map(|losses| sum(&losses.read())));
        }
        self.workers.iter_mut().for_each(Worker::release);
        mean_of(sums, batches)
    }

    /// One optimizer step over these micro-batches.
    ///
    /// # Panics
    /// With `optimizer_in_backward`, of several micro-batches or with a norm to clip to.
    pub fn step(&mut self, batches: &[Batch], learning_rate: f64) -> StepReport {
        let mut report = StepReport {
            loss: 0.0,
            grad_norm: 0.0,
            tokens: batches.iter().map(|batch| batch.token_count).sum(),
            supervised_tokens: batches.iter().map(|batch| batch.targets.len()).sum(),
            applied: false,
            partly_applied: false,
            row_losses: Vec::new(),
        };
        match self.optimizer_in_backward {
            true => self.step_in_backward(batches, learning_rate, &mut report),
            false => self.step_after_backward(batches, learning_rate, &mut report),
        }
        report
    }

    fn step_after_backward(
        &mut self,
        batches: &[Batch],
        learning_rate: f64,
        report: &mut StepReport,
    ) {
        let decoder = self
            .decoder
            .take()
            .expect("only `step` takes the decoder, and it puts it back");
        let mut gradient = GradientSum::default();
        let weight = 1.0 / report.supervised_tokens as f32;
        let mut losses: Vec<Option<Losses>> = batches.iter().map(|_| None).collect();
        let learnt: Vec<usize> = (0..batches.len())
            .filter(|&index| !batches[index].targets.is_empty())
            .collect();
        if !self.workers.is_empty() {
            let trained = decoder.trainable();
            (self.workers.iter_mut()).for_each(|worker| worker.take_weights(&trained));
        }
        // Each device has one micro-batch at a time, and the gradients are added in the order of the micro-batches.
        for round in learnt.chunks(1 + self.workers.len()) {
            let passes: Vec<Pass> = round.iter().map(|&index| self.pass(index)).collect();
            let others = || round.iter().zip(&passes).skip(1);
            for (worker, (&index, &pass)) in self.workers.iter_mut().zip(others()) {
                worker.compute(&batches[index], pass, weight);
            }
            losses[round[0]] = Some(micro_batch(
                &decoder,
                self.distiller.as_ref(),
                &batches[round[0]],
                passes[0],
                weight,
                |place, part| gradient.add(place, part),
            ));
            for (worker, (&index, _)) in self.workers.iter_mut().zip(others()) {
                let device = decoder.device();
                losses[index] =
                    Some(worker.finish(&device, |place, part| gradient.add(place, part)));
            }
        }
        self.workers.iter_mut().for_each(Worker::release);
        // Read after all of them are on their way to the devices.
        let losses: Vec<Vec<f32>> = losses
            .into_iter()
            .map(|losses| losses.map_or(Vec::new(), Losses::read))
            .collect();
        report.loss = losses.iter().map(|losses| sum(losses)).sum();
        report.row_losses = batches
            .iter()
            .zip(&losses)
            .flat_map(|(batch, losses)| row_losses(batch, losses, weight))
            .collect();
        report.grad_norm = gradient.global_norm();
        report.applied =
            report.supervised_tokens > 0 && report.loss.is_finite() && report.grad_norm.is_finite();
        self.decoder = Some(if report.applied {
            let scale = clip_coefficient(report.grad_norm, self.max_grad_norm);
            let (frozen, parameters) = decoder.split();
            let parameters = self
                .optimizer
                .update(parameters, gradient, scale, learning_rate);
            frozen.join(parameters)
        } else {
            decoder
        });
    }

    /// The same step with every parameter updated as soon as its gradient is whole. What can be known only of all
    /// gradients together is known too late: a norm to clip to, and a gradient that is not finite behind some that were.
    fn step_in_backward(&mut self, batches: &[Batch], learning_rate: f64, report: &mut StepReport) {
        assert!(
            batches.len() == 1 && self.max_grad_norm == 0.0,
            "the optimizer in backward takes one micro-batch and does not clip"
        );
        let batch = &batches[0];
        let weight = 1.0 / report.supervised_tokens as f32;
        if batch.targets.is_empty() {
            report.row_losses = row_losses(batch, &[], weight);
            return;
        }
        let mut decoder = self
            .decoder
            .take()
            .expect("only `step` takes the decoder, and it puts it back");
        let softcap = decoder.config.final_softcap;
        let pass = self.pass(0);
        let (optimizer, distiller) = (&mut self.optimizer, self.distiller.as_ref());
        // Known before the first gradient is.
        let mut of_positions = Vec::new();
        let loss = Cell::new(0.0);
        let mut squares: Vec<f64> = vec![0.0; optimizer.states.len()];
        let (mut finite, mut updated) = (true, false);
        decoder.backward_and_update(
            &batch.tokens,
            pass,
            |hidden, head| {
                let losses = learnt_losses(distiller, hidden, head, batch, weight, softcap);
                of_positions = Losses(losses.clone().inner()).read();
                loss.set(sum(&of_positions));
                losses.sum()
            },
            |place, parameter, gradient| {
                squares[place] = square(&gradient);
                finite &= squares[place].is_finite() && loss.get().is_finite();
                if !finite {
                    return parameter;
                }
                if !updated {
                    optimizer.updates += 1;
                    updated = true;
                }
                optimizer.apply(place, parameter, gradient, 1.0, learning_rate)
            },
        );
        self.decoder = Some(decoder);
        report.loss = loss.get();
        report.row_losses = row_losses(batch, &of_positions, weight);
        report.grad_norm = squares.iter().sum::<f64>().sqrt();
        report.applied = finite && updated;
        report.partly_applied = !finite && updated;
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

/// The losses of a micro-batch's supervised positions, still on its device.
pub(crate) struct Losses(Tensor<1>);

impl Losses {
    /// Brings them to the host.
    fn read(self) -> Vec<f32> {
        let losses = self.0.try_into_vec_as::<f32>();
        losses.expect("losses are f32")
    }
}

/// Summed in f64, so that the sum does not feel how the positions were cut into micro-batches.
fn sum(losses: &[f32]) -> f64 {
    losses.iter().copied().map(f64::from).sum()
}

/// Runs one micro-batch forward and back; `gradients` gets the place and the gradient of each trained parameter.
pub(crate) fn micro_batch(
    decoder: &Decoder,
    distiller: Option<&Distiller>,
    batch: &Batch,
    pass: Pass,
    weight: f32,
    gradients: impl FnMut(usize, Weight),
) -> Losses {
    let softcap = decoder.config.final_softcap;
    let mut of_positions = None;
    decoder.backward(
        &batch.tokens,
        pass,
        |hidden, head| {
            let losses = learnt_losses(distiller, hidden, head, batch, weight, softcap);
            of_positions = Some(losses.clone().inner());
            losses.sum()
        },
        gradients,
    );
    Losses(of_positions.expect("the backward pass asks for the losses"))
}

/// The losses of a micro-batch's supervised positions, without a gradient: cross-entropy, whatever is learnt from besides.
pub(crate) fn measured(decoder: &Decoder, batch: &Batch) -> Losses {
    let softcap = decoder.config.final_softcap;
    let hidden = decoder.hidden(&batch.tokens);
    Losses(position_losses(hidden, decoder.head(), batch, 1.0, softcap))
}

/// The mean loss over the supervised tokens of these batches, by the same chunked loss as training; 0 tokens give NaN.
pub fn mean_loss(decoder: &Decoder, batches: &[Batch]) -> f64 {
    let losses = learning(batches).map(|batch| sum(&measured(decoder, batch).read()));
    mean_of(losses.collect(), batches)
}

/// The batches that have something to learn.
fn learning(batches: &[Batch]) -> impl Iterator<Item = &Batch> {
    batches.iter().filter(|batch| !batch.targets.is_empty())
}

/// From the sums of the learning batches, in their order.
fn mean_of(sums: Vec<f64>, batches: &[Batch]) -> f64 {
    let count: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    sums.iter().sum::<f64>() / count as f64
}

/// The mean loss of each row of `batch`, from those of its positions, which carry `weight`.
fn row_losses(batch: &Batch, mut losses: &[f32], weight: f32) -> Vec<Option<f32>> {
    let rows = batch.row_targets.iter().map(|&count| {
        let (row, rest) = losses.split_at(count);
        losses = rest;
        let mean = (sum(row) / f64::from(weight) / count as f64) as f32;
        (count > 0 && mean.is_finite()).then_some(mean)
    });
    rows.collect()
}

/// What is learnt at the supervised positions, times `weight`, `[supervised]`.
fn learnt_losses(
    distiller: Option<&Distiller>,
    hidden: Tensor<3>,
    head: Tensor<2>,
    batch: &Batch,
    weight: f32,
    softcap: Option<f32>,
) -> Tensor<1> {
    match distiller {
        None => position_losses(hidden, head, batch, weight, softcap),
        Some(distiller) => distiller.losses(hidden, head, batch, weight, softcap),
    }
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
