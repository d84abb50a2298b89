//! `linear_cross_entropy` on the CPU: logits exist for one chunk of positions at a time, and once more going back.

use rayon::prelude::*;

use crate::fused::{Fused, Pass};
use crate::linear::cpu::{add_outer, project, times_weight};
use crate::simd::{exp, max, sum, tanh, vectorised};

/// Logits held at a time; 4 MB stay near the cores.
const CHUNK_LOGITS: usize = 1 << 20;

/// The fused operation; inputs are hidden and head; saves the log-sum-exp of every position.
#[derive(Debug)]
pub(super) struct LinearCrossEntropy {
    pub(super) targets: Vec<u32>,
    pub(super) dim: usize,
    pub(super) vocab: usize,
    pub(super) softcap: Option<f32>,
}

impl LinearCrossEntropy {
    fn positions_per_chunk(&self) -> usize {
        (CHUNK_LOGITS / self.vocab).clamp(16, 1024)
    }
}

impl Fused for LinearCrossEntropy {
    fn forward(&self, inputs: &[&[f32]]) -> (Vec<f32>, Vec<f32>) {
        let (hidden, head) = (inputs[0], inputs[1]);
        let mut losses = vec![0.0; self.targets.len()];
        let mut sums = vec![0.0; self.targets.len()];
        let chunk = self.positions_per_chunk();
        let outputs = losses.chunks_mut(chunk).zip(sums.chunks_mut(chunk));
        let inputs = hidden
            .chunks(chunk * self.dim)
            .zip(self.targets.chunks(chunk));
        for ((losses, sums), (hidden, targets)) in outputs.zip(inputs) {
            let mut logits = project(hidden, head, None, self.dim, self.vocab);
            logits
                .par_chunks_mut(self.vocab)
                .zip(losses)
                .zip(sums)
                .zip(targets)
                .with_min_len(8)
                .for_each(|(((logits, loss), log_sum), &target)| {
                    (*loss, *log_sum) = loss_of(logits, target as usize, self.softcap);
                });
        }
        (losses, sums)
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        // dl = (softmax(l) − onehot(target)) · g, through the cap's slope 1 − (l / c)².
        let (hidden, head) = (pass.inputs[0], pass.inputs[1]);
        let mut d_hidden = Vec::with_capacity(if pass.wanted[0] { hidden.len() } else { 0 });
        let mut d_head = vec![0.0; if pass.wanted[1] { head.len() } else { 0 }];
        let chunk = self.positions_per_chunk();
        let outer = pass.gradient.chunks(chunk).zip(pass.saved.chunks(chunk));
        let inputs = hidden
            .chunks(chunk * self.dim)
            .zip(self.targets.chunks(chunk));
        for ((gradient, sums), (hidden, targets)) in outer.zip(inputs) {
            let mut logits = project(hidden, head, None, self.dim, self.vocab);
            logits
                .par_chunks_mut(self.vocab)
                .zip(gradient)
                .zip(sums)
                .zip(targets)
                .with_min_len(8)
                .for_each(|(((logits, &gradient), &log_sum), &target)| {
                    gradient_of(logits, target as usize, self.softcap, gradient, log_sum);
                });
            if pass.wanted[0] {
                d_hidden.extend(times_weight(&logits, head, self.dim, self.vocab));
            }
            if pass.wanted[1] {
                add_outer(&logits, hidden, self.vocab, self.dim, &mut d_head);
            }
        }
        vec![d_hidden, d_head]
    }
}

vectorised! {
    /// Loss and log-sum-exp of one position; overwrites its logits.
    fn loss_of(logits: &mut [f32], target: usize, softcap: Option<f32>) -> (f32, f32) {
        cap(logits, softcap);
        let target = logits[target];
        let max = max(logits);
        for logit in logits.iter_mut() {
            *logit = exp(*logit - max);
        }
        let log_sum = max + sum(logits).ln();
        (log_sum - target, log_sum)
    }

    /// Turns one position's logits into their gradient.
    fn gradient_of(
        logits: &mut [f32],
        target: usize,
        softcap: Option<f32>,
        gradient: f32,
        log_sum: f32,
    ) {
        cap(logits, softcap);
        let at_target = logits[target];
        match softcap {
            None => {
                for logit in logits.iter_mut() {
                    *logit = exp(*logit - log_sum) * gradient;
                }
                logits[target] -= gradient;
            }
            Some(cap) => {
                let slope = |l: f32| 1.0 - (l / cap) * (l / cap);
                for logit in logits.iter_mut() {
                    let l = *logit;
                    *logit = exp(l - log_sum) * gradient * slope(l);
                }
                logits[target] -= gradient * slope(at_target);
            }
        }
    }
}

#[inline(always)]
fn cap(logits: &mut [f32], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        for logit in logits {
            *logit = cap * tanh(*logit / cap);
        }
    }
}
