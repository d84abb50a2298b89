//! Data parallel: further devices that compute micro-batches of a step or of an evaluation, each on a thread of its own with
//! its own copy of the model.
//!
//! Only what is trained travels, to the workers before a step and as gradients back. The gradients are added in the order of
//! the micro-batches, whoever computed them, so how many devices there are changes no bit of what is learnt on the
//! CPU; a GPU repeats a gradient to rounding.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use sysgen_model::{Decoder, Device, Frozen, Parameter, Pass, Weight};

use crate::batch::Batch;
use crate::distill::Distiller;
use crate::trainer::{Losses, measured, micro_batch};

/// What a worker is told.
enum Order {
    /// The weights of what follows, on the worker's device.
    Weights(Vec<Parameter>),
    /// A micro-batch, how it is run, and what each of its losses is multiplied with.
    MicroBatch(Batch, Pass, f32),
    /// A micro-batch whose loss is asked for, without a gradient.
    Measure(Batch),
    /// The step or evaluation is over: nobody else holds on to its weights.
    Release,
}

/// What a worker says.
enum Reply {
    /// The gradient of the parameter at a place.
    Gradient(usize, Weight),
    /// The micro-batch is done.
    Losses(Losses),
    /// The weights are given up.
    Released,
}

/// A device beside the trainer's own.
pub(crate) struct Worker {
    device: Device,
    orders: Sender<Order>,
    replies: Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Copies `decoder` and what it is taught by onto `device`, and waits for orders there.
    pub(crate) fn start(
        number: usize,
        decoder: &Decoder,
        distiller: Option<&Distiller>,
        device: &Device,
    ) -> Worker {
        let (orders, its_orders) = channel();
        let (its_replies, replies) = channel();
        let frozen = decoder.to_device(device).split().0;
        let distiller = distiller.map(|distiller| distiller.to_device(device));
        let work = move || work(frozen, distiller.as_ref(), &its_orders, &its_replies);
        let thread = Builder::new().name(format!("worker {number}"));
        let thread = thread
            .spawn(work)
            .expect("the system can start one thread for each device");
        Worker {
            device: device.clone(),
            orders,
            replies,
            thread: Some(thread),
        }
    }

    /// Hands over the weights of a step or of an evaluation.
    pub(crate) fn take_weights(&mut self, parameters: &[Parameter]) {
        let parameters = parameters
            .iter()
            .map(|Parameter { name, tensor }| Parameter {
                name: name.clone(),
                tensor: tensor.clone().to_device(&self.device),
            });
        self.tell(Order::Weights(parameters.collect()));
    }

    /// Has a micro-batch computed.
    pub(crate) fn compute(&mut self, batch: &Batch, pass: Pass, weight: f32) {
        self.tell(Order::MicroBatch(batch.clone(), pass, weight));
    }

    /// Has the losses of a micro-batch computed.
    pub(crate) fn measure(&mut self, batch: &Batch) {
        self.tell(Order::Measure(batch.clone()));
    }

    /// Waits for the losses that were asked for.
    pub(crate) fn measured(&mut self) -> Losses {
        match self.hear() {
            Reply::Losses(losses) => losses,
            _ => unreachable!("the worker was asked for losses alone"),
        }
    }

    /// Waits for the micro-batch and hands on its gradients, on `device`.
    pub(crate) fn finish(
        &mut self,
        device: &Device,
        mut gradients: impl FnMut(usize, Weight),
    ) -> Losses {
        loop {
            match self.hear() {
                Reply::Gradient(place, gradient) => gradients(place, gradient.to_device(device)),
                Reply::Losses(losses) => return losses,
                Reply::Released => unreachable!("the worker was not asked to give up its weights"),
            }
        }
    }

    /// Waits until the weights are given up, so that they can be updated in place.
    pub(crate) fn release(&mut self) {
        self.tell(Order::Release);
        while !matches!(self.hear(), Reply::Released) {}
    }

    fn tell(&mut self, order: Order) {
        if self.orders.send(order).is_err() {
            self.fail();
        }
    }

    fn hear(&mut self) -> Reply {
        match self.replies.recv() {
            Ok(reply) => reply,
            Err(_) => self.fail(),
        }
    }

    /// A worker's panic is the trainer's: that its device is full, for example.
    fn fail(&mut self) -> ! {
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Err(panic)) => resume_unwind(panic),
            _ => unreachable!("a worker ends only when the trainer is gone, or by a panic"),
        }
    }
}

fn work(
    mut frozen: Frozen,
    distiller: Option<&Distiller>,
    orders: &Receiver<Order>,
    replies: &Sender<Reply>,
) {
    // Where nobody listens any more the trainer is gone, and the next order will not come either.
    let say = |reply: Reply| drop(replies.send(reply));
    while let Ok(Order::Weights(parameters)) = orders.recv() {
        let decoder = frozen.join(parameters);
        loop {
            let losses = match orders.recv() {
                Ok(Order::MicroBatch(batch, pass, weight)) => {
                    let gradient = |place, gradient| say(Reply::Gradient(place, gradient));
                    micro_batch(&decoder, distiller, &batch, pass, weight, gradient)
                }
                Ok(Order::Measure(batch)) => measured(&decoder, &batch),
                Ok(Order::Release | Order::Weights(_)) | Err(_) => break,
            };
            say(Reply::Losses(losses));
        }
        frozen = decoder.split().0;
        say(Reply::Released);
    }
}
