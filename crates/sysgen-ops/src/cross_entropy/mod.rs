//! Head projection and cross-entropy in one operation, so that the logits of a batch never exist at once.

mod cpu;
#[cfg(feature = "cube")]
mod cuda;
#[cfg(feature = "cube")]
mod kernels;
mod rows;

use burn::tensor::{Int, Tensor, TensorData, activation};

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

/// The loss `logsumexp(l) − l[target]` of each position times `weight`, where `l = hidden · headᵀ`, soft-capped as
/// `c · tanh(l / c)` if asked.
///
/// The head may be in another format than the hidden states, which say what is multiplied on a device (on the CPU f32). Losses
/// and the head's gradient are f32.
///
/// Callers pass supervised positions only and sum the losses. In a graph the gradient of that sum is made at once, while
/// the logits exist; `weight` is there so that it need not be scaled afterwards.
///
/// # Shapes
/// * `hidden`: `[positions, dim]`, `head`: `[vocab, dim]`, `targets`: `positions` ids below `vocab`
/// * output: `[positions]`
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[u32],
    weight: f32,
    softcap: Option<f32>,
) -> Tensor<1> {
    let [positions, dim] = hidden.dims();
    let [vocab, head_dim] = head.dims();
    assert_eq!(
        dim, head_dim,
        "hidden [positions, dim] and head [vocab, dim]"
    );
    assert_eq!(positions, targets.len(), "one target for each position");
    assert!(
        targets.iter().all(|&id| (id as usize) < vocab),
        "a target id is outside the vocabulary of {vocab}"
    );
    #[cfg(feature = "cube")]
    if device::serves(&hidden) {
        let targets = targets.to_vec();
        let op = cuda::LinearCrossEntropy { targets, softcap };
        return device::apply(op, [hidden.into(), head.into()]).mul_scalar(weight);
    }
    if !fused::serves(&hidden) {
        return reference(hidden, head, targets, weight, softcap);
    }
    let op = cpu::LinearCrossEntropy {
        targets: targets.to_vec(),
        dim,
        vocab,
        weight,
        softcap,
        bf16: fused::in_bf16(&head),
    };
    fused::apply(op, [hidden.into(), head.into()], [positions])
}

/// [`linear_cross_entropy`] in plain Burn tensors; holds all logits.
pub fn reference(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[u32],
    weight: f32,
    softcap: Option<f32>,
) -> Tensor<1> {
    let [positions, _] = hidden.dims();
    assert_eq!(positions, targets.len(), "one target for each position");
    let head = head.cast(hidden.dtype());
    let mut logits = hidden.matmul(head.transpose());
    if let Some(cap) = softcap {
        logits = logits.div_scalar(cap).tanh().mul_scalar(cap);
    }
    let targets: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
    let targets =
        Tensor::<2, Int>::from_data(TensorData::new(targets, [positions, 1]), &logits.device());
    activation::log_softmax(logits, 1)
        .gather(1, targets)
        .mul_scalar(-weight)
        .reshape([positions])
}
