//! Memory of loss and gradient over a large vocabulary, beyond weights and gradients:
//! `cargo run --release -p sysgen-ops --example loss_memory`.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use sysgen_ops::linear_cross_entropy;

const POSITIONS: usize = 8192;
const VOCAB: usize = 256_000;
const DIM: usize = 256;

/// A line of `/proc/self/status`, in MiB.
fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<f64>()
        .unwrap()
        / 1024.0
}

fn tensor(rows: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..rows * DIM)
        .map(|i| ((i * 7919) % 1009) as f32 / 5045.0 - 0.1)
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, DIM]), device)
}

fn main() {
    let device = Device::flex().autodiff();
    let hidden = tensor(POSITIONS, &device).require_grad();
    let head = tensor(VOCAB, &device).require_grad();
    let targets: Vec<u32> = (0..POSITIONS as u32)
        .map(|i| i * 31 % VOCAB as u32)
        .collect();
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak begins anew
    let before = status("VmRSS");
    let start = std::time::Instant::now();
    let loss = linear_cross_entropy(hidden.clone(), head.clone(), &targets, 1.0, None).sum();
    let gradients = loss.backward();
    let seconds = start.elapsed().as_secs_f64();
    let peak = status("VmHWM") - before;
    let own = (hidden
        .grad(&gradients)
        .unwrap()
        .dims()
        .iter()
        .product::<usize>()
        + head
            .grad(&gradients)
            .unwrap()
            .dims()
            .iter()
            .product::<usize>()) as f64
        * 4.0
        / 1048576.0;
    println!(
        "{POSITIONS} positions, {VOCAB} words, dim {DIM}: {seconds:.1} s; peak {peak:.0} MiB above what was there, \
         {own:.0} MiB of it gradients, {:.0} MiB otherwise (full logits: {:.0} MiB)",
        peak - own,
        (POSITIONS * VOCAB * 4) as f64 / 1048576.0
    );
}
