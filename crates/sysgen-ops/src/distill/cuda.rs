//! `linear_distillation` on a device: some positions at a time go through plain tensor operations, forward and once more going
//! back, so that the logits of a batch never exist. Logits are f32 in a model of any dtype.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::reference::{Theirs, losses};
use super::{Distillation, Teacher, distilled_logit_bytes};
use crate::device::{Kernels, plain, primitive};
use crate::linear::linear_to;

/// Positions of a chunk, at most.
const MOST: usize = 1024;

/// Inputs are hidden and head; saves both.
#[derive(Debug)]
pub(super) struct LinearDistillation {
    pub(super) targets: Vec<u32>,
    pub(super) teacher: Teacher,
    pub(super) settings: Distillation,
}

impl Kernels for LinearDistillation {
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [hidden, head]: [Tensor<2>; 2] = inputs
            .into_iter()
            .map(plain)
            .collect::<Vec<_>>()
            .try_into()
            .expect("two inputs");
        let chunks = self.chunks(&head, false);
        let losses: Vec<Tensor<1>> = chunks
            .iter()
            .map(|chunk| self.losses(rows(&hidden, chunk), head.clone(), chunk))
            .collect();
        let losses = match losses.is_empty() {
            true => Tensor::zeros([0], (&hidden.device(), DType::F32)),
            false => Tensor::cat(losses, 0),
        };
        let saved = match wanted {
            [false, false] => vec![],
            _ => vec![primitive(hidden), primitive(head)],
        };
        (primitive(losses), saved)
    }

    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let [hidden, head]: [Tensor<2>; 2] = saved
            .into_iter()
            .map(plain)
            .collect::<Vec<_>>()
            .try_into()
            .expect("two saved tensors");
        let gradient: Tensor<1> = plain(gradient);
        let mut d_hidden = Vec::new();
        let mut d_head: Option<Tensor<2>> = None;
        for chunk in self.chunks(&head, wanted[1]) {
            let graph = |tensor: Tensor<2>, wanted: bool| match wanted {
                true => tensor.autodiff().require_grad(),
                false => tensor.autodiff(),
            };
            let hidden = graph(rows(&hidden, &chunk), wanted[0]);
            let head = graph(head.clone(), wanted[1]);
            let losses = self.losses(hidden.clone(), head.clone(), &chunk);
            let mut gradients = crate::backward(losses, gradient.clone().slice([chunk]));
            d_hidden.extend(hidden.grad_remove(&mut gradients));
            if let Some(part) = head.grad_remove(&mut gradients) {
                d_head = Some(match d_head {
                    None => part,
                    Some(sum) => sum + part,
                });
            }
        }
        let zeros = |like: &Tensor<2>, dtype| Tensor::zeros(like.dims(), (&like.device(), dtype));
        let d_hidden = wanted[0].then(|| match d_hidden.is_empty() {
            true => zeros(&hidden, hidden.dtype()),
            false => Tensor::cat(d_hidden, 0),
        });
        let d_head = wanted[1].then(|| d_head.unwrap_or_else(|| zeros(&head, DType::F32)));
        vec![d_hidden.map(primitive), d_head.map(primitive)]
    }
}

impl LinearDistillation {
    /// The positions whose logits exist together, no span divided. The head `learns` where its gradient is made of them.
    fn chunks(&self, head: &Tensor<2>, learns: bool) -> Vec<Range<usize>> {
        let positions = self.targets.len();
        let theirs = match &self.teacher {
            Teacher::Hidden { head, .. } | Teacher::Spans { head, .. } => head.dims()[0],
            Teacher::Top(_) => 0,
        };
        let bytes_of_a_position = head.dims()[0].max(theirs) * DType::F32.size();
        let bytes = distilled_logit_bytes(head.shape().num_elements(), learns);
        let size = (bytes / bytes_of_a_position).clamp(1, MOST);
        let (mut chunks, mut from) = (Vec::new(), 0);
        while from < positions {
            let end = self.between_spans(from, positions.min(from + size));
            chunks.push(from..end);
            from = end;
        }
        chunks
    }

    /// `end`, or where the span around it begins; behind that span if it begins at `from`.
    fn between_spans(&self, from: usize, end: usize) -> usize {
        let Teacher::Spans { spans, .. } = &self.teacher else {
            return end;
        };
        let around = spans.partition_point(|(ours, _)| ours.end <= end);
        match spans.get(around) {
            Some((ours, _)) if ours.start >= end => end,
            Some((ours, _)) if ours.start > from => ours.start,
            Some((ours, _)) => ours.end,
            None => end,
        }
    }

    /// The losses of a chunk, from its hidden states; in the graph of `hidden` and `head`, if they are in one.
    fn losses(&self, hidden: Tensor<2>, head: Tensor<2>, chunk: &Range<usize>) -> Tensor<1> {
        let theirs = match &self.teacher {
            Teacher::Hidden {
                hidden: theirs,
                head,
                softcap,
            } => {
                let theirs = rows(&theirs.clone().inner(), chunk);
                let logits = linear_to(theirs, head.clone().inner(), None, DType::F32);
                Theirs::Logits(logits, *softcap)
            }
            Teacher::Spans {
                hidden: theirs,
                head,
                softcap,
                targets,
                spans,
            } => {
                let first = spans.partition_point(|(ours, _)| ours.start < chunk.start);
                let end = spans.partition_point(|(ours, _)| ours.end <= chunk.end);
                match &spans[first..end] {
                    [] => Theirs::Nothing,
                    spans => {
                        let all = spans[0].1.start..spans[spans.len() - 1].1.end;
                        let moved = |range: &Range<usize>, by| range.start - by..range.end - by;
                        let theirs = rows(&theirs.clone().inner(), &all);
                        Theirs::Spans {
                            logits: linear_to(theirs, head.clone().inner(), None, DType::F32),
                            softcap: *softcap,
                            targets: targets[all.clone()].to_vec(),
                            spans: spans
                                .iter()
                                .map(|(ours, theirs)| {
                                    (moved(ours, chunk.start), moved(theirs, all.start))
                                })
                                .collect(),
                        }
                    }
                }
            }
            Teacher::Top(top) => {
                let words = chunk.start * top.k..chunk.end * top.k;
                let ids = top.ids[words.clone()].to_vec();
                Theirs::Top(ids, top.log_probabilities[words].to_vec())
            }
        };
        let logits = linear_to(hidden, head, None, DType::F32);
        let targets = &self.targets[chunk.clone()];
        losses(logits, targets, theirs, self.settings)
    }
}

fn rows(tensor: &Tensor<2>, chunk: &Range<usize>) -> Tensor<2> {
    tensor.clone().slice([chunk.clone()])
}
