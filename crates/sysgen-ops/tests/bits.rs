//! What holds to the bit on the CPU: a row does not depend on its neighbours, a run does not depend on the last one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use common::{numbers, tensor};
use sysgen_ops::{
    AttentionShape, Distillation, Divergence, Segments, Teacher, attention, linear,
    linear_cross_entropy, linear_distillation, rms_norm, swiglu,
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
        let pass = |weight: Tensor<2>, trained: bool| {
            let x = x.clone().autodiff().require_grad();
            let weight = match trained {
                true => weight.autodiff().require_grad(),
                false => weight.autodiff(),
            };
            let y = linear(x.clone(), weight.clone(), None);
            let gradients = (y.clone() * tensor(3, [rows, output], &device).autodiff())
                .sum()
                .backward();
            let of_weight = weight.grad(&gradients);
            assert_eq!(of_weight.is_some(), trained);
            assert!(
                of_weight
                    .iter()
                    .all(|gradient| gradient.dtype() == DType::F32)
            );
            (
                numbers(y),
                numbers(x.grad(&gradients).unwrap()),
                of_weight.map(numbers),
            )
        };
        for trained in [false, true] {
            let same = pass(weight.clone(), trained) == pass(wide.clone(), trained);
            assert!(same, "{rows}x{input}x{output}, trained {trained}");
        }
    }
}

#[test]
fn a_head_in_bf16_gives_the_losses_and_gradients_of_its_f32_copy() {
    let device = Device::flex();
    let (positions, dim, vocab) = (70, 48, 1031);
    let targets: Vec<u32> = (0..positions as u32).map(|i| i * 13).collect();
    let head = tensor::<2>(1, [vocab, dim], &device).cast(DType::BF16);
    let of_teacher = tensor::<2>(2, [vocab, dim], &device).cast(DType::BF16);
    let pass = |head: Tensor<2>, of_teacher: Tensor<2>| {
        let teacher = Teacher::Hidden {
            hidden: tensor(3, [positions, dim], &device),
            head: of_teacher,
            softcap: Some(20.0),
        };
        let settings = Distillation {
            divergence: Divergence::Jsd(0.3),
            temperature: 1.5,
            weight: 0.6,
            cross_entropy_weight: 0.4,
            softcap: Some(30.0),
        };
        let hidden = tensor::<2>(4, [positions, dim], &device).autodiff();
        let (hidden, head) = (hidden.require_grad(), head.autodiff().require_grad());
        let distilled =
            linear_distillation(hidden.clone(), head.clone(), &targets, &teacher, settings);
        let plain = linear_cross_entropy(hidden.clone(), head.clone(), &targets, 0.1, Some(30.0));
        [distilled, plain].map(|losses| {
            let gradients = losses.clone().sum().backward();
            let of_head = head.grad(&gradients).unwrap();
            assert_eq!(of_head.dtype(), DType::F32);
            let of_hidden = numbers(hidden.grad(&gradients).unwrap());
            [numbers(losses), numbers(of_head), of_hidden]
        })
    };
    let wide = pass(
        head.clone().cast(DType::F32),
        of_teacher.clone().cast(DType::F32),
    );
    assert!(pass(head, of_teacher) == wide);
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
