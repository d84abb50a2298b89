//! Every fused operation against its plain reference: values and gradients, at odd shapes.
#![allow(clippy::unwrap_used)]

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod distillation;
mod optimizer;

use burn::tensor::{Device, Tensor};
use common::{close, numbers, tensor};
use sysgen_ops::{
    Adapter, Dropout, LinearWeight, Nf4, add_rows, backward, geglu_tanh, linear,
    linear_cross_entropy, lora_linear, merged, nf4_linear, reference, rms_norm, rope, swiglu,
};

/// Both of `ops` on the same random inputs of these `shapes`: the outputs, and the gradients of all inputs for a loss of the
/// output weighted with fixed random numbers, have to be those of the second, the reference.
fn agree<Op, const D: usize>(
    name: &str,
    shapes: &[&[usize]],
    ops: [Op; 2],
    call: impl Fn(&Op, &[Tensor<1>]) -> Tensor<D>,
) {
    let device = Device::flex().autodiff();
    let [ours, exact] = ops.map(|op| {
        let sizes = shapes.iter().map(|shape| shape.iter().product());
        let inputs: Vec<Tensor<1>> = (1..)
            .zip(sizes)
            .map(|(seed, size)| tensor(seed, [size], &device).require_grad())
            .collect();
        let output = call(&op, &inputs);
        let weights = tensor(99, output.dims(), &device);
        let gradients = (output.clone() * weights).sum().backward();
        let gradient = |input: &Tensor<1>| numbers(input.grad(&gradients).unwrap());
        let results = std::iter::once(numbers(output)).chain(inputs.iter().map(gradient));
        results.collect::<Vec<_>>()
    });
    for (index, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
        close(&format!("{name}, result {index}"), ours, exact);
    }
}

#[test]
fn linear_agrees() {
    type Op = fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>;
    for (rows, input, output) in [(1, 1, 1), (7, 33, 50), (64, 192, 97), (129, 700, 48)] {
        let name = format!("linear {rows}x{input}x{output}");
        let shapes: [&[usize]; 3] = [&[rows, input], &[output, input], &[output]];
        for shapes in [&shapes[..2], &shapes] {
            let ops = [linear as Op, reference::linear];
            agree(&name, shapes, ops, |op, x| {
                let weight = x[1].clone().reshape([output, input]);
                op(
                    x[0].clone().reshape([1, rows, input]),
                    weight,
                    x.get(2).cloned(),
                )
            });
        }
    }
}

#[test]
fn rms_norm_agrees() {
    type Op = fn(Tensor<2>, Tensor<1>, f64, bool) -> Tensor<2>;
    for (rows, dim) in [(1, 1), (7, 33), (129, 288)] {
        for plus_one in [false, true] {
            let ops = [rms_norm as Op, reference::rms_norm];
            agree("rms_norm", &[&[rows, dim], &[dim]], ops, |op, x| {
                op(
                    x[0].clone().reshape([rows, dim]),
                    x[1].clone(),
                    1e-6,
                    plus_one,
                )
            });
        }
    }
}

#[test]
fn rope_agrees() {
    type Op = fn(Tensor<4>, Tensor<3>, Tensor<3>) -> Tensor<4>;
    for (time, head_dim, half) in [(1, 2, 1), (7, 32, 16), (129, 20, 6)] {
        let shape = [2, time, 3, head_dim];
        let angles = tensor::<3>(7, [2, time, half], &Device::flex());
        let ops = [rope as Op, reference::rope];
        agree("rope", &[&shape], ops, |op, x| {
            let (cos, sin) = (angles.clone().cos(), angles.clone().sin());
            op(x[0].clone().reshape(shape), cos, sin)
        });
    }
}

#[test]
fn gated_activations_agree() {
    type Op = fn(Tensor<1>, Tensor<1>) -> Tensor<1>;
    let pairs: [(&str, [Op; 2]); 2] = [
        ("swiglu", [swiglu, reference::swiglu]),
        ("geglu_tanh", [geglu_tanh, reference::geglu_tanh]),
    ];
    for (name, ops) in pairs {
        for len in [1, 129, 40_001] {
            agree(name, &[&[len], &[len]], ops, |op, x| {
                op(x[0].clone().mul_scalar(4.0), x[1].clone())
            });
        }
    }
}

#[test]
fn linear_cross_entropy_agrees() {
    type Op = fn(Tensor<2>, Tensor<2>, &[u32], f32, Option<f32>) -> Tensor<1>;
    let sizes = [(1, 8, 2), (7, 33, 65), (129, 64, 12_000), (600, 40, 500)];
    // Summed, one factor comes back for all positions; alone, each has its own.
    let ways = [
        (None, false),
        (Some(3.0), false),
        (None, true),
        (Some(3.0), true),
    ];
    for (positions, dim, vocab) in sizes {
        let name = format!("linear_cross_entropy {positions}x{dim}x{vocab}");
        let targets: Vec<u32> = (0..positions as u32)
            .map(|i| (i * 7919) % vocab as u32)
            .collect();
        for (softcap, sum) in ways {
            let ops = [linear_cross_entropy as Op, reference::linear_cross_entropy];
            agree(&name, &[&[positions, dim], &[vocab, dim]], ops, |op, x| {
                let hidden = x[0].clone().reshape([positions, dim]);
                let head = x[1].clone().reshape([vocab, dim]);
                let losses = op(hidden, head, &targets, 0.37, softcap);
                if sum { losses.sum() } else { losses }
            });
        }
    }
}

#[test]
fn lora_linear_agrees() {
    type Op = fn(Tensor<2>, &LinearWeight, Option<Tensor<1>>, &Adapter) -> Tensor<2>;
    let sizes = [(1, 8, 5, 1), (7, 33, 65, 4), (129, 96, 40, 16)];
    let kinds = [(false, false), (false, true), (true, false), (true, true)];
    for ((rows, input, output, rank), four_bits) in sizes.into_iter().zip([false, true, false]) {
        let shapes: [&[usize]; 4] = [&[rows, input], &[rank, input], &[output, rank], &[output]];
        for (dora, dropped) in kinds {
            let name = format!(
                "lora_linear {rows}x{input}x{output} rank {rank}, dora {dora}, dropout {dropped}"
            );
            let shapes = &shapes[..if dora { 4 } else { 3 }];
            let ops = [lora_linear as Op, lora_reference];
            agree(&name, shapes, ops, |op, x| {
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
            });
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
fn nf4_linear_is_linear_with_the_weight_made_whole() {
    for (rows, input, output) in [(1, 8, 5), (7, 33, 65), (129, 96, 40)] {
        let shapes: [&[usize]; 2] = [&[rows, input], &[output]];
        let weight = numbers(tensor(8, [output, input], &Device::flex()));
        let weight = Nf4::quantise(&weight, [output, input], &Device::flex());
        type Op<'a> = &'a dyn Fn(Tensor<2>, Option<Tensor<1>>) -> Tensor<2>;
        let whole = |x, bias| reference::linear(x, weight.dequantise().autodiff(), bias);
        let ops: [Op; 2] = [&|x, bias| nf4_linear(x, &weight, bias), &whole];
        let name = format!("nf4_linear {rows}x{input}x{output}");
        agree(&name, &shapes, ops, |op, x| {
            op(x[0].clone().reshape([rows, input]), Some(x[1].clone()))
        });
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
