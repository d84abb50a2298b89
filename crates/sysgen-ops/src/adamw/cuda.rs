//! The AdamW step on a device, in one pass over the tensors, and the squared norm in two stages.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::AdamW;
use crate::launch::{
    addresses, buffer, contiguous, cube_sum, element, elementwise, empty, plane_slots, row_wise,
    vector_size,
};

/// Parameter and moments after the step; what nobody else holds is written in place.
///
/// The moments are f32. A bf16 parameter is rounded up or down with the probability that makes it right on average:
/// rounded to nearest, most steps of a small learning rate would vanish.
pub(super) fn step(
    parameter: CubeTensor,
    gradient: CubeTensor,
    moments: [CubeTensor; 2],
    settings: &AdamW,
    step: u64,
) -> (CubeTensor, [CubeTensor; 2]) {
    let AdamW {
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        rounding_seed,
    } = *settings;
    let gradient = contiguous(gradient);
    let parameter = writable(parameter);
    let [first, second] = moments.map(writable);
    for moment in [&first, &second] {
        assert_eq!(moment.dtype, DType::F32, "adamw_step: moments are f32");
    }
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    let total = parameter.meta.num_elements();
    let tensors = [&parameter, &gradient, &first];
    let vector = vector_size(&tensors, &[total]);
    let (count, units) = elementwise(&parameter.client, total / vector);
    if total > 0 {
        // SAFETY: units past the last vector return; `writable` made sure that nobody else sees the change.
        unsafe {
            update::launch_unchecked(
                &parameter.client,
                count,
                units,
                addresses(&tensors),
                vector,
                buffer(&parameter),
                buffer(&gradient),
                buffer(&first),
                buffer(&second),
                total / vector,
                (1.0 - learning_rate * weight_decay) as f32,
                (1.0 - beta1) as f32,
                beta2 as f32,
                (1.0 - beta2) as f32,
                correction2.sqrt() as f32,
                (learning_rate / correction1) as f32,
                epsilon as f32,
                rounding_seed,
                parameter.dtype == DType::BF16,
                [element(&parameter), element(&gradient)],
            );
        }
    }
    (parameter, [first, second])
}

/// `Σ x²` of some tensors on one device: in f32 over the numbers of a cube, in f64 over the cubes. They are read back
/// together, so that the device is waited for once.
pub(super) struct SquaredNorms {
    /// [`CUBES`] numbers for each tensor.
    partial: CubeTensor,
    /// Of these, how many each has.
    rows: Vec<usize>,
}

/// Cubes of a tensor, at most: what is read back stays small.
const CUBES: usize = 1024;

impl SquaredNorms {
    /// Room for those of `count` tensors on the device of `like`.
    pub(super) fn new(like: &CubeTensor, count: usize) -> Self {
        Self {
            partial: empty(like, [count * CUBES], DType::F32),
            rows: Vec::with_capacity(count),
        }
    }

    /// The next tensor's.
    pub(super) fn add(&mut self, tensor: CubeTensor) {
        let place = self.rows.len() * CUBES;
        self.rows.push(squares(tensor, &self.partial, place));
    }

    /// All of them, in the order in which they came.
    pub(super) fn read(self) -> Vec<f64> {
        let sums = crate::device::plain::<1>(self.partial).into_data();
        let sums: Vec<f64> = sums.iter::<f64>().collect();
        let sums = sums.chunks(CUBES).zip(self.rows);
        sums.map(|(sums, rows)| sums[..rows].iter().sum()).collect()
    }
}

/// Writes the sums of the cubes of a tensor to `partial` from `place` on; says how many there are.
fn squares(tensor: CubeTensor, partial: &CubeTensor, place: usize) -> usize {
    let x = contiguous(tensor);
    let total = x.meta.num_elements();
    if total == 0 {
        return 0;
    }
    let vector = vector_size(&[&x], &[total]);
    let width = (total / vector).div_ceil(CUBES);
    let rows = (total / vector).div_ceil(width);
    let (count, units) = row_wise(&x.client, rows, width);
    // SAFETY: a cube reads one of `rows` ranges, which end at `total`; `partial` has room for CUBES numbers from `place` on.
    unsafe {
        square::launch_unchecked(
            &x.client,
            count,
            units,
            addresses(&[&x]),
            vector,
            buffer(&x),
            buffer(partial),
            place,
            rows,
            width,
            total / vector,
            element(&x),
        );
    }
    rows
}

/// The tensor in row-major order, and in nobody else's hands.
pub(super) fn writable(tensor: CubeTensor) -> CubeTensor {
    let tensor = contiguous(tensor);
    if tensor.can_mut() {
        tensor
    } else {
        burn_cubecl::kernel::copy_contiguous(tensor)
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn update<P: Float, G: Float, N: Size>(
    parameter: &mut [Vector<P, N>],
    gradient: &[Vector<G, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    total: usize,
    keep: f32,
    blend: f32,
    old: f32,
    new: f32,
    root_correction: f32,
    size: f32,
    epsilon: f32,
    seed: u32,
    #[comptime] stochastic: bool,
    #[define(P, G)] _types: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i >= total {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(gradient[i]);
    let m = first[i] + (g - first[i]) * Vector::new(blend);
    let v = second[i] * Vector::new(old) + g * g * Vector::new(new);
    first[i] = m;
    second[i] = v;
    let root = v.sqrt() / Vector::new(root_correction) + Vector::new(epsilon);
    let p = Vector::<f32, N>::cast_from(parameter[i]);
    let mut p = p * Vector::new(keep) - Vector::new(size) * (m / root);
    if stochastic {
        #[unroll]
        for lane in 0..N::value() {
            let place = (i * N::value() + lane) as u32;
            p.insert(lane, rounded_at(p.extract(lane), seed, place));
        }
    }
    parameter[i] = Vector::cast_from(p);
}

/// `x` as one of the two bf16 numbers around it, by the random bits of its place in the parameter.
#[cube]
pub(super) fn rounded_at(x: f32, seed: u32, place: u32) -> f32 {
    rounded(x, hash(seed, place))
}

/// `x` as one of the two bf16 numbers around it: adding 16 random bits to those that are cut off makes the probability
/// of the upper one the distance from the lower one.
#[cube]
fn rounded(x: f32, noise: u32) -> f32 {
    let bits = u32::reinterpret(x);
    let mut sum = bits + (noise & 0xffff);
    // The sum could make an infinity of a NaN, so that one is only cut off, and stays one.
    if (bits & 0x7fff_ffff) > 0x7f80_0000 {
        sum = bits | 0x0040_0000;
    }
    f32::reinterpret(sum & 0xffff_0000)
}

/// Random bits of an element in a step, by counter: the same on every device and in every run
/// (C. Wellons' "lowbias32" finaliser).
#[cube]
fn hash(seed: u32, index: u32) -> u32 {
    let mut bits = index ^ (seed * 0x9e37_79b9);
    bits = (bits ^ (bits >> 16)) * 0x7feb_352d;
    bits = (bits ^ (bits >> 15)) * 0x846c_a68b;
    bits ^ (bits >> 16)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn square<F: Float, N: Size>(
    x: &[Vector<F, N>],
    partial: &mut [f32],
    place: usize,
    rows: usize,
    width: usize,
    total: usize,
    #[define(F)] _type: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut slots = plane_slots();
    let last = min((row + 1) * width, total);
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut i = row * width + UNIT_POS as usize;
    while i < last {
        let x = Vector::<f32, N>::cast_from(x[i]);
        sum += x * x;
        i += CUBE_DIM as usize;
    }
    let sum = cube_sum(sum.vector_sum(), &mut slots);
    if UNIT_POS == 0 {
        partial[place + row] = sum;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::{Device, DeviceKind, DeviceType, Tensor, bf16};

    use super::super::rounding::Kept;
    use super::*;
    use crate::device::{plain, primitive};
    use crate::launch::empty_like;

    #[cube(launch_unchecked)]
    fn round_all(x: &[f32], out: &mut [f32], total: usize, seed: u32) {
        if ABSOLUTE_POS >= total {
            terminate!();
        }
        out[ABSOLUTE_POS] = rounded_at(x[ABSOLUTE_POS], seed, ABSOLUTE_POS as u32);
    }

    /// What the kernel makes of each number at its place.
    fn rounded_on(device: &Device, values: &[f32], seed: u32) -> Vec<f32> {
        let x = primitive(Tensor::<1>::from_data(values, device));
        let out = empty_like(&x);
        let (count, units) = elementwise(&x.client, values.len());
        // SAFETY: units past the last number return.
        unsafe {
            round_all::launch_unchecked(
                &x.client,
                count,
                units,
                buffer(&x),
                buffer(&out),
                values.len(),
                seed,
            );
        }
        plain::<1>(out).into_data().try_to_vec().expect("f32")
    }

    fn device() -> Option<Device> {
        if Device::enumerate(DeviceType::Wgpu).is_empty() {
            eprintln!("SKIPPED: no Vulkan device, so no kernel was run");
            return None;
        }
        Some(Device::wgpu(DeviceKind::DefaultDevice))
    }

    /// 1e5 times, so that the mean is known to a thousandth of the distance of two bf16 numbers.
    #[test]
    fn rounding_is_right_on_average() {
        let Some(device) = device() else { return };
        let total = 100_000;
        for (value, low, high) in [(1.002f32, 1.0, 1.007_812_5), (-3.01, -3.015_625, -3.0)] {
            for seed in [1, 2] {
                let out = rounded_on(&device, &vec![value; total], seed);
                assert!(
                    out.iter().all(|&x| x == low || x == high),
                    "{value} to {:?}",
                    &out[..9]
                );
                let mean = out.iter().map(|&x| f64::from(x)).sum::<f64>() / total as f64;
                let error = (mean - f64::from(value)).abs() / f64::from(high - low);
                assert!(error < 5e-3, "{value}: mean {mean}");
            }
        }
    }

    #[test]
    fn rounding_has_the_bits_of_the_cpu() {
        let Some(device) = device() else { return };
        let mut values: Vec<f32> = (0..70_001u32)
            .map(|i| {
                let part = f64::from(i.wrapping_mul(0x9e37_79b9)) / f64::from(u32::MAX) - 0.5;
                (part * 10f64.powi(i as i32 % 40 - 20)) as f32
            })
            .collect();
        values.extend([0.0, -0.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY]);
        for seed in [0, 7, 0x8000_0001] {
            let ours = rounded_on(&device, &values, seed);
            let mut exact = vec![bf16::ZERO; values.len()];
            Kept::narrow(&values, seed, 0, &mut exact);
            for ((x, ours), exact) in values.iter().zip(&ours).zip(exact) {
                assert_eq!(ours.to_bits(), exact.to_f32().to_bits(), "{x}");
            }
        }
        assert!(rounded_on(&device, &[f32::NAN], 7)[0].is_nan());
    }
}
