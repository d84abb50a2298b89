//! The optimizer's step and the norm of a gradient.

use crate::common::{close, numbers, tensor};
use burn::tensor::Device;
use sysgen_ops::{AdamW, Moments, adamw_step, squared_norm};

#[test]
fn adamw_takes_the_steps_of_its_definition() {
    let device = Device::flex();
    let settings = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        rounding_seed: 0,
    };
    let shape = [129, 257];
    let mut parameter = tensor::<2>(1, shape, &device);
    let mut exact: Vec<f64> = numbers(parameter.clone())
        .iter()
        .map(|&x| f64::from(x))
        .collect();
    let mut moments = Moments::zeros_like(&parameter);
    let mut averages = vec![(0.0f64, 0.0f64); exact.len()];
    for step in 1..=5u64 {
        let gradient = tensor::<2>(step + 1, shape, &device);
        let values = numbers(gradient.clone());
        (parameter, moments) = adamw_step(parameter, gradient, moments, &settings, step);
        for ((p, (m, v)), g) in exact.iter_mut().zip(&mut averages).zip(values) {
            let g = f64::from(g);
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.95 * *v + 0.05 * g * g;
            let m = *m / (1.0 - 0.9f64.powf(step as f64));
            let v = *v / (1.0 - 0.95f64.powf(step as f64));
            *p = *p * (1.0 - 1e-2 * 0.1) - 1e-2 * m / (v.sqrt() + 1e-8);
        }
    }
    let exact: Vec<f32> = exact.iter().map(|&x| x as f32).collect();
    close("adamw_step", &numbers(parameter), &exact);
}

#[test]
fn adamw_leaves_shared_tensors_alone() {
    let device = Device::flex();
    let parameter = tensor::<1>(1, [10], &device);
    let before = numbers(parameter.clone());
    let settings = AdamW {
        learning_rate: 1.0,
        beta1: 0.9,
        beta2: 0.9,
        epsilon: 1e-8,
        weight_decay: 0.0,
        rounding_seed: 0,
    };
    let moments = Moments::zeros_like(&parameter);
    let (next, _) = adamw_step(
        parameter.clone(),
        tensor(2, [10], &device),
        moments,
        &settings,
        1,
    );
    assert_eq!(numbers(parameter), before);
    assert_ne!(numbers(next), before);
}

#[test]
fn squared_norm_is_the_sum_of_squares() {
    let device = Device::flex();
    let x = tensor::<2>(1, [301, 333], &device);
    let exact: f64 = numbers(x.clone())
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum();
    assert!((squared_norm(&x) - exact).abs() < 1e-12 * exact);
    let part = x.slice([3..5, 0..333]);
    let exact: f64 = numbers(part.clone())
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum();
    assert!((squared_norm(&part) - exact).abs() < 1e-12 * exact);
}
