//! Every fused operation against its plain reference: values and gradients, at odd shapes.
#![allow(clippy::unwrap_used)]

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod optimizer;

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use common::{close, numbers, tensor};
use sysgen_ops::{
    Adapter, Distillation, Divergence, Dropout, LinearWeight, Nf4, Teacher, TopK, add_rows,
    backward, geglu_tanh, linear, linear_cross_entropy, linear_distillation, lora_linear, merged,
    nf4_linear, reference, rms_norm, rope, swiglu,
};

/// Output and the gradients of all inputs, for a loss of the output weighted with fixed random numbers.
fn pass<const D: usize>(
    shapes: &[&[usize]],
    run: impl Fn(&[Tensor<1>]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let device = Device::flex().autodiff();
    let inputs: Vec<Tensor<1>> = shapes
        .iter()
        .enumerate()
        .map(|(seed, shape)| {
            tensor(seed as u64 + 1, [shape.iter().product()], &device).require_grad()
        })
        .collect();
    let output = run(&inputs);
    let weights = tensor(99, output.dims(), &device);
    let gradients = (output.clone() * weights).sum().backward();
    let mut results = vec![numbers(output)];
    results.extend(
        inputs
            .iter()
            .map(|input| numbers(input.grad(&gradients).unwrap())),
    );
    results
}

fn same(name: &str, ours: Vec<Vec<f32>>, exact: Vec<Vec<f32>>) {
    assert_eq!(ours.len(), exact.len());
    for (index, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
        close(&format!("{name}, result {index}"), ours, exact);
    }
}

#[test]
fn linear_agrees() {
    for (rows, input, output) in [(1, 1, 1), (7, 33, 50), (64, 192, 97), (129, 700, 48)] {
        let shapes: [&[usize]; 3] = [&[rows, input], &[output, input], &[output]];
        for bias in [false, true] {
            let run = |op: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>| {
                pass(&shapes[..if bias { 3 } else { 2 }], |x| {
                    op(
                        x[0].clone().reshape([1, rows, input]),
                        x[1].clone().reshape([output, input]),
                        x.get(2).cloned(),
                    )
                })
            };
            same(
                &format!("linear {rows}x{input}x{output}"),
                run(linear),
                run(reference::linear),
            );
        }
    }
}

#[test]
fn rms_norm_agrees() {
    for (rows, dim) in [(1, 1), (7, 33), (129, 288)] {
        for plus_one in [false, true] {
            let run = |op: fn(Tensor<2>, Tensor<1>, f64, bool) -> Tensor<2>| {
                pass(&[&[rows, dim], &[dim]], |x| {
                    op(
                        x[0].clone().reshape([rows, dim]),
                        x[1].clone(),
                        1e-6,
                        plus_one,
                    )
                })
            };
            same("rms_norm", run(rms_norm), run(reference::rms_norm));
        }
    }
}

#[test]
fn rope_agrees() {
    for (time, head_dim, half) in [(1, 2, 1), (7, 32, 16), (129, 20, 6)] {
        let device = Device::flex();
        let (batch, heads) = (2, 3);
        let run = |op: fn(Tensor<4>, Tensor<3>, Tensor<3>) -> Tensor<4>| {
            pass(&[&[batch, time, heads, head_dim]], |x| {
                let angles = tensor::<3>(7, [batch, time, half], &device);
                op(
                    x[0].clone().reshape([batch, time, heads, head_dim]),
                    angles.clone().cos(),
                    angles.sin(),
                )
            })
        };
        same("rope", run(rope), run(reference::rope));
    }
}

#[test]
fn gated_activations_agree() {
    type Op = fn(Tensor<1>, Tensor<1>) -> Tensor<1>;
    let pairs: [(&str, Op, Op); 2] = [
        ("swiglu", swiglu, reference::swiglu),
        ("geglu_tanh", geglu_tanh, reference::geglu_tanh),
    ];
    for (name, op, plain) in pairs {
        for len in [1, 129, 40_001] {
            let run = |op: Op| {
                pass(&[&[len], &[len]], |x| {
                    op(x[0].clone().mul_scalar(4.0), x[1].clone())
                })
            };
            same(name, run(op), run(plain));
        }
    }
}

#[test]
fn linear_cross_entropy_agrees() {
    // Summed, one factor comes back for all positions; alone, each has its own.
    type Op = fn(Tensor<2>, Tensor<2>, &[u32], f32, Option<f32>) -> Tensor<1>;
    let sizes = [(1, 8, 2), (7, 33, 65), (129, 64, 12_000), (600, 40, 500)];
    for (positions, dim, vocab) in sizes {
        for (softcap, sum) in [
            (None, false),
            (Some(3.0), false),
            (None, true),
            (Some(3.0), true),
        ] {
            let targets: Vec<u32> = (0..positions as u32)
                .map(|i| (i * 7919) % vocab as u32)
                .collect();
            let run = |op: Op| {
                pass(&[&[positions, dim], &[vocab, dim]], |x| {
                    let hidden = x[0].clone().reshape([positions, dim]);
                    let head = x[1].clone().reshape([vocab, dim]);
                    let losses = op(hidden, head, &targets, 0.37, softcap);
                    if sum { losses.sum() } else { losses }
                })
            };
            same(
                &format!("linear_cross_entropy {positions}x{dim}x{vocab}"),
                run(linear_cross_entropy),
                run(reference::linear_cross_entropy),
            );
        }
    }
}

#[test]
fn lora_linear_agrees() {
    type Op = fn(Tensor<2>, &LinearWeight, Option<Tensor<1>>, &Adapter) -> Tensor<2>;
    let sizes = [(1, 8, 5, 1), (7, 33, 65, 4), (129, 96, 40, 16)];
    let kinds = [(false, false), (false, true), (true, false), (true, true)];
    for ((rows, input, output, rank), four_bits) in sizes.into_iter().zip([false, true, false]) {
        for (dora, dropped) in kinds {
            let run = |op: Op| {
                let shapes: [&[usize]; 4] =
                    [&[rows, input], &[rank, input], &[output, rank], &[output]];
                pass(&shapes[..if dora { 4 } else { 3 }], |x| {
                    let device = x[0].device();
                    let adapter = Adapter {
                        a: x[1].clone().reshape([rank, input]),
                        b: x[2].clone().reshape([output, rank]),
                        scale: 2.0,
                        magnitude: x.get(3).cloned(),
                        dropout: dropped.then_some(Dropout {
                            probability: 0.25,
                            seed: 7,
                        }),
                    };
                    let dense = tensor(8, [output, input], &device);
                    let weight = match four_bits {
                        true => LinearWeight::Nf4(Nf4::quantise(
                            &numbers(dense),
                            [output, input],
                            &Device::flex(),
                        )),
                        false => LinearWeight::Dense(dense),
                    };
                    let bias = tensor(9, [output], &device);
                    let x = x[0].clone().reshape([rows, input]);
                    op(x, &weight, Some(bias), &adapter).reshape([rows * output])
                })
            };
            let name = format!(
                "lora_linear {rows}x{input}x{output} rank {rank}, dora {dora}, dropout {dropped}"
            );
            same(&name, run(lora_linear), run(lora_reference));
        }
    }
}

/// The reference with every tensor inside the graph.
fn lora_reference(
    x: Tensor<2>,
    weight: &LinearWeight,
    bias: Option<Tensor<1>>,
    adapter: &Adapter,
) -> Tensor<2> {
    let weight = LinearWeight::Dense(weight.dense().autodiff());
    reference::lora_linear(x, &weight, bias, adapter)
}

#[test]
fn linear_distillation_agrees() {
    let kinds = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd(0.1),
        Divergence::Jsd(0.5),
        Divergence::Uld,
    ];
    // The last two: the teacher has fewer words, or more.
    for (positions, dim, vocab, teacher_vocab) in [
        (1, 4, 5, 5),
        (7, 33, 65, 65),
        (70, 20, 40, 33),
        (9, 20, 33, 40),
    ] {
        let targets: Vec<u32> = (0..positions as u32)
            .map(|i| i * 7 % 33 % vocab as u32)
            .collect();
        for (kind, stored) in kinds
            .into_iter()
            .flat_map(|kind| [(kind, false), (kind, true)])
        {
            if stored && kind == Divergence::Uld {
                continue;
            }
            let run =
                |op: fn(Tensor<2>, Tensor<2>, &[u32], &Teacher, Distillation) -> Tensor<1>| {
                    pass(&[&[positions, dim], &[vocab, dim]], |x| {
                        let device = Device::flex();
                        let teacher = if stored {
                            top_words(positions, 3)
                        } else {
                            Teacher::Hidden {
                                hidden: tensor(11, [positions, 8], &device),
                                head: tensor(12, [teacher_vocab, 8], &device),
                                softcap: Some(5.0),
                            }
                        };
                        let settings = Distillation {
                            divergence: kind,
                            temperature: if stored { 1.0 } else { 2.0 },
                            weight: 0.7,
                            cross_entropy_weight: 0.3,
                            softcap: Some(3.0),
                        };
                        op(
                            x[0].clone().reshape([positions, dim]),
                            x[1].clone().reshape([vocab, dim]),
                            &targets,
                            &teacher,
                            settings,
                        )
                    })
                };
            let name = format!("{kind:?}, stored {stored}, {positions}x{dim}x{vocab}");
            same(
                &name,
                run(linear_distillation),
                run(reference::linear_distillation),
            );
        }
    }
}

#[test]
fn linear_distillation_agrees_across_vocabularies() {
    // Spans of one and of several tokens on either side, positions between them, and a text that no span ends; the last case
    // has more positions than are held at a time.
    let sizes = [
        (1, 4, 5, 7),
        (12, 33, 65, 40),
        (12, 20, 33, 90),
        (1100, 8, 50, 70),
    ];
    for (positions, dim, vocab, teacher_vocab) in sizes {
        let mut spans = Vec::new();
        let (mut ours, mut theirs) = (0, 0);
        for number in 0.. {
            let (of_student, of_teacher) = [(1, 1), (2, 1), (1, 3), (3, 2)][number % 4];
            if ours + of_student > positions {
                break;
            }
            spans.push((ours..ours + of_student, theirs..theirs + of_teacher));
            // One of either side in five belongs to no span.
            ours += of_student + usize::from(number % 5 == 4);
            theirs += of_teacher + usize::from(number % 5 == 2);
        }
        theirs += 1;
        let words = |count: usize, vocab: usize| -> Vec<u32> {
            (0..count as u32).map(|i| i * 7 % vocab as u32).collect()
        };
        let (targets, of_teacher) = (words(positions, vocab), words(theirs, teacher_vocab));
        for spans in [
            spans.clone(),
            spans[..spans.len().div_ceil(2)].to_vec(),
            Vec::new(),
        ] {
            let run =
                |op: fn(Tensor<2>, Tensor<2>, &[u32], &Teacher, Distillation) -> Tensor<1>| {
                    pass(&[&[positions, dim], &[vocab, dim]], |x| {
                        let device = Device::flex();
                        let teacher = Teacher::Spans {
                            hidden: tensor(11, [theirs, 8], &device),
                            head: tensor(12, [teacher_vocab, 8], &device),
                            softcap: Some(5.0),
                            targets: of_teacher.clone(),
                            spans: Arc::new(spans.clone()),
                        };
                        let settings = Distillation {
                            divergence: Divergence::Uld,
                            temperature: 2.0,
                            weight: 0.7,
                            cross_entropy_weight: 0.3,
                            softcap: Some(3.0),
                        };
                        op(
                            x[0].clone().reshape([positions, dim]),
                            x[1].clone().reshape([vocab, dim]),
                            &targets,
                            &teacher,
                            settings,
                        )
                    })
                };
            let name = format!("{} spans, {positions}x{dim}x{vocab}", spans.len());
            same(
                &name,
                run(linear_distillation),
                run(reference::linear_distillation),
            );
        }
    }
}

/// Three likely words of every position.
fn top_words(positions: usize, k: usize) -> Teacher {
    let words = (0..positions).flat_map(|at| (0..k).map(move |i| ((at + i) % 5) as u32));
    let shares = (0..positions * k).map(|i| (0.1f32 + 0.05 * (i % 4) as f32).ln());
    Teacher::Top(Arc::new(TopK {
        k,
        ids: words.collect(),
        log_probabilities: shares.collect(),
    }))
}

#[test]
fn nf4_linear_is_linear_with_the_weight_made_whole() {
    for (rows, input, output) in [(1, 8, 5), (7, 33, 65), (129, 96, 40)] {
        let shapes: [&[usize]; 2] = [&[rows, input], &[output]];
        let weight = numbers(tensor(8, [output, input], &Device::flex()));
        let weight = Nf4::quantise(&weight, [output, input], &Device::flex());
        let run = |op: &dyn Fn(Tensor<2>, Option<Tensor<1>>) -> Tensor<2>| {
            pass(&shapes, |x| {
                op(x[0].clone().reshape([rows, input]), Some(x[1].clone()))
            })
        };
        same(
            &format!("nf4_linear {rows}x{input}x{output}"),
            run(&|x, bias| nf4_linear(x, &weight, bias)),
            run(&|x, bias| reference::linear(x, weight.dequantise().autodiff(), bias)),
        );
    }
}

#[test]
fn a_merged_weight_is_the_projection_with_its_adapter() {
    for dora in [false, true] {
        let device = Device::flex();
        let (weight, x) = (tensor(1, [40, 96], &device), tensor(2, [7, 96], &device));
        let adapter = Adapter {
            a: tensor(3, [4, 96], &device),
            b: tensor(4, [40, 4], &device),
            scale: 0.5,
            magnitude: dora.then(|| tensor(5, [40], &device)),
            dropout: None,
        };
        let weight = LinearWeight::Dense(weight);
        let beside = lora_linear(x.clone(), &weight, None, &adapter);
        let inside = linear(x, merged(&weight, &adapter), None);
        close("merged", &numbers(beside), &numbers(inside));
    }
}

#[test]
fn add_rows_agrees() {
    let device = Device::flex();
    for (vocab, dim, count) in [(1, 1, 1), (130, 7, 64), (64, 33, 129), (5, 4, 0)] {
        let ids: Vec<u32> = (0..count as u32)
            .map(|i| (i * i * 31) % vocab as u32)
            .collect();
        let table: Tensor<2> = tensor(1, [vocab, dim], &device);
        let rows: Tensor<2> = tensor(2, [count, dim], &device);
        let ours = add_rows(table.clone(), &ids, rows.clone());
        let mut exact = numbers(table);
        let rows = numbers(rows);
        for (&id, row) in ids.iter().zip(rows.chunks(dim)) {
            for (sum, x) in exact[id as usize * dim..].iter_mut().zip(row) {
                *sum += x;
            }
        }
        assert_eq!(numbers(ours), exact);
    }
}

#[test]
fn backward_goes_on_from_a_given_gradient() {
    let x: Tensor<2> = tensor(3, [5, 7], &Device::flex().autodiff());
    let x = x.require_grad();
    let gradient: Tensor<2> = tensor(4, [5, 7], &Device::flex());
    let mut all = backward(x.clone().mul_scalar(2.0), gradient.clone());
    let ours = x.grad_remove(&mut all).unwrap();
    assert_eq!(numbers(ours), numbers(gradient.mul_scalar(2.0)));
}

#[test]
fn no_supervised_position_is_no_loss() {
    let device = Device::flex();
    let loss = linear_cross_entropy(
        Tensor::zeros([0, 4], &device),
        tensor(1, [5, 4], &device),
        &[],
        1.0,
        None,
    );
    assert_eq!(loss.dims(), [0]);
}

#[test]
fn frozen_weights_get_no_gradient() {
    let device = Device::flex().autodiff();
    let x = tensor::<2>(1, [3, 4], &device).require_grad();
    let weight = tensor::<2>(2, [5, 4], &device);
    let gradients = linear(x.clone(), weight.clone(), None).sum().backward();
    assert!(x.grad(&gradients).is_some());
    assert!(weight.grad(&gradients).is_none());
}
