//! Eight-bit numbers with a shared scale per block: the "dynamic" data type of block-wise quantisation (Dettmers et al.,
//! arXiv 2110.02861), whose 256 values are spread over seven decades, more of them the larger they are.

use std::sync::LazyLock;

/// The 256 values of a data type in ascending order.
pub(crate) struct Code {
    values: [f32; 256],
    /// Halfway between neighbours: a number takes the code of how many of these lie below it.
    middles: [f32; 255],
}

/// From −1 to 1, for what has a sign.
pub(crate) static SIGNED: LazyLock<Code> = LazyLock::new(|| Code::dynamic(true));
/// From 0 to 1, with twice as many values in each decade.
pub(crate) static UNSIGNED: LazyLock<Code> = LazyLock::new(|| Code::dynamic(false));

impl Code {
    /// Decade `10^(i−6)`, i from 0 to 6, is cut into `2^i` equal parts (`2^(i+1)` without a sign) from a tenth of it to all
    /// of it, of which the middles are taken; then 0 and 1.
    fn dynamic(signed: bool) -> Code {
        let mut values = vec![0.0f64, 1.0];
        for exponent in 0..7i32 {
            let parts = 1usize << (exponent as usize + usize::from(!signed));
            let decade = 10f64.powi(exponent - 6);
            for part in 0..parts {
                let middle = 0.1 + 0.9 * (part as f64 + 0.5) / parts as f64;
                values.push(decade * middle);
                if signed {
                    values.push(-decade * middle);
                }
            }
        }
        values.sort_by(f64::total_cmp);
        let values: [f32; 256] = std::array::from_fn(|i| values[i] as f32);
        let middles = std::array::from_fn(|i| (values[i] + values[i + 1]) / 2.0);
        Code { values, middles }
    }

    /// The code of the value nearest to `x`.
    pub(crate) fn nearest(&self, x: f32) -> u8 {
        self.middles.partition_point(|&middle| middle < x) as u8
    }

    /// The values in ascending order.
    pub(crate) fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// Halfway between neighbours.
    #[cfg(feature = "cube")]
    pub(crate) fn middles(&self) -> &[f32; 255] {
        &self.middles
    }

    /// The value of a code.
    pub(crate) fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)]
    }

    /// Writes a block as codes and returns its scale, the largest magnitude in it. A block of zeros has scale 0.
    pub(crate) fn quantise(&self, block: &[f32], codes: &mut [u8]) -> f32 {
        let scale = largest(block);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (code, &x) in codes.iter_mut().zip(block) {
            *code = self.nearest(x * inverse);
        }
        scale
    }
}

/// The largest magnitude.
pub(crate) fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |most: f32, x| most.max(x.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_own_code() {
        for code in [&*SIGNED, &*UNSIGNED] {
            assert!(code.values.windows(2).all(|pair| pair[0] < pair[1]));
            for i in 0..=255 {
                assert_eq!(code.nearest(code.value(i)), i);
            }
            assert_eq!(code.nearest(2.0), 255);
            assert_eq!(code.value(code.nearest(0.0)), 0.0);
        }
    }
}
