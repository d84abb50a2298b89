//! Paged attention on a device: a cube serves one position and the query heads that share a kv head.
//! Its planes take keys in turn, each with a running softmax of its own, and are merged at the end.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{PagedRun, PagedShape};
use crate::attention::AttentionShape;
use crate::launch::{
    addresses, buffer, contiguous, element, elementwise, empty_like, grid, plane_size,
    softcapped_number, upload, vector_size,
};

/// Numbers of a position in [`Positions::numbers`].
pub(crate) const NUMBERS: usize = 3;
/// The window of a position that sees all before it.
const NO_WINDOW: usize = i32::MAX as usize;

/// Planes of a cube, at most.
const PLANES: usize = 8;
/// Bytes of a cube's shared memory that the planes' sums may fill; every device has as much.
const SHARED_BYTES: usize = 16 << 10;
/// Below every score; WGSL has no infinity.
const LOWEST: f64 = -3e38;

/// What the kernels of all layers know of the new positions.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    /// `[positions, NUMBERS]`: the place of the first head in the cache; how many keys of its text a position sees if no
    /// window ends them; where its text's blocks begin in `blocks`.
    pub(crate) numbers: CubeTensor,
    /// The blocks of the texts, one after the other.
    pub(crate) blocks: CubeTensor,
}

impl Positions {
    /// Those of `runs`, on the device of `other`.
    pub(super) fn uploaded(other: &CubeTensor, shape: PagedShape, runs: &[PagedRun]) -> Positions {
        let (mut numbers, mut blocks) = (Vec::new(), Vec::new());
        push_positions(shape, runs, &mut numbers, &mut blocks);
        Positions {
            numbers: upload(other, &numbers),
            blocks: upload(other, &blocks),
        }
    }
}

/// Appends what [`Positions`] holds of `runs`.
pub(crate) fn push_positions(
    shape: PagedShape,
    runs: &[PagedRun],
    numbers: &mut Vec<u32>,
    blocks: &mut Vec<u32>,
) {
    let PagedShape {
        block_size,
        kv_heads,
        ..
    } = shape;
    for run in runs {
        let end = run.start + run.tokens;
        for position in run.start..end {
            let block = run.blocks[position / block_size] as usize;
            let place = block * kv_heads * block_size + position % block_size;
            numbers.extend([place, position + 1, blocks.len()].map(|number| number as u32));
        }
        blocks.extend(&run.blocks[..end.div_ceil(block_size)]);
    }
}

/// Writes new positions; the cache's own memory is changed.
pub(super) fn write(
    shape: PagedShape,
    held: [&CubeTensor; 2],
    new: [CubeTensor; 2],
    positions: &Positions,
) {
    let PagedShape {
        block_size,
        kv_heads,
        head_size,
        ..
    } = shape;
    for (held, new) in held.into_iter().zip(new) {
        let new = contiguous(new);
        let tensors = [held, &new];
        let vector = vector_size(&tensors, &[head_size]);
        let total = new.meta.num_elements() / vector;
        let (count, units) = elementwise(&new.client, total);
        if total > 0 {
            // SAFETY: units past the last vector return; the places were checked against the cache.
            unsafe {
                place_rows::launch_unchecked(
                    &new.client,
                    count,
                    units,
                    addresses(&tensors),
                    vector,
                    buffer(&new),
                    buffer(&positions.numbers),
                    buffer(held),
                    total,
                    kv_heads,
                    block_size,
                    head_size / vector,
                    element(&new),
                );
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn place_rows<F: Float, N: Size>(
    new: &[Vector<F, N>],
    positions: &[u32],
    held: &mut [Vector<F, N>],
    total: usize,
    kv_heads: usize,
    block_size: usize,
    width: usize,
    #[define(F)] _type: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (head, i) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    let place = positions[NUMBERS * (head / kv_heads)] as usize + head % kv_heads * block_size;
    held[place * width + i] = new[ABSOLUTE_POS];
}

pub(super) fn attend(
    paged: PagedShape,
    q: CubeTensor,
    [keys, values]: [&CubeTensor; 2],
    positions: &Positions,
    shape: AttentionShape,
) -> CubeTensor {
    let PagedShape {
        block_size,
        kv_heads,
        head_size: size,
        ..
    } = paged;
    let q = contiguous(q);
    let [count, heads, _] = q.meta.shape().dims();
    let out = empty_like(&q);
    let group = heads / kv_heads;
    let lanes = plane_size(&q.client).expect(
        "paged attention divides a head among the units of a plane, and this device's planes differ in size",
    );
    let planes = (SHARED_BYTES / (group * (size + 2) * size_of::<f32>())).clamp(1, PLANES);
    // A plane reads a key at once where the head is wide enough.
    let tensors = [&q, keys, values];
    let mut vector = vector_size(&tensors, &[size]);
    while vector > 1 && vector * lanes > size {
        vector /= 2;
    }
    // SAFETY: a cube serves one of `count · kv_heads`; the runs were checked against the cache.
    unsafe {
        look::launch_unchecked(
            &q.client,
            grid(&q.client, count * kv_heads),
            CubeDim::new_1d((planes * lanes) as u32),
            addresses(&tensors),
            vector,
            buffer(&q),
            buffer(keys),
            buffer(values),
            buffer(&positions.numbers),
            buffer(&positions.blocks),
            buffer(&out),
            count * kv_heads,
            kv_heads,
            block_size,
            shape.window.unwrap_or(NO_WINDOW).min(NO_WINDOW),
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
fn look<F: Float, N: Size>(
    q: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    positions: &[u32],
    blocks: &[u32],
    out: &mut [Vector<F, N>],
    total: usize,
    kv_heads: usize,
    block_size: usize,
    window: usize,
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

    let end = positions[NUMBERS * row + 1] as usize;
    let listed = positions[NUMBERS * row + 2] as usize;
    let mut j = PLANE_POS as usize;
    if end > window {
        j += end - window;
    }
    while j < end {
        let block = blocks[listed + j / block_size] as usize;
        let start = ((block * kv_heads + kv_head) * block_size + j % block_size) * width;
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
            let score = softcapped_number(plane_sum(product.vector_sum()), cap, capped);
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
