//! The cases each operation is compared on.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::{Bench, not_a_number, numbers};
use crate::{
    AdamW, Adapter, AttentionShape, Dropout, LinearWeight, MomentOrder, Moments, Moments8, Nf4,
    PagedCache, PagedRun, PagedShape, Quantised, Segments,
};

pub(super) fn rms_norm(bench: &mut Bench) {
    for (rows, dim) in [(1, 1), (7, 33), (64, 20), (129, 288), (300, 1024)] {
        for plus_one in [false, true] {
            let case = format!("{rows}x{dim}, plus_one {plus_one}");
            bench.pass(&case, &[&[rows, dim], &[dim]], |x| {
                let rows = x[0].clone().reshape([rows, dim]);
                // As in a model: norms are f32 in one of any dtype, and so are biases and adapters.
                crate::rms_norm(rows, x[1].clone().cast(DType::F32), 1e-6, plus_one)
            });
        }
    }
    bench.pass("3x8192 of one sign", &[&[3, 8192], &[8192]], |x| {
        let rows = of_one_sign(&x[0]).reshape([3, 8192]);
        crate::rms_norm(rows, x[1].clone().cast(DType::F32), 1e-6, false)
    });
}

/// Between 0 and 1/16: the sum of thousands of them, or of their squares, is lost in a format of eight bits, which stops
/// growing at 256 times what is added. It stays small enough for f16.
fn of_one_sign(x: &Tensor<1>) -> Tensor<1> {
    // By way of f32, since a weight's gradient is f32 and must not meet an `abs` in another format.
    let wide = x.clone().cast(DType::F32).abs().mul_scalar(1.0 / 16.0);
    wide.cast(x.dtype())
}

pub(super) fn rope(bench: &mut Bench) {
    for (time, head_dim, half) in [
        (1, 2, 1),
        (7, 32, 16),
        (129, 20, 6),
        (64, 128, 64),
        (5, 80, 16),
    ] {
        let (batch, heads) = (2, 3);
        let shape = [batch, time, heads, head_dim];
        // The angles are f32 in a model of any dtype.
        let angles: Vec<f32> = (0..batch * time * half)
            .map(|i| (i * 37 % 100) as f32 / 10.0)
            .collect();
        let case = format!("{time}x{head_dim}, rotary {}", 2 * half);
        bench.pass(&case, &[&shape], |x| {
            let angle = |turn: fn(f32) -> f32| {
                let turned: Vec<f32> = angles.iter().map(|&angle| turn(angle)).collect();
                let turned = Tensor::<1>::from_data(&turned[..], &x[0].device().inner());
                turned.reshape([batch, time, half])
            };
            crate::rope(
                x[0].clone().reshape(shape),
                angle(f32::cos),
                angle(f32::sin),
            )
        });
    }
}

pub(super) fn swiglu(bench: &mut Bench) {
    gated(bench, crate::swiglu);
}

pub(super) fn geglu_tanh(bench: &mut Bench) {
    gated(bench, crate::geglu_tanh);
}

fn gated(bench: &mut Bench, op: fn(Tensor<1>, Tensor<1>) -> Tensor<1>) {
    for length in [1, 7, 64, 129, 40_001] {
        // 16: where exp and the cube inside tanh grow large.
        for scale in [1, 16] {
            bench.pass(
                &format!("{length}, gates to {scale}"),
                &[&[length], &[length]],
                |x| op(x[0].clone().mul_scalar(scale), x[1].clone()),
            );
        }
    }
}

pub(super) fn dropout(bench: &mut Bench) {
    for length in [1, 7, 129, 40_001] {
        for (probability, seed) in [(0.05, 7), (0.5, 0x9e37_79b9_7f4a_7c15)] {
            let settings = Dropout { probability, seed };
            bench.pass(&format!("{length}, {settings:?}"), &[&[length]], |x| {
                crate::dropout(x[0].clone(), settings)
            });
        }
    }
}

pub(super) fn linear(bench: &mut Bench) {
    for (rows, input, output) in [
        (1, 1, 1),
        (1, 256, 64),
        (7, 33, 50),
        (64, 192, 97),
        (129, 700, 48),
    ] {
        let shapes: [&[usize]; 3] = [&[rows, input], &[output, input], &[output]];
        for bias in [false, true] {
            let case = format!("{rows}x{input}x{output}, bias {bias}");
            bench.pass(&case, &shapes[..if bias { 3 } else { 2 }], |x| {
                crate::linear(
                    x[0].clone().reshape([1, rows, input]),
                    x[1].clone().reshape([output, input]),
                    x.get(2).map(|bias| bias.clone().cast(DType::F32)),
                )
            });
        }
    }
    bench.pass("7x8192x5 of one sign", &[&[7, 8192], &[5, 8192]], |x| {
        let rows = of_one_sign(&x[0]).reshape([7, 8192]);
        crate::linear(rows, of_one_sign(&x[1]).reshape([5, 8192]), None)
    });
}

/// Without a soft-cap and with one.
const CAPS: [Option<f32>; 2] = [None, Some(3.0)];

pub(super) fn linear_cross_entropy(bench: &mut Bench) {
    for softcap in CAPS {
        not_a_number::cross_entropy(bench, softcap);
    }
    // The last one is wider than a slice of the vocabulary.
    for (positions, dim, vocab) in [
        (0, 4, 5),
        (1, 8, 2),
        (7, 33, 65),
        (129, 64, 3001),
        (7, 20, 40_003),
    ] {
        for softcap in CAPS {
            let targets: Vec<u32> = (0..positions as u32)
                .map(|i| (i * 7919 + 1) % vocab as u32)
                .collect();
            let case = format!("{positions}x{dim}x{vocab}, softcap {softcap:?}");
            bench.pass(&case, &[&[positions, dim], &[vocab, dim]], |x| {
                crate::linear_cross_entropy(
                    x[0].clone().reshape([positions, dim]),
                    x[1].clone().reshape([vocab, dim]),
                    &targets,
                    0.37,
                    softcap,
                )
            });
        }
    }
}

pub(super) fn lora_linear(bench: &mut Bench) {
    for (rows, input, output, rank) in [(1, 8, 5, 1), (7, 33, 65, 4), (129, 96, 40, 16)] {
        let shapes: [&[usize]; 4] = [&[rows, input], &[rank, input], &[output, rank], &[output]];
        for (dora, dropped) in [(false, false), (false, true), (true, false), (true, true)] {
            let case =
                format!("{rows}x{input}x{output}, rank {rank}, dora {dora}, dropout {dropped}");
            bench.pass(&case, &shapes[..if dora { 4 } else { 3 }], |x| {
                let adapter = Adapter {
                    a: x[1].clone().cast(DType::F32).reshape([rank, input]),
                    b: x[2].clone().cast(DType::F32).reshape([output, rank]),
                    scale: 2.0,
                    magnitude: x.get(3).map(|lengths| lengths.clone().cast(DType::F32)),
                    dropout: dropped.then_some(Dropout {
                        probability: 0.25,
                        seed: 7,
                    }),
                };
                // Frozen; any numbers do.
                let device = x[0].device().inner();
                let weight = Tensor::<1>::from_data(&some_weight(output * input)[..], &device);
                let weight = weight.cast(x[0].dtype()).reshape([output, input]);
                let x = x[0].clone().reshape([rows, input]);
                crate::lora_linear(x, &LinearWeight::Dense(weight), None, &adapter)
            });
        }
    }
}

pub(super) fn nf4_linear(bench: &mut Bench) {
    // The last one has three blocks of scales.
    for (rows, input, output) in [(1, 8, 5), (7, 33, 65), (129, 96, 40), (3, 256, 130)] {
        let case = format!("{rows}x{input}x{output}");
        bench.pass(&case, &[&[rows, input], &[output]], |x| {
            let mut weight = some_weight(output * input);
            // Blocks of 64 with scales of their own.
            for (place, x) in weight.iter_mut().enumerate() {
                *x *= (1 + place / 64 * 13 % 29) as f32 / 16.0;
            }
            let weight = Nf4::quantise(&weight, [output, input], &x[0].device().inner());
            let rows = x[0].clone().reshape([rows, input]);
            crate::nf4_linear(rows, &weight, Some(x[1].clone().cast(DType::F32)))
        });
    }
}

pub(super) fn some_weight(count: usize) -> Vec<f32> {
    // Seven bits: every format holds them.
    (0..count)
        .map(|i| (i * 37 % 100) as f32 / 64.0 - 0.75)
        .collect()
}

pub(super) fn attention(bench: &mut Bench) {
    for softcap in CAPS {
        not_a_number::attention(bench, softcap);
    }
    let options = [
        (None, None),
        (Some(1), None),
        (Some(50), Some(2.0)),
        (Some(1000), None),
    ];
    // (time, heads, kv_heads, head size); the last one has several blocks of queries.
    let shapes = [
        (1, 1, 1, 20),
        (7, 4, 2, 32),
        (64, 3, 1, 20),
        (129, 4, 4, 80),
        (64, 8, 2, 128),
        (7, 2, 1, 256),
        (600, 4, 2, 32),
    ];
    for (time, heads, kv_heads, size) in shapes {
        // Two rows: one of several segments and padding, one all padding or one segment.
        for second_row in [0, 5] {
            let segments = Arc::new(segments(time, second_row));
            for (window, softcap) in options {
                let shape = AttentionShape {
                    scale: 1.0 / (size as f32).sqrt(),
                    window,
                    softcap,
                };
                let case = format!(
                    "{time} of {heads}/{kv_heads}x{size}, second row {second_row}, \
                     window {window:?}, softcap {softcap:?}"
                );
                let q: &[usize] = &[2, time, heads, size];
                let kv: &[usize] = &[2, time, kv_heads, size];
                bench.pass(&case, &[q, kv, kv], |x| {
                    crate::attention(
                        x[0].clone().reshape([2, time, heads, size]),
                        x[1].clone().reshape([2, time, kv_heads, size]),
                        x[2].clone().reshape([2, time, kv_heads, size]),
                        &segments,
                        shape,
                    )
                });
            }
        }
    }
}

pub(super) fn paged_attention(bench: &mut Bench) {
    for softcap in CAPS {
        not_a_number::paged_attention(bench, softcap);
    }
    // Two texts that share their first block, a third one; blocks in no order.
    let blocks: [&[u32]; 3] = [
        &[5, 2, 9, 0, 11, 3, 7, 12, 1],
        &[5, 4],
        &[6, 10, 8, 13, 14, 15, 16, 17, 18],
    ];
    let runs = |block_size: usize| {
        let run = |text: usize, start, tokens| PagedRun {
            tokens,
            start,
            blocks: &blocks[text][..(start + tokens).div_ceil(block_size)],
        };
        [run(0, 0, 130), run(2, 0, 7), run(1, 16, 1), run(2, 7, 122)]
    };
    let options = [(None, None), (Some(1), None), (Some(50), Some(2.0))];
    for (heads, kv_heads, size) in [(1, 1, 20), (4, 2, 32), (3, 1, 80), (8, 2, 128), (8, 1, 256)] {
        for (window, softcap) in options {
            let shape = AttentionShape {
                scale: 1.0 / (size as f32).sqrt(),
                window,
                softcap,
            };
            let attended = |device: Device, dtype| {
                let paged = PagedShape {
                    blocks: 19,
                    block_size: 16,
                    kv_heads,
                    head_size: size,
                };
                let mut cache = PagedCache::new(paged, &device, dtype);
                let [first, second, third, fourth] = runs(16);
                let mut out = Vec::new();
                // The last text goes on in a second step; a position of the second looks at the first one's block.
                for (step, runs) in [vec![first, second, third], vec![fourth]]
                    .into_iter()
                    .enumerate()
                {
                    let tokens = runs.iter().map(|run| run.tokens).sum();
                    let seed = 3 * step as u64;
                    let rows =
                        |seed, heads| bench.tensor(seed, [tokens, heads, size], &device, dtype);
                    let positions = cache.step(&runs);
                    cache.write(
                        rows(seed + 1, kv_heads),
                        rows(seed + 2, kv_heads),
                        &positions,
                    );
                    out.extend(numbers(cache.attend(
                        rows(seed + 3, heads),
                        &positions,
                        shape,
                    )));
                }
                out
            };
            let ours = attended(bench.device.clone(), bench.dtype);
            let exact = attended(Device::flex(), burn::tensor::DType::F32);
            let case = format!("{heads}/{kv_heads}x{size}, window {window:?}, softcap {softcap:?}");
            bench.record(case, &ours, &exact);
        }
    }
}

/// Segments of one, two and many positions, then padding; and a second row of one id.
fn segments(time: usize, second_row: u32) -> Segments {
    let mut ids: Vec<u32> = (0..time)
        .map(|i| match i {
            0 => 1,
            1 | 2 => 2,
            _ if i < 2 * time / 3 => 3,
            _ if i < time - time / 8 => 4,
            _ => 0,
        })
        .collect();
    ids.extend(vec![second_row; time]);
    Segments {
        batch: 2,
        time,
        ids,
    }
}

pub(super) fn adamw_step(bench: &mut Bench) {
    let settings = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        rounding_seed: 0,
    };
    for shape in [[1, 1], [7, 33], [129, 257]] {
        let steps = |device: Device, dtype| {
            let mut parameter: Tensor<2> = bench.tensor(1, shape, &device, dtype);
            let mut moments = Moments::zeros_like(&parameter);
            for step in 1..=5 {
                let gradient = bench.tensor(step + 1, shape, &device, dtype);
                (parameter, moments) =
                    crate::adamw_step(parameter, gradient, moments, &settings, step);
            }
            [parameter, moments.first, moments.second].map(numbers)
        };
        let ours = steps(bench.device.clone(), bench.dtype);
        let exact = steps(Device::flex(), burn::tensor::DType::F32);
        for (name, (ours, exact)) in ["parameter", "first", "second"]
            .iter()
            .zip(ours.iter().zip(&exact))
        {
            bench.record(format!("{shape:?}, five steps: {name}"), ours, exact);
        }
    }
}

pub(super) fn adamw_8bit_step(bench: &mut Bench) {
    let settings = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        rounding_seed: 0,
    };
    const ORDERS: [MomentOrder; 2] = [MomentOrder::First, MomentOrder::Second];
    for shape in [[1, 1], [7, 33], [16, 32], [129, 257]] {
        let cpu = Device::flex();
        let count = shape[0] * shape[1];
        let mut exact: Tensor<2> = bench.tensor(1, shape, &cpu, DType::F32);
        let mut exact_moments = Moments8::zeros(count, &cpu);
        for step in 1..=5 {
            // Each step from where the CPU stands: a code that falls to the other side of a middle moves what follows.
            let on_host = ORDERS.map(|order| Quantised {
                codes: exact_moments.codes(order).into_owned(),
                scales: exact_moments.scales(order).into_owned(),
            });
            let mut moments = Moments8::from_host(on_host, &bench.device);
            let start = bench.on_device(numbers(exact.clone()), shape);
            let narrowed = Tensor::from_data(start.to_data().convert::<f32>(), &cpu);
            let gradient = bench.tensor(step + 1, shape, &bench.device, DType::F32);
            let ours = crate::adamw_8bit_step(start, gradient, &mut moments, &settings, step);
            let gradient = bench.tensor(step + 1, shape, &cpu, DType::F32);
            exact = crate::adamw_8bit_step(narrowed, gradient, &mut exact_moments, &settings, step);
            let case = format!("{shape:?}, step {step}");
            let (ours, theirs) = (numbers(ours), numbers(exact.clone()));
            bench.record(format!("{case}: parameter"), &ours, &theirs);
            for order in ORDERS {
                let case = format!("{case}: {order:?} moment");
                let scales = [&moments, &exact_moments].map(|moments| moments.scales(order));
                bench.record(format!("{case}, scales"), &scales[0], &scales[1]);
                let codes = [&moments, &exact_moments].map(|moments| moments.codes(order));
                let apart = codes[0].iter().zip(codes[1].iter());
                let apart: Vec<u8> = apart.map(|(a, b)| a.abs_diff(*b)).collect();
                // A number within rounding of a middle may get the code beside.
                let far = apart.iter().filter(|&&apart| apart > 1).count();
                bench.record(
                    format!("{case}, codes beyond the next"),
                    &[far as f32],
                    &[0.0],
                );
                if count > 10_000 {
                    let share = apart.iter().filter(|&&apart| apart > 0).count() as f32;
                    let share = share / count as f32;
                    bench.record(format!("{case}, share of other codes"), &[share], &[0.0]);
                }
            }
        }
    }
}

pub(super) fn squared_norm(bench: &mut Bench) {
    for length in [1, 7, 129, 300_001] {
        let norm = |device: Device, dtype| {
            let x: Tensor<1> = bench.tensor(1, [length], &device, dtype);
            vec![crate::squared_norm(&x) as f32]
        };
        let ours = norm(bench.device.clone(), bench.dtype);
        let exact = norm(Device::flex(), burn::tensor::DType::F32);
        bench.record(format!("{length}"), &ours, &exact);
    }
    let norms = |device: &Device, dtype| -> Vec<f32> {
        let lengths = [300_001, 0, 1, 129];
        let tensors = lengths.map(|length| bench.tensor::<1>(2, [length], device, dtype));
        let norms = crate::squared_norms(tensors.into_iter());
        norms.into_iter().map(|norm| norm as f32).collect()
    };
    let (ours, exact) = (
        norms(&bench.device, bench.dtype),
        norms(&Device::flex(), DType::F32),
    );
    for (place, (&ours, &exact)) in ours.iter().zip(&exact).enumerate() {
        bench.record(format!("number {place} of several"), &[ours], &[exact]);
    }
}
