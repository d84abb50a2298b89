//! AdamW on parameters that are kept in bf16: every step is right on average, and the same bits come again.
#![allow(clippy::unwrap_used)]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{numbers, tensor};
use sysgen_ops::{AdamW, Moments, Moments8, adamw_8bit_step, adamw_step};

const SMALL_STEPS: AdamW = AdamW {
    learning_rate: 1e-5,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.0,
    rounding_seed: 0,
};

/// A step of a parameter in bf16, with moments in f32 or in eight bits.
fn bf16_step(eight_bit: bool, seed: u32) -> (Vec<f32>, Vec<f32>) {
    let device = Device::flex();
    let shape = [37, 301];
    let settings = AdamW {
        learning_rate: 1e-2,
        weight_decay: 0.1,
        rounding_seed: seed,
        ..SMALL_STEPS
    };
    let kept = tensor::<2>(1, shape, &device).cast(DType::BF16);
    let gradient = tensor::<2>(2, shape, &device);
    let step = |parameter: Tensor<2>| {
        let after = if eight_bit {
            let mut moments = Moments8::zeros(shape[0] * shape[1], &device);
            adamw_8bit_step(parameter, gradient.clone(), &mut moments, &settings, 1)
        } else {
            let moments = Moments::zeros_like(&parameter);
            let (after, moments) = adamw_step(parameter, gradient.clone(), moments, &settings, 1);
            assert_eq!(moments.first.dtype(), DType::F32);
            after
        };
        (after.dtype(), numbers(after.cast(DType::F32)))
    };
    let (dtype, exact) = step(kept.clone().cast(DType::F32));
    assert_eq!(dtype, DType::F32);
    let (dtype, rounded) = step(kept);
    assert_eq!(dtype, DType::BF16);
    (exact, rounded)
}

#[test]
fn a_step_in_bf16_is_the_f32_step_rounded_to_either_side() {
    for eight_bit in [false, true] {
        let mut means = vec![0.0f64; 37 * 301];
        let seeds = 64;
        let mut exact = Vec::new();
        for seed in 0..seeds {
            let rounded;
            (exact, rounded) = bf16_step(eight_bit, seed * 0x9e37);
            for ((mean, rounded), exact) in means.iter_mut().zip(&rounded).zip(&exact) {
                // The two bf16 numbers around it are 2^16 apart as bits.
                assert!(rounded.to_bits().abs_diff(exact.to_bits()) < 1 << 16);
                *mean += f64::from(*rounded) / f64::from(seeds);
            }
        }
        // In units of the distance of neighbours, a mean of 64 is off by less than 0.07, of all numbers by less than 0.001.
        let errors: Vec<f64> = means
            .iter()
            .zip(&exact)
            .map(|(mean, &exact)| {
                let unit = 2f64.powi(exact.abs().log2().floor() as i32 - 7);
                (mean - f64::from(exact)) / unit
            })
            .collect();
        let count = errors.len() as f64;
        let mean = errors.iter().sum::<f64>() / count;
        let spread = (errors.iter().map(|e| e * e).sum::<f64>() / count).sqrt();
        assert!(mean.abs() < 0.003 && spread < 0.07, "{mean} and {spread}");
    }
}

#[test]
fn the_bits_of_a_step_in_bf16_do_not_depend_on_the_threads() {
    for eight_bit in [false, true] {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| bf16_step(eight_bit, 5))
        };
        assert!(with(1) == with(4));
        assert!(bf16_step(eight_bit, 5) == with(1));
        assert!(bf16_step(eight_bit, 5) != bf16_step(eight_bit, 6));
    }
}

#[test]
fn steps_far_smaller_than_bf16_can_show_move_the_weights_on_average() {
    let device = Device::flex();
    let count = 4096;
    let ones = Tensor::<1>::ones([count], &device).cast(DType::BF16);
    let gradient = Tensor::<1>::ones([count], &device);
    let mut moments = Moments::zeros_like(&ones);
    let (mut stochastic, mut nearest) = (ones.clone(), ones.clone());
    let mut of_nearest = moments.clone();
    let steps = 300;
    for step in 1..=steps {
        let settings = AdamW {
            rounding_seed: (step as u32).wrapping_mul(0x85eb_ca6b),
            ..SMALL_STEPS
        };
        (stochastic, moments) = adamw_step(stochastic, gradient.clone(), moments, &settings, step);
        let wide = nearest.cast(DType::F32);
        let (wide, after) = adamw_step(wide, gradient.clone(), of_nearest, &settings, step);
        (nearest, of_nearest) = (wide.cast(DType::BF16), after);
    }
    // A step is 1e-5; below 1 neighbours are 2^-8 apart.
    assert!(numbers(nearest.cast(DType::F32)).iter().all(|&x| x == 1.0));
    let moved = numbers(stochastic.cast(DType::F32));
    let mean = moved.iter().map(|&x| f64::from(1.0 - x)).sum::<f64>() / count as f64;
    let expected = 1e-5 * steps as f64;
    // One number's deviation is below 2^-8 · sqrt(0.003 · 2^8), so that of the mean of 4096 below 6e-5.
    assert!(
        (mean - expected).abs() < 3.0 * 6e-5,
        "{mean} instead of {expected}"
    );
}
