//! AdamW with its moments in eight bits (Dettmers et al., arXiv 2110.02861; block size and data types of bitsandbytes):
//! every 256 numbers share a scale, the first moment has a sign, the second has not. A moment is whole only while its block
//! is updated. On the host, so on the CPU.

use burn::tensor::{DType, Tensor, bf16};
use rayon::prelude::*;

use super::AdamW;
use super::rounding::Kept;
use crate::dynamic::{Code, SIGNED, UNSIGNED};
use crate::fused;

/// Numbers that share a scale.
const BLOCK: usize = 256;

/// Numbers as codes, and the scale of every block of 256.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// One code each.
    pub codes: Vec<u8>,
    /// The largest magnitude of every block.
    pub scales: Vec<f32>,
}

/// A parameter's running averages in eight bits; zeros before the first step.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments8 {
    /// Average of the gradient.
    pub first: Quantised,
    /// Average of the squared gradient.
    pub second: Quantised,
}

impl Moments8 {
    /// Zeros for `count` numbers.
    pub fn zeros(count: usize) -> Moments8 {
        let zeros = |code: &Code| Quantised {
            codes: vec![code.nearest(0.0); count],
            scales: vec![0.0; count.div_ceil(BLOCK)],
        };
        Moments8 {
            first: zeros(&SIGNED),
            second: zeros(&UNSIGNED),
        }
    }
}

/// Bytes of both moments of a parameter of `count` numbers.
pub fn moments8_bytes(count: usize) -> usize {
    2 * (count + 4 * count.div_ceil(BLOCK))
}

/// One step as [`adamw_step`](crate::adamw_step), with the moments rounded after it.
///
/// # Panics
/// The parameter is not on the CPU in f32 or bf16, or has another number of values than the moments.
pub fn adamw_8bit_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: &mut Moments8,
    settings: &AdamW,
    step: u64,
) -> Tensor<D> {
    assert!(
        fused::keeps(&parameter),
        "adamw_8bit_step: 8-bit moments are kept on the CPU, beside weights in f32 or bf16"
    );
    let gradient = fused::values(gradient);
    let mut parameter = fused::writable(parameter);
    let g = fused::slice(&gradient);
    match parameter.dtype() {
        DType::BF16 => update::<bf16>(parameter.storage_mut(), g, moments, settings, step),
        _ => update::<f32>(parameter.storage_mut(), g, moments, settings, step),
    }
    fused::from_flex(parameter)
}

fn update<P: Kept>(p: &mut [P], g: &[f32], moments: &mut Moments8, settings: &AdamW, step: u64) {
    assert_eq!(
        p.len(),
        moments.first.codes.len(),
        "adamw_8bit_step: moments for every number"
    );
    let (beta1, beta2) = (settings.beta1 as f32, settings.beta2 as f32);
    let (new1, new2) = ((1.0 - settings.beta1) as f32, (1.0 - settings.beta2) as f32);
    let correction1 = 1.0 - settings.beta1.powf(step as f64);
    let root_correction = (1.0 - settings.beta2.powf(step as f64)).sqrt() as f32;
    let keep = (1.0 - settings.learning_rate * settings.weight_decay) as f32;
    let size = (settings.learning_rate / correction1) as f32;
    let epsilon = settings.epsilon as f32;
    let Moments8 { first, second } = moments;
    let firsts = first.codes.par_chunks_mut(BLOCK).zip(&mut first.scales);
    let seconds = second.codes.par_chunks_mut(BLOCK).zip(&mut second.scales);
    p.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(firsts.zip(seconds))
        .with_min_len(16)
        .enumerate()
        .for_each(|(block, ((p, g), ((codes1, scale1), (codes2, scale2))))| {
            let (mut m, mut v, mut wide) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            let wide = &mut wide[..p.len()];
            P::widen(p, wide);
            for (i, (p, &g)) in wide.iter_mut().zip(g).enumerate() {
                m[i] = beta1 * (SIGNED.value(codes1[i]) * *scale1) + new1 * g;
                v[i] = beta2 * (UNSIGNED.value(codes2[i]) * *scale2) + new2 * g * g;
                let root = v[i].sqrt() / root_correction + epsilon;
                *p = *p * keep - size * (m[i] / root);
            }
            P::narrow(wide, settings.rounding_seed, block * BLOCK, p);
            *scale1 = SIGNED.quantise(&m[..g.len()], codes1);
            *scale2 = UNSIGNED.quantise(&v[..g.len()], codes2);
        });
}
