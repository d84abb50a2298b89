//! Attention, over whole rows and over the blocks of a cache.

use std::sync::Arc;

use crate::common::{close, numbers, tensor};
use burn::tensor::{DType, Device, Tensor};
use sysgen_ops::{
    AttentionShape, PagedCache, PagedRun, PagedShape, Segments, attention, reference,
};

use crate::agree;

type Op = fn(Tensor<4>, Tensor<4>, Tensor<4>, &Arc<Segments>, AttentionShape) -> Tensor<4>;

/// Two rows of segments: one with several (of one, two and many positions) and padding, one the whole row or all padding.
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

#[test]
fn attention_agrees() {
    for (time, heads, kv_heads, size) in
        [(1, 1, 1, 4), (7, 4, 2, 32), (64, 3, 1, 20), (129, 4, 4, 64)]
    {
        for second_row in [0, 5] {
            for (window, softcap) in [(None, None), (Some(1), None), (Some(50), Some(2.0))] {
                let segments = Arc::new(segments(time, second_row));
                let shape = AttentionShape {
                    scale: 1.0 / (size as f32).sqrt(),
                    window,
                    softcap,
                };
                let q: &[usize] = &[2, time, heads, size];
                let kv: &[usize] = &[2, time, kv_heads, size];
                let name = format!("attention time {time} window {window:?}");
                let ops: [Op; 2] = [attention, |q, k, v, segments, shape| {
                    reference::attention(q, k, v, segments, shape)
                }];
                agree(&name, &[q, kv, kv], ops, |op, x| {
                    let rows = |index: usize, heads: usize| {
                        x[index].clone().reshape([2, time, heads, size])
                    };
                    let (q, k, v) = (rows(0, heads), rows(1, kv_heads), rows(2, kv_heads));
                    op(q, k, v, &segments, shape)
                });
            }
        }
    }
}

#[test]
fn paged_attention_is_attention_over_the_blocks() {
    let device = Device::flex();
    let time = 70;
    for (heads, kv_heads, size) in [(4, 2, 20), (3, 3, 64), (6, 1, 90)] {
        for (window, softcap) in [(None, None), (Some(1), None), (Some(30), Some(2.0))] {
            let shape = AttentionShape {
                scale: 0.3,
                window,
                softcap,
            };
            let q = tensor::<4>(1, [1, time, heads, size], &device);
            let k = tensor::<4>(2, [1, time, kv_heads, size], &device);
            let v = tensor::<4>(3, [1, time, kv_heads, size], &device);
            let segments = Segments {
                batch: 1,
                time,
                ids: vec![1; time],
            };
            let exact = numbers(reference::attention(
                q.clone(),
                k.clone(),
                v.clone(),
                &segments,
                shape,
            ));
            // Every part is written and attends before the next one comes.
            let in_parts = |block_size: usize, blocks: &[u32], parts: &[usize]| {
                let paged = PagedShape {
                    blocks: 9,
                    block_size,
                    kv_heads,
                    head_size: size,
                };
                let mut cache = PagedCache::new(paged, &device, DType::F32);
                let (mut start, mut out) = (0, Vec::new());
                for &tokens in parts {
                    let part = |x: &Tensor<4>| {
                        let heads = x.dims()[2];
                        x.clone()
                            .narrow(1, start, tokens)
                            .reshape([tokens, heads, size])
                    };
                    let run = PagedRun {
                        tokens,
                        start,
                        blocks,
                    };
                    let runs = [run];
                    let step = cache.step(&runs);
                    cache.write(part(&k), part(&v), &step);
                    out.extend(numbers(cache.attend(part(&q), &step, shape)));
                    start += tokens;
                }
                out
            };
            let whole = in_parts(16, &[3, 0, 8, 1, 5], &[time]);
            close("paged_attention", &whole, &exact);
            // The same bits, whatever the blocks and the parts.
            assert_eq!(whole, in_parts(16, &[0, 1, 2, 3, 4], &[9, 1, 37, 1, 1, 21]));
            assert_eq!(whole, in_parts(48, &[4, 2], &[30, 40]));
            assert_eq!(whole, in_parts(80, &[7], &[1; 70]));
        }
    }
}

#[test]
fn texts_that_share_blocks_attend_as_if_each_had_its_own() {
    let device = Device::flex();
    let (heads, size) = (2, 24);
    let shape = AttentionShape {
        scale: 0.2,
        window: None,
        softcap: None,
    };
    let paged = PagedShape {
        blocks: 6,
        block_size: 16,
        kv_heads: heads,
        head_size: size,
    };
    let rows = |seed, tokens| tensor::<3>(seed, [tokens, heads, size], &device);
    let fill = |blocks: [&'static [u32]; 2], shared: bool| {
        let mut cache = PagedCache::new(paged, &device, DType::F32);
        let run = |text: usize, start, tokens| PagedRun {
            tokens,
            start,
            blocks: blocks[text],
        };
        let prefixes = if shared { 1 } else { 2 };
        for text in 0..prefixes {
            let runs = [run(text, 0, 16)];
            let step = cache.step(&runs);
            cache.write(rows(1, 16), rows(2, 16), &step);
        }
        let ends = [run(0, 16, 3), run(1, 16, 5)];
        let ends = cache.step(&ends);
        cache.write(rows(3, 8), rows(4, 8), &ends);
        numbers(cache.attend(rows(5, 8), &ends, shape))
    };
    assert_eq!(
        fill([&[4, 1], &[4, 3]], true),
        fill([&[0, 1], &[2, 5]], false)
    );
}
