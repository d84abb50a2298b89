//! `dropout` on a device: the mask is made where it is used, with the CPU's random bits.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Dropout;
use crate::device::Kernels;
use crate::launch::{addresses, buffer, contiguous, element, elementwise, empty_like};

/// The multipliers of SplitMix64, upper and lower half.
const STEP: [u32; 2] = [0x9e37_79b9, 0x7f4a_7c15];
const FIRST: [u32; 2] = [0xbf58_476d, 0x1ce4_e5b9];
const SECOND: [u32; 2] = [0x94d0_49bb, 0x1331_11eb];

impl Kernels for Dropout {
    fn forward(&self, inputs: Vec<CubeTensor>, _wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [x] = inputs.try_into().expect("one input");
        (self.masked(x), vec![])
    }

    fn backward(
        &self,
        _saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        vec![wanted[0].then(|| self.masked(gradient))]
    }
}

impl Dropout {
    fn masked(&self, x: CubeTensor) -> CubeTensor {
        let x = contiguous(x);
        let y = empty_like(&x);
        let total = x.meta.num_elements();
        assert!(
            u32::try_from(total).is_ok(),
            "dropout: {total} numbers are more than a counter of 32 bits counts"
        );
        let (count, units) = elementwise(&x.client, total);
        if total > 0 {
            // SAFETY: units past the last number return.
            unsafe {
                mask::launch_unchecked(
                    &x.client,
                    count,
                    units,
                    addresses(&[&x]),
                    buffer(&x),
                    buffer(&y),
                    total,
                    (self.seed >> 32) as u32,
                    self.seed as u32,
                    self.limit() as u32,
                    self.keep(),
                    element(&x),
                );
            }
        }
        y
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn mask<F: Float>(
    x: &[F],
    y: &mut [F],
    total: usize,
    seed_high: u32,
    seed_low: u32,
    limit: u32,
    keep: f32,
    #[define(F)] _type: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= total {
        terminate!();
    }
    let mut factor = keep;
    if random_bits(seed_high, seed_low, i as u32) < limit {
        factor = 0.0f32;
    }
    y[i] = F::cast_from(f32::cast_from(x[i]) * factor);
}

/// As on the CPU, in halves of 32 bits: not every device has integers of 64.
#[cube]
fn random_bits(seed_high: u32, seed_low: u32, place: u32) -> u32 {
    // place + 1 may be 2³², whose lower half is 0.
    let (high, low) = times(
        u32::cast_from(place == 0xffff_ffff),
        place + 1,
        STEP[0],
        STEP[1],
    );
    let sum = low + seed_low;
    let carry = u32::cast_from(sum < low);
    let (high, low) = folded(high + seed_high + carry, sum, 30u32);
    let (high, low) = times(high, low, FIRST[0], FIRST[1]);
    let (high, low) = folded(high, low, 27u32);
    let (high, _low) = times(high, low, SECOND[0], SECOND[1]);
    high ^ (high >> 31)
}

/// `x ^ (x >> shift)`, with a shift below 32.
#[cube]
fn folded(high: u32, low: u32, shift: u32) -> (u32, u32) {
    (
        high ^ (high >> shift),
        low ^ ((low >> shift) | (high << (32 - shift))),
    )
}

/// The lower 64 bits of a product.
#[cube]
fn times(high: u32, low: u32, other_high: u32, other_low: u32) -> (u32, u32) {
    let upper = u32::mul_hi(low, other_low) + high * other_low + low * other_high;
    (upper, low * other_low)
}
