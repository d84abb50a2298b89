//! Loops compiled for the CPU at hand, and the elementary functions they need.
//! The crate is built for plain x86-64; [`vectorised!`] picks AVX-512, AVX2 or NEON code at run time.

use std::f32::consts::LOG2_E;

use rayon::prelude::*;

/// Numbers one task of an elementwise operation takes: shorter slices stay on the calling thread.
pub(crate) const TASK: usize = 1 << 14;

/// Defines functions whose loops (and `#[inline(always)]` callees) are compiled for this CPU's widest vectors.
///
/// A macro and not a function that takes a closure: a long closure would not be inlined into the function that has
/// the CPU's features, and then every `mul_add` in it would be a call into libm.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
                {
                    // SAFETY: the features are there.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features are there.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}
pub(crate) use vectorised;

/// Asks for the cache line at `address`, which may be any. A hint: nothing waits for it, and nothing where the CPU has none.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// `values *= factor`, on all cores.
pub(crate) fn scale(values: &mut [f32], factor: f32) {
    values.par_chunks_mut(TASK).for_each(|values| {
        for value in values {
            *value *= factor;
        }
    });
}

/// Independent partial results of [`max`] and [`dot`]: they fill vector registers, in an order that never varies.
const LANES: usize = 16;

/// `Σ a·b` in one fixed order, whatever the CPU's vector width.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (left, right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (left_rest, right_rest) = (left.remainder(), right.remainder());
    for (a, b) in left.zip(right) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(left_rest).zip(right_rest) {
        *lane = a.mul_add(b, *lane);
    }
    fold(lanes, |a, b| a + b)
}

/// `Σ values` in one fixed order.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    fold(lanes, |a, b| a + b)
}

/// The largest of `values`, `-inf` if there are none. A NaN may be passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = if value > *lane { value } else { *lane };
    }
    fold(lanes, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `e^x` to about 1 ulp; 0 below −87, finite above 88; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few enough bits that n · LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let bounded = if x > 88.0 { 88.0 } else { x };
    let bounded = if bounded < -87.0 { -87.0 } else { bounded };
    let rounded = bounded.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, bounded));
    // Taylor to r^7: |r| ≤ ln 2 / 2 leaves 5e-9.
    let mut p = 1.0 / 5040.0f32;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits((rounded.to_bits().wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// `tanh x` to about 2 ulp.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Taylor below 0.5, where 1 − 2/(e^2x + 1) would lose its digits.
    let square = x * x;
    let mut p = 21_844.0 / 6_081_075.0f32;
    p = p.mul_add(square, -1_382.0 / 155_925.0);
    p = p.mul_add(square, 62.0 / 2_835.0);
    p = p.mul_add(square, -17.0 / 315.0);
    p = p.mul_add(square, 2.0 / 15.0);
    p = p.mul_add(square, -1.0 / 3.0);
    let small = (p * square).mul_add(x, x);
    let large = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.5 {
        small
    } else {
        large.copysign(x)
    }
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELATIVE: f64 = 3e-7;

    fn check(name: &str, ours: fn(f32) -> f32, exact: fn(f64) -> f64, from: f32, to: f32) {
        let steps = 200_000;
        for step in 0..=steps {
            let x = from + (to - from) * step as f32 / steps as f32;
            let (ours, exact) = (f64::from(ours(x)), exact(f64::from(x)));
            let error = (ours - exact).abs() / exact.abs().max(1e-30);
            assert!(error < RELATIVE, "{name}({x}): {ours} for {exact}");
        }
    }

    #[test]
    fn elementary_functions_are_accurate() {
        check("exp", exp, f64::exp, -86.9, 87.9);
        check("tanh", tanh, f64::tanh, -12.0, 12.0);
        check(
            "sigmoid",
            sigmoid,
            |x| 1.0 / (1.0 + (-x).exp()),
            -80.0,
            80.0,
        );
    }

    #[test]
    fn extremes_are_defined() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!(tanh(100.0), 1.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn sums_cover_every_length() {
        for len in [0, 1, 63, 64, 65, 200] {
            let ones = vec![1.0; len];
            assert_eq!(dot(&ones, &ones), len as f32);
            assert_eq!(sum(&ones), len as f32);
        }
    }
}
