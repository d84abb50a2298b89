//! Parameters kept in bf16: each step is taken in f32 and rounded stochastically, up or down with the probability that makes
//! it right on average (arXiv 1502.02551). Rounded to the nearest, a step smaller than half the distance to the next bf16
//! number would vanish, and with a small learning rate nearly all of them are.
//!
//! The random bits of a number are a function of the seed and its place alone, the one the device's kernel has, too: neither
//! threads nor a restart change them.

use burn::tensor::bf16;

use crate::simd::vectorised;

/// The format that a parameter's numbers are kept in between steps.
pub(super) trait Kept: Copy + Send + Sync {
    fn widen(kept: &[Self], wide: &mut [f32]);

    /// Back, where the first number has this place in the parameter.
    fn narrow(wide: &[f32], seed: u32, place: usize, kept: &mut [Self]);
}

impl Kept for f32 {
    fn widen(kept: &[f32], wide: &mut [f32]) {
        wide.copy_from_slice(kept);
    }

    fn narrow(wide: &[f32], _seed: u32, _place: usize, kept: &mut [f32]) {
        kept.copy_from_slice(wide);
    }
}

impl Kept for bf16 {
    fn widen(kept: &[bf16], wide: &mut [f32]) {
        widen(kept, wide);
    }

    fn narrow(wide: &[f32], seed: u32, place: usize, kept: &mut [bf16]) {
        narrow(wide, seed, place as u32, kept);
    }
}

vectorised! {
    fn widen(kept: &[bf16], wide: &mut [f32]) {
        for (wide, kept) in wide.iter_mut().zip(kept) {
            *wide = f32::from_bits(u32::from(kept.to_bits()) << 16);
        }
    }

    fn narrow(wide: &[f32], seed: u32, place: u32, kept: &mut [bf16]) {
        for ((i, kept), &x) in (0u32..).zip(kept).zip(wide) {
            *kept = rounded(x, noise(seed, place.wrapping_add(i)));
        }
    }
}

/// `x` as one of the two bf16 numbers around it: adding 16 random bits to those that are cut off makes the probability of
/// the outer one the distance from the inner one.
#[inline(always)]
fn rounded(x: f32, noise: u32) -> bf16 {
    let bits = x.to_bits();
    // The sum could make an infinity of a NaN, so that one is only cut off, and stays one.
    let sum = if x.is_nan() {
        bits | 0x0040_0000
    } else {
        bits.wrapping_add(noise & 0xffff)
    };
    bf16::from_bits((sum >> 16) as u16)
}

/// C. Wellons' "lowbias32" finaliser over place and seed, as in `cuda.rs`.
#[inline(always)]
fn noise(seed: u32, place: u32) -> u32 {
    let mut bits = place ^ seed.wrapping_mul(0x9e37_79b9);
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x7feb_352d);
    bits = (bits ^ (bits >> 15)).wrapping_mul(0x846c_a68b);
    bits ^ (bits >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_all_random_bits_the_mean_is_the_number_itself() {
        let numbers = [
            1.0, 1.002, -3.01, 0.1, -1e-3, 123_456.78, 1.999_999, 1e-39, -7e-41, 3e38,
        ];
        for x in numbers {
            let sum: f64 = (0..1 << 16)
                .map(|bits| f64::from(rounded(x, bits).to_f32()))
                .sum();
            assert_eq!(sum / 65_536.0, f64::from(x), "{x}");
        }
    }

    #[test]
    fn what_bf16_holds_stays_and_what_is_not_finite_stays_so() {
        for bits in [0, 1, 0x7fff, 0xffff] {
            for x in [0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(rounded(x, bits).to_f32().to_bits(), x.to_bits());
            }
            for nan in [f32::NAN, f32::from_bits(0x7f80_0001)] {
                assert!(rounded(nan, bits).is_nan());
            }
        }
    }

    #[test]
    fn the_random_bits_are_even_over_places_and_over_seeds() {
        let count = 1 << 16;
        let even = |draw: &dyn Fn(u32) -> u32| {
            let mut groups = [0u32; 256];
            for i in 0..count {
                groups[(draw(i) & 0xffff) as usize >> 8] += 1;
            }
            let expected = f64::from(count) / 256.0;
            let chi_squared: f64 = groups
                .iter()
                .map(|&n| (f64::from(n) - expected).powi(2) / expected)
                .sum();
            // 255 degrees of freedom: 255 ± 23.
            assert!((255.0 - chi_squared).abs() < 5.0 * 23.0, "{chi_squared}");
        };
        even(&|place| noise(7, place));
        even(&|place| noise(0x8000_0001, place));
        // Seeds come from a hash, so they are far apart.
        even(&|seed| noise(seed.wrapping_mul(0x85eb_ca6b), 3));
        // Neighbours in place and in seed know nothing of each other.
        even(&|place| noise(7, place).wrapping_sub(noise(7, place + 1)));
        even(&|place| noise(7, place).wrapping_sub(noise(8, place)));
    }
}
