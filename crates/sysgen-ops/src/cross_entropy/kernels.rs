//! The kernels that a slice of the vocabulary goes through, in f32.

use cubecl::prelude::*;

use crate::launch::{cube_max, cube_sum, plane_slots, softcapped};

/// Below every logit; WGSL has no infinity.
const LOWEST: f64 = -3e38;

/// Adds a slice's logits to what is known of each position: `state` is the maxima, the sums and the targets' logits.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn take_in<N: Size>(
    logits: &[Vector<f32, N>],
    targets: &[u32],
    state: &mut [f32],
    positions: usize,
    first_word: usize,
    width: usize,
    cap: f32,
    #[comptime] capped: bool,
) {
    let row = CUBE_POS;
    if row >= positions {
        terminate!();
    }
    let mut slots = plane_slots();
    let start = row * width;
    let mut largest = f32::new(LOWEST);
    let mut i = UNIT_POS as usize;
    while i < width {
        let l = softcapped(logits[start + i], cap, capped);
        #[unroll]
        for lane in 0..N::value() {
            largest = max(largest, l.extract(lane));
        }
        i += CUBE_DIM as usize;
    }
    let mut known = f32::new(LOWEST);
    if first_word > 0 {
        known = state[row];
    }
    let largest = max(known, cube_max(largest, &mut slots));
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let l = softcapped(logits[start + i], cap, capped);
        sum += (l - Vector::new(largest)).exp();
        i += CUBE_DIM as usize;
    }
    let sum = cube_sum(sum.vector_sum(), &mut slots);
    if UNIT_POS == 0 {
        let mut before = 0.0f32;
        if first_word > 0 {
            before = state[positions + row] * (known - largest).exp();
        }
        state[row] = largest;
        state[positions + row] = before + sum;
        let target = targets[row] as usize;
        if target >= first_word && target - first_word < width * N::value() {
            let word = target - first_word;
            let l = softcapped(logits[start + word / N::value()], cap, capped);
            state[2 * positions + row] = l.extract_dynamic(word % N::value());
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn finish(state: &[f32], losses: &mut [f32], sums: &mut [f32], positions: usize) {
    let row = ABSOLUTE_POS;
    if row >= positions {
        terminate!();
    }
    let sum = state[row] + state[positions + row].ln();
    sums[row] = sum;
    losses[row] = sum - state[2 * positions + row];
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn differentiate<G: Float, F: Float, N: Size>(
    logits: &[Vector<f32, N>],
    targets: &[u32],
    sums: &[f32],
    gradient: &[G],
    d_logits: &mut [Vector<F, N>],
    total: usize,
    first_word: usize,
    width: usize,
    cap: f32,
    #[comptime] capped: bool,
    #[define(G, F)] _types: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i >= total {
        terminate!();
    }
    let row = i / width;
    let word = first_word + i % width * N::value();
    let target = targets[row] as usize;
    let l = softcapped(logits[i], cap, capped);
    let mut d = (l - Vector::new(sums[row])).exp();
    #[unroll]
    for lane in 0..N::value() {
        if word + lane == target {
            d.insert(lane, d.extract(lane) - 1.0);
        }
    }
    d *= Vector::new(f32::cast_from(gradient[row]));
    if capped {
        let t = l / Vector::new(cap);
        d *= Vector::new(1.0) - t * t;
    }
    d_logits[i] = Vector::cast_from(d);
}
