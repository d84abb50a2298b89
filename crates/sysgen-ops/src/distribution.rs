//! Logits on the host as a distribution: what a sampler looks at, at the speed of memory.

use crate::simd::{exp, vectorised};

/// Numbers whose sum is formed in f32 before it goes on in f64.
const CHUNK: usize = 256;

/// The largest of `values`, which may hold minus infinity; `None` if there are none, or one is not a number, or the
/// largest is infinite.
pub fn largest(values: &[f32]) -> Option<f32> {
    let (largest, ordered) = scan(values);
    (ordered && largest.is_finite()).then_some(largest)
}

/// The first place of `value`, if there is one.
pub fn place_of(values: &[f32], value: f32) -> Option<usize> {
    let mut chunks = values.chunks(CHUNK).enumerate();
    let (number, chunk) = chunks.find(|(_, chunk)| holds(chunk, value))?;
    let place = chunk.iter().position(|&other| other == value)?;
    Some(number * CHUNK + place)
}

/// `exp((value − offset) · scale)` of each value, into `weights`.
pub fn exponentials(values: &[f32], offset: f32, scale: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.resize(values.len(), 0.0);
    weigh(values, offset, scale, weights);
}

/// `log Σ exp(value)` for values whose largest is `largest`.
pub fn log_sum_exp(values: &[f32], largest: f32) -> f64 {
    let total: f64 = values
        .chunks(CHUNK)
        .map(|chunk| f64::from(chunk_sum(chunk, largest)))
        .sum();
    f64::from(largest) + total.ln()
}

vectorised! {
    fn scan(values: &[f32]) -> (f32, bool) {
        const LANES: usize = 16;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut ordered = [true; LANES];
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
                ordered[i] &= !chunk[i].is_nan();
            }
        }
        for (i, &value) in rest.iter().enumerate() {
            lanes[i] = if value > lanes[i] { value } else { lanes[i] };
            ordered[i] &= !value.is_nan();
        }
        let mut largest = f32::NEG_INFINITY;
        for lane in lanes {
            largest = if lane > largest { lane } else { largest };
        }
        (largest, ordered == [true; LANES])
    }

    fn holds(values: &[f32], value: f32) -> bool {
        values.iter().fold(false, |found, &other| found | (other == value))
    }

    fn weigh(values: &[f32], offset: f32, scale: f32, weights: &mut [f32]) {
        for (weight, &value) in weights.iter_mut().zip(values) {
            *weight = exp((value - offset) * scale);
        }
    }

    fn chunk_sum(values: &[f32], offset: f32) -> f32 {
        const LANES: usize = 16;
        let mut lanes = [0.0f32; LANES];
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += exp(chunk[i] - offset);
            }
        }
        for (i, &value) in rest.iter().enumerate() {
            lanes[i] += exp(value - offset);
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_that_of_f64() {
        for count in [1, 15, 16, 300, 5000] {
            let values: Vec<f32> = (0..count)
                .map(|i| ((i * 37 % 101) as f32).sin() * 9.0)
                .collect();
            let top = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&values), Some(top));
            assert_eq!(
                place_of(&values, top),
                values.iter().position(|&v| v == top)
            );
            assert_eq!(place_of(&values, 10.0), None);
            let exact = values.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&values, top) - exact).abs() < 1e-6);
            let mut weights = Vec::new();
            exponentials(&values, top, 0.5, &mut weights);
            for (weight, &value) in weights.iter().zip(&values) {
                let exact = ((f64::from(value) - f64::from(top)) * 0.5).exp();
                assert!((f64::from(*weight) - exact).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_is_no_distribution_has_no_largest() {
        for at in [0, 7, 16, 20] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut values = [0.5; 21];
                values[at] = bad;
                assert_eq!(largest(&values), None, "{bad} at {at}");
            }
        }
        assert_eq!(largest(&[]), None);
        assert_eq!(largest(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(largest(&[f32::NEG_INFINITY, 1.0]), Some(1.0));
    }
}
