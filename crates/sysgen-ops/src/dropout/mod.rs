//! Dropout whose mask is a pure function of a seed: the same in a second forward pass, after a restart, on every device.

#[cfg(feature = "cube")]
mod cuda;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

#[cfg(feature = "cube")]
use crate::device;
use crate::fused::{self, Fused, Pass};
use crate::simd::TASK;

/// Which numbers are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of the numbers that become 0; the others are divided by what is left of 1.
    pub probability: f64,
    /// Start of the random bits.
    pub seed: u64,
}

/// `x` with some numbers at 0 and the rest scaled up, so that the mean stays.
pub fn dropout<const D: usize>(x: Tensor<D>, settings: Dropout) -> Tensor<D> {
    let shape = x.dims();
    #[cfg(feature = "cube")]
    if device::serves(&x) {
        return device::apply(settings, [x.into()]);
    }
    if !fused::serves(&x) {
        return reference(x, settings);
    }
    fused::apply(settings, [x.into()], shape)
}

/// [`dropout`] in plain Burn tensors, with a mask from the host.
pub fn reference<const D: usize>(x: Tensor<D>, settings: Dropout) -> Tensor<D> {
    let mut mask = vec![1.0; x.shape().num_elements()];
    settings.mask(&mut mask);
    let data = TensorData::new(mask, x.dims());
    let mask = Tensor::<D>::from_data(data, &x.device()).cast(x.dtype());
    x * mask
}

impl Dropout {
    /// What is left is multiplied with it.
    fn keep(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }

    /// A number is dropped when its 32 random bits are below this share of all.
    fn limit(&self) -> u64 {
        (self.probability * 2f64.powi(32)) as u64
    }

    /// Multiplies every number with its place's factor.
    fn mask(&self, values: &mut [f32]) {
        let (keep, limit) = (self.keep(), self.limit());
        values
            .par_chunks_mut(TASK)
            .enumerate()
            .for_each(|(chunk, values)| {
                for (i, value) in values.iter_mut().enumerate() {
                    let bits = random_bits(self.seed, (chunk * TASK + i) as u64);
                    *value *= if bits < limit { 0.0 } else { keep };
                }
            });
    }
}

/// 32 random bits of a place: the finaliser of SplitMix64 over seed and counter.
fn random_bits(seed: u64, place: u64) -> u64 {
    let mut bits = seed.wrapping_add((place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ (bits >> 31)) >> 32
}

impl Fused for Dropout {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut y = inputs[0].to_vec();
        self.mask(&mut y);
        (y, Vec::new())
    }

    fn keeps_input(&self, _index: usize, _wanted: &[bool]) -> bool {
        false
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let mut dx = pass.gradient.to_vec();
        self.mask(&mut dx);
        vec![dx]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_dropped_and_the_mean_stays() {
        for probability in [0.05, 0.5] {
            let mut values = vec![1.0f32; 200_000];
            let settings = Dropout {
                probability,
                seed: 3,
            };
            settings.mask(&mut values);
            let dropped = values.iter().filter(|&&x| x == 0.0).count() as f64 / 2e5;
            assert!((dropped - probability).abs() < 5e-3, "{dropped}");
            let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / 2e5;
            assert!((mean - 1.0).abs() < 1e-2, "{mean}");
            let mut other = vec![1.0f32; 200_000];
            Dropout {
                seed: 4,
                ..settings
            }
            .mask(&mut other);
            assert_ne!(values, other);
        }
    }
}
