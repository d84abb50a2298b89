//! What holds to the bit on the CPU: a row does not depend on its neighbours, a run does not depend on the last one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use common::{numbers, tensor};
use sysgen_ops::{
    AttentionShape, Segments, attention, linear, linear_cross_entropy, rms_norm, swiglu,
};

#[test]
fn a_row_of_linear_does_not_depend_on_the_number_of_rows() {
    let device = Device::flex();
    let most = 130;
    for input in [32, 47, 64, 192, 288, 512, 700, 1024, 4096] {
        for output in [5, 192, 259] {
            let x = tensor::<2>(1, [most, input], &device);
            let weight = tensor::<2>(2, [output, input], &device);
            let bias = tensor::<1>(3, [output], &device);
            let whole = numbers(linear(x.clone(), weight.clone(), Some(bias.clone())));
            for rows in [1, 2, 3, 5, 8, 17, 64] {
                for start in [0, 11] {
                    let part = x.clone().slice([start..start + rows, 0..input]);
                    let part = numbers(linear(part, weight.clone(), Some(bias.clone())));
                    let same = &whole[start * output..(start + rows) * output];
                    assert!(part == same, "{rows} rows of {input} to {output}");
                }
            }
        }
    }
}

#[test]
fn a_weight_in_bf16_gives_the_bits_of_its_f32_copy() {
    let device = Device::flex();
    for (rows, input, output) in [(1, 31, 5), (1, 4096, 259), (8, 192, 97), (130, 700, 64)] {
        let x = tensor::<2>(1, [rows, input], &device);
        let weight = tensor::<2>(2, [output, input], &device).cast(DType::BF16);
        let wide = weight.clone().cast(DType::F32);
        let pass = |weight: Tensor<2>| {
            let x = x.clone().autodiff().require_grad();
            let y = linear(x.clone(), weight.autodiff(), None);
            let gradients = (y.clone() * tensor(3, [rows, output], &device).autodiff())
                .sum()
                .backward();
            (numbers(y), numbers(x.grad(&gradients).unwrap()))
        };
        assert!(pass(weight) == pass(wide), "{rows}x{input}x{output}");
    }
}

#[test]
fn a_training_pass_gives_the_same_bits_again() {
    let run = || {
        let device = Device::flex().autodiff();
        let (batch, time, heads, size) = (3, 129, 4, 32);
        let dim = heads * size;
        let x = tensor::<3>(1, [batch, time, dim], &device).require_grad();
        let norm = tensor::<1>(2, [dim], &device).require_grad();
        let weight = tensor::<2>(3, [dim, dim], &device).require_grad();
        let head = tensor::<2>(4, [3000, dim], &device).require_grad();
        let segments = Arc::new(Segments {
            batch,
            time,
            ids: vec![1; batch * time],
        });
        let shape = AttentionShape {
            scale: 0.2,
            window: Some(100),
            softcap: None,
        };
        let h = rms_norm(x.clone(), norm.clone(), 1e-6, false);
        let h = linear(h, weight.clone(), None);
        let split = h.clone().reshape([batch, time, heads, size]);
        let h = h + attention(split.clone(), split.clone(), split, &segments, shape)
            .reshape([batch, time, dim]);
        let h = swiglu(h.clone(), h).reshape([batch * time, dim]);
        let targets: Vec<u32> = (0..(batch * time) as u32).collect();
        let losses = linear_cross_entropy(h, head.clone(), &targets, 1.0, None);
        let gradients = losses.clone().sum().backward();
        let flat = |t: Option<Vec<f32>>| t.unwrap();
        vec![
            numbers(losses),
            flat(x.grad(&gradients).map(numbers)),
            flat(norm.grad(&gradients).map(numbers)),
            flat(weight.grad(&gradients).map(numbers)),
            flat(head.grad(&gradients).map(numbers)),
        ]
    };
    let first = run();
    for _ in 0..5 {
        assert!(run() == first);
    }
}

#[test]
fn packing_does_not_change_a_conversation() {
    let device = Device::flex();
    let (heads, size) = (2, 32);
    let shape = AttentionShape {
        scale: 0.2,
        window: None,
        softcap: None,
    };
    let run = |ids: Vec<u32>, from: usize| -> Tensor<4> {
        let time = ids.len();
        let part = |seed| {
            tensor::<4>(seed, [1, 100, heads, size], &device).slice([
                0..1,
                from..from + time,
                0..heads,
                0..size,
            ])
        };
        let segments = Arc::new(Segments {
            batch: 1,
            time,
            ids,
        });
        attention(part(1), part(2), part(3), &segments, shape)
    };
    let packed = run([vec![1; 30], vec![2; 50], vec![0; 20]].concat(), 0);
    let alone = run(vec![1; 50], 30);
    common::close(
        "packed",
        &numbers(packed.slice([0..1, 30..80, 0..heads, 0..size])),
        &numbers(alone),
    );
}
