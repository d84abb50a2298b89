//! Times of the CPU operations: `cargo run --release -p sysgen-ops --example bench`.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use sysgen_ops::{
    AdamW, AttentionShape, Moments, PagedCache, PagedRun, PagedShape, Segments, adamw_step,
    attention, linear, linear_cross_entropy, reference, rms_norm, rope, swiglu,
};

fn tensor<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The best of some repetitions, in seconds.
fn time<T>(mut run: impl FnMut() -> T) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut repetitions = 0;
    while repetitions < 3 || (begin.elapsed().as_secs_f64() < 0.7 && repetitions < 10_000) {
        let start = Instant::now();
        std::hint::black_box(run());
        best = best.min(start.elapsed().as_secs_f64());
        repetitions += 1;
    }
    best
}

fn report(name: &str, seconds: f64, operations: f64) {
    println!(
        "{name:<46} {:>9.3} ms {:>8.1} GFLOP/s",
        seconds * 1e3,
        operations / seconds / 1e9
    );
}

fn main() {
    let device = Device::flex();
    let graph = device.clone().autodiff();
    let shapes = [
        (2048, 288, 768),
        (1024, 1024, 1024),
        (256, 192, 512),
        (2048, 192, 512),
        (2048, 512, 192),
        (1, 192, 512),
        (1, 4096, 4096),
        (8, 4096, 4096),
        (64, 192, 512),
    ];
    for (rows, input, output) in shapes {
        let name = format!("linear {rows}x{input}x{output}");
        let work = 2.0 * (rows * input * output) as f64;
        let (x, weight) = (
            tensor([rows, input], &device),
            tensor([output, input], &device),
        );
        report(
            &name,
            time(|| linear(x.clone(), weight.clone(), None)),
            work,
        );
        report(
            &format!("{name}, plain Burn"),
            time(|| reference::linear(x.clone(), weight.clone(), None)),
            work,
        );
        if rows > 8 {
            let x = tensor::<2>([rows, input], &graph).require_grad();
            let weight = tensor::<2>([output, input], &graph).require_grad();
            let both = || linear(x.clone(), weight.clone(), None).sum().backward();
            report(&format!("{name}, with gradients"), time(both), 3.0 * work);
        }
    }

    let (batch, length, heads, size) = (8, 256, 6, 32);
    let dim = heads * size;
    let segments = Arc::new(Segments {
        batch,
        time: length,
        ids: vec![1; batch * length],
    });
    let shape = AttentionShape {
        scale: 0.17,
        window: None,
        softcap: None,
    };
    // Half of the scores are masked.
    let work = 2.0 * (batch * heads * length * length * size) as f64;
    let q = tensor::<4>([batch, length, heads, size], &device);
    let forward = || attention(q.clone(), q.clone(), q.clone(), &segments, shape);
    report("attention 8x256x6x32", time(forward), work);
    let plain = || reference::attention(q.clone(), q.clone(), q.clone(), &segments, shape);
    report("attention 8x256x6x32, plain Burn", time(plain), work);
    let q = tensor::<4>([batch, length, heads, size], &graph).require_grad();
    let both = || {
        attention(q.clone(), q.clone(), q.clone(), &segments, shape)
            .sum()
            .backward()
    };
    report(
        "attention 8x256x6x32, with gradients",
        time(both),
        3.5 * work,
    );

    let (positions, vocab) = (2048, 3072);
    let work = 2.0 * (positions * dim * vocab) as f64;
    let targets: Vec<u32> = (0..positions as u32).collect();
    let (hidden, head) = (
        tensor([positions, dim], &device),
        tensor([vocab, dim], &device),
    );
    let forward = || linear_cross_entropy(hidden.clone(), head.clone(), &targets, 1.0, None);
    report("linear_cross_entropy 2048x192x3072", time(forward), work);
    let hidden = tensor::<2>([positions, dim], &graph).require_grad();
    let head = tensor::<2>([vocab, dim], &graph).require_grad();
    let both = || {
        linear_cross_entropy(hidden.clone(), head.clone(), &targets, 1.0, None)
            .sum()
            .backward()
    };
    report(
        "linear_cross_entropy, with gradients",
        time(both),
        3.0 * work,
    );

    let x = tensor::<2>([positions, dim], &graph).require_grad();
    let weight = tensor::<1>([dim], &graph).require_grad();
    let both = || {
        rms_norm(x.clone(), weight.clone(), 1e-6, false)
            .sum()
            .backward()
    };
    report("rms_norm 2048x192, with gradients", time(both), 0.0);
    let gate = tensor::<2>([positions, 512], &graph).require_grad();
    let both = || swiglu(gate.clone(), gate.clone()).sum().backward();
    report("swiglu 2048x512, with gradients", time(both), 0.0);
    let angles = tensor::<3>([batch, length, size / 2], &device);
    let both = || {
        rope(q.clone(), angles.clone(), angles.clone())
            .sum()
            .backward()
    };
    report("rope 8x256x6x32, with gradients", time(both), 0.0);

    let settings = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        rounding_seed: 0,
    };
    let gradient = tensor::<1>([2_000_000], &device);
    let mut state = Some((
        tensor::<1>([2_000_000], &device),
        Moments::zeros_like(&gradient),
    ));
    let step = || {
        let (parameter, moments) = state.take().unwrap();
        state = Some(adamw_step(
            parameter,
            gradient.clone(),
            moments,
            &settings,
            1,
        ));
    };
    report("adamw_step of 2M parameters", time(step), 0.0);

    let paged = PagedShape {
        blocks: length / 16,
        block_size: 16,
        kv_heads: heads,
        head_size: size,
    };
    let blocks: Vec<u32> = (0..paged.blocks as u32).collect();
    let run = |start| PagedRun {
        tokens: length - start,
        start,
        blocks: &blocks,
    };
    let mut cache = PagedCache::new(paged, &device, DType::F32);
    let rows = |count| tensor::<3>([count, heads, size], &device);
    let (all, last) = ([run(0)], [run(length - 1); 32]);
    let (all, last) = (cache.step(&all), cache.step(&last));
    cache.write(rows(length), rows(length), &all);
    let queries = rows(32);
    let decode = || cache.attend(queries.clone(), &last, shape);
    report(
        "paged attention 32 runs of 256",
        time(decode),
        4.0 * (32 * length * dim) as f64,
    );
    let queries = rows(length);
    let prefill = || cache.attend(queries.clone(), &all, shape);
    report(
        "paged attention prefill of 256",
        time(prefill),
        2.0 * (length * length * dim) as f64,
    );
}
