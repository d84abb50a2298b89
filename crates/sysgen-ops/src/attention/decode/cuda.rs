//! Decoding attention on a device: a cube serves one position and the query heads that share a kv head.
//! Its planes take keys in turn, each with a running softmax of its own, and are merged at the end.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::attention::AttentionShape;
use crate::launch::{
    addresses, buffer, contiguous, element, empty_like, grid, upload, vector_size,
};

/// Planes of a cube, at most.
const PLANES: usize = 8;
/// Bytes of a cube's shared memory that the planes' sums may fill; every device has as much.
const SHARED_BYTES: usize = 16 << 10;
/// Below every score; WGSL has no infinity.
const LOWEST: f64 = -3e38;

/// `ranges`: where in the rows of the cache, `[sequences · capacity]`, each position's keys begin and end.
pub(super) fn attention(
    q: CubeTensor,
    keys: CubeTensor,
    values: CubeTensor,
    ranges: &[u32],
    shape: AttentionShape,
) -> CubeTensor {
    let q = contiguous(q);
    let (keys, values) = match (strides(&keys), strides(&values)) {
        (Some(keys_at), Some(values_at)) if keys_at == values_at => (keys, values),
        _ => (contiguous(keys), contiguous(values)),
    };
    let [position_stride, head_stride] = strides(&keys).expect("contiguous at least");
    let ranges = upload(&q, ranges);
    let [_, _, kv_heads, _] = keys.meta.shape().dims();
    let [count, heads, size] = q.meta.shape().dims();
    let out = empty_like(&q);
    let group = heads / kv_heads;
    let lanes = q.client.properties().hardware.plane_size_max as usize;
    let planes = (SHARED_BYTES / (group * (size + 2) * size_of::<f32>())).clamp(1, PLANES);
    // A plane reads a key at once where the head is wide enough.
    let tensors = [&q, &keys, &values];
    let mut vector = vector_size(&tensors, &[size, position_stride, head_stride]);
    while vector > 1 && vector * lanes > size {
        vector /= 2;
    }
    // SAFETY: a cube serves one of `count · kv_heads`; `ranges` were checked against the cache.
    unsafe {
        attend::launch_unchecked(
            &q.client,
            grid(&q.client, count * kv_heads),
            CubeDim::new_1d((planes * lanes) as u32),
            addresses(&tensors),
            vector,
            buffer(&q),
            buffer(&keys),
            buffer(&values),
            buffer(&ranges),
            buffer(&out),
            count * kv_heads,
            kv_heads,
            position_stride / vector,
            head_stride / vector,
            shape.scale,
            shape.softcap.unwrap_or(1.0),
            Layout {
                group,
                width: size / vector,
                lanes,
                planes,
                capped: shape.softcap.is_some(),
            },
            element(&q),
        );
    }
    out
}

/// How far apart positions and heads of a cache lie, if its sequences follow each other without a gap. Padded rows, as
/// CUDA tensors often have, need no copy then.
fn strides(cache: &CubeTensor) -> Option<[usize; 2]> {
    let [_, capacity, kv_heads, size] = cache.meta.shape().dims();
    if cache.is_contiguous() {
        return Some([kv_heads * size, size]);
    }
    match cache.meta.strides()[..] {
        [sequence, position, head, 1] if sequence == capacity * position => Some([position, head]),
        _ => None,
    }
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Layout {
    /// Query heads of a kv head.
    group: usize,
    /// Vectors of a head.
    width: usize,
    lanes: usize,
    planes: usize,
    capped: bool,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn attend<F: Float, N: Size>(
    q: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    ranges: &[u32],
    out: &mut [Vector<F, N>],
    total: usize,
    kv_heads: usize,
    position_stride: usize,
    head_stride: usize,
    scale: f32,
    cap: f32,
    #[comptime] layout: Layout,
    #[define(F)] _type: ElemType,
) {
    if CUBE_POS >= total {
        terminate!();
    }
    let Layout {
        group,
        width,
        lanes,
        planes,
        capped,
    } = comptime!(layout);
    // Vectors of a head that a lane holds.
    let share = comptime!(width.div_ceil(lanes));
    let (row, kv_head) = (CUBE_POS / kv_heads, CUBE_POS % kv_heads);
    let lane = UNIT_POS_PLANE as usize;
    let first_head = (row * kv_heads + kv_head) * group * width;

    let mut queries = Array::<Vector<f32, N>>::new(group * share);
    let mut sums = Array::<Vector<f32, N>>::new(group * share);
    let mut largest = Array::<f32>::new(group);
    let mut totals = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        largest[head] = f32::new(LOWEST);
        totals[head] = 0.0f32;
        #[unroll]
        for part in 0..share {
            let i = part * lanes + lane;
            let mut query = Vector::<f32, N>::new(0.0);
            if i < width {
                query = Vector::cast_from(q[first_head + head * width + i]);
            }
            queries[head * share + part] = query * Vector::new(scale);
            sums[head * share + part] = Vector::new(0.0);
        }
    }

    let end = ranges[2 * row + 1] as usize;
    let mut j = ranges[2 * row] as usize + PLANE_POS as usize;
    while j < end {
        let start = j * position_stride + kv_head * head_stride;
        let mut key = Array::<Vector<f32, N>>::new(share);
        let mut value = Array::<Vector<f32, N>>::new(share);
        #[unroll]
        for part in 0..share {
            let i = part * lanes + lane;
            key[part] = Vector::new(0.0);
            value[part] = Vector::new(0.0);
            if i < width {
                key[part] = Vector::cast_from(keys[start + i]);
                value[part] = Vector::cast_from(values[start + i]);
            }
        }
        #[unroll]
        for head in 0..group {
            let mut product = Vector::<f32, N>::new(0.0);
            #[unroll]
            for part in 0..share {
                product += queries[head * share + part] * key[part];
            }
            let mut score = plane_sum(product.vector_sum());
            if capped {
                score = cap * min(max(score / cap, -15.0), 15.0).tanh();
            }
            let before = largest[head];
            let now = max(before, score);
            let (fade, weight) = ((before - now).exp(), (score - now).exp());
            largest[head] = now;
            totals[head] = totals[head] * fade + weight;
            #[unroll]
            for part in 0..share {
                let index = head * share + part;
                sums[index] = sums[index] * Vector::new(fade) + value[part] * Vector::new(weight);
            }
        }
        j += planes;
    }

    let mut all_largest = Shared::<[f32]>::new_slice(planes * group);
    let mut all_totals = Shared::<[f32]>::new_slice(planes * group);
    let mut all_sums = Shared::<[Vector<f32, N>]>::new_slice(planes * group * width);
    let plane = PLANE_POS as usize;
    #[unroll]
    for head in 0..group {
        let slot = plane * group + head;
        if lane == 0 {
            all_largest[slot] = largest[head];
            all_totals[slot] = totals[head];
        }
        #[unroll]
        for part in 0..share {
            let i = part * lanes + lane;
            if i < width {
                all_sums[slot * width + i] = sums[head * share + part];
            }
        }
    }
    sync_cube();

    let mut i = UNIT_POS as usize;
    while i < group * width {
        let head = i / width;
        let mut largest = f32::new(LOWEST);
        #[unroll]
        for plane in 0..planes {
            largest = max(largest, all_largest[plane * group + head]);
        }
        let mut total = 0.0f32;
        let mut sum = Vector::<f32, N>::new(0.0);
        #[unroll]
        for plane in 0..planes {
            let slot = plane * group + head;
            let weight = (all_largest[slot] - largest).exp();
            total += all_totals[slot] * weight;
            sum += all_sums[slot * width + i % width] * Vector::new(weight);
        }
        out[first_head + i] = Vector::cast_from(sum / Vector::new(total));
        i += CUBE_DIM as usize;
    }
}
