//! A NaN that goes in has to come out, where the CPU has it: a trainer that looks for it must not be told a number.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Bench, numbers};
use crate::{AttentionShape, PagedCache, PagedRun, PagedShape, Segments};

impl Bench {
    /// Notes whether both have their NaNs, of which there is at least one, at the same places.
    fn record_places(&mut self, case: String, ours: &[f32], exact: &[f32]) {
        let places = |numbers: &[f32]| -> Vec<f32> {
            numbers.iter().map(|x| f32::from(x.is_nan())).collect()
        };
        let (ours, exact) = (places(ours), places(exact));
        assert!(exact.contains(&1.0), "{case}: the CPU has no NaN");
        self.record(case, &ours, &exact);
    }
}

/// `x` with a NaN at `place`.
fn with_nan(x: &Tensor<1>, place: usize) -> Tensor<1> {
    let mut ones = vec![1.0f32; x.dims()[0]];
    ones[place] = f32::NAN;
    let ones = Tensor::<1>::from_data(&ones[..], &x.device().inner()).cast(x.dtype());
    x.clone() * Tensor::from_inner(ones)
}

pub(super) fn cross_entropy(bench: &mut Bench, softcap: Option<f32>) {
    let (positions, dim, vocab) = (7, 33, 65);
    let targets: Vec<u32> = (0..positions as u32).collect();
    let results = bench.results(&[&[positions, dim], &[vocab, dim]], |x| {
        crate::linear_cross_entropy(
            with_nan(&x[0], 3 * dim + 5).reshape([positions, dim]),
            x[1].clone().reshape([vocab, dim]),
            &targets,
            0.37,
            softcap,
        )
    });
    for (result, [ours, exact]) in results {
        let case = format!("a NaN, softcap {softcap:?}: {result}");
        bench.record_places(case, &ours, &exact);
    }
}

/// In a key, so that every later query of its segment meets it.
pub(super) fn attention(bench: &mut Bench, softcap: Option<f32>) {
    let (time, heads, kv_heads, size) = (64, 4, 2, 32);
    let segments = Arc::new(Segments {
        batch: 1,
        time,
        ids: (0..time).map(|i| if i < 40 { 1 } else { 2 }).collect(),
    });
    let shape = AttentionShape {
        scale: 1.0 / (size as f32).sqrt(),
        window: None,
        softcap,
    };
    let shapes: [&[usize]; 3] = [
        &[time, heads, size],
        &[time, kv_heads, size],
        &[time, kv_heads, size],
    ];
    let results = bench.results(&shapes, |x| {
        crate::attention(
            x[0].clone().reshape([1, time, heads, size]),
            with_nan(&x[1], (20 * kv_heads + 1) * size).reshape([1, time, kv_heads, size]),
            x[2].clone().reshape([1, time, kv_heads, size]),
            &segments,
            shape,
        )
    });
    for (result, [ours, exact]) in results {
        let case = format!("a NaN, softcap {softcap:?}: {result}");
        bench.record_places(case, &ours, &exact);
    }
}

pub(super) fn paged_attention(bench: &mut Bench, softcap: Option<f32>) {
    let (tokens, heads, kv_heads, size) = (40, 4, 2, 32);
    let shape = AttentionShape {
        scale: 1.0 / (size as f32).sqrt(),
        window: None,
        softcap,
    };
    let attended = |device: &Device, dtype: DType| {
        let paged = PagedShape {
            blocks: 3,
            block_size: 16,
            kv_heads,
            head_size: size,
        };
        let mut cache = PagedCache::new(paged, device, dtype);
        let run = PagedRun {
            tokens,
            start: 0,
            blocks: &[2, 0, 1],
        };
        let rows = |seed, heads| bench.tensor::<3>(seed, [tokens, heads, size], device, dtype);
        let mut keys = numbers(rows(1, kv_heads));
        keys[(20 * kv_heads + 1) * size] = f32::NAN;
        let keys = TensorData::new(keys, [tokens, kv_heads, size]).convert_dtype(dtype);
        let keys = Tensor::from_data(keys, (device, dtype));
        let runs = [run];
        let step = cache.step(&runs);
        cache.write(keys, rows(2, kv_heads), &step);
        numbers(cache.attend(rows(3, heads), &step, shape))
    };
    let ours = attended(&bench.device, bench.dtype);
    let exact = attended(&Device::flex(), DType::F32);
    bench.record_places(format!("a NaN, softcap {softcap:?}"), &ours, &exact);
}
