//! Laying a block of a matrix out as the product reads it. With few rows this is most of the work of `linear`: it should
//! run at the speed of memory.

/// `packed[k, j] = source[j, k]` for `rows` rows of `source`, `stride` apart, and `depth` columns; rows of `packed` are
/// `packed_row` apart.
pub(crate) fn transpose(
    source: &[f32],
    stride: usize,
    rows: usize,
    depth: usize,
    packed: &mut [f32],
    packed_row: usize,
) {
    assert!(rows == 0 || source.len() >= (rows - 1) * stride + depth);
    assert!(rows <= packed_row && packed.len() >= depth * packed_row);
    let (mut whole_rows, mut whole_depth) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        (whole_rows, whole_depth) = (rows / 16 * 16, depth / 16 * 16);
        for j in (0..whole_rows).step_by(16) {
            for k in (0..whole_depth).step_by(16) {
                // SAFETY: the block lies inside both slices, checked above.
                unsafe {
                    let from = source.as_ptr().add(j * stride + k);
                    let to = packed.as_mut_ptr().add(k * packed_row + j);
                    avx512::transpose(from, stride, to, packed_row);
                }
            }
        }
    }
    for j in 0..rows {
        let done = if j < whole_rows { whole_depth } else { 0 };
        let row = &source[j * stride..][..depth];
        for k in done..depth {
            packed[k * packed_row + j] = row[k];
        }
    }
}

/// `packed[k, j] = source[k, j]` for `depth` rows of `source`, `stride` apart, and `columns` columns.
pub(crate) fn copy(
    source: &[f32],
    stride: usize,
    depth: usize,
    columns: usize,
    packed: &mut [f32],
    packed_row: usize,
) {
    for (k, packed) in packed.chunks_exact_mut(packed_row).take(depth).enumerate() {
        packed[..columns].copy_from_slice(&source[k * stride..][..columns]);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps, _mm512_shuffle_f32x4,
        _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
        _mm512_unpacklo_ps,
    };

    /// Transposes 16 by 16 numbers in registers: pairs, then fours, then 128-bit quarters, twice.
    ///
    /// # Safety
    /// AVX-512F is there; both blocks lie inside allocations.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller vouches for the 16 rows.
        let r: [__m512; 16] =
            std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * from_row)) });
        // Pairs of rows interleaved: index 2i holds the low, 2i + 1 the high half of every quarter.
        let t: [__m512; 16] = std::array::from_fn(|i| {
            let (a, b) = (r[i & !1], r[i | 1]);
            if i & 1 == 0 {
                _mm512_unpacklo_ps(a, b)
            } else {
                _mm512_unpackhi_ps(a, b)
            }
        });
        // Four rows: u[4g + c] has column 4q + c of rows 4g.. in quarter q.
        let u: [__m512; 16] = std::array::from_fn(|i| {
            let (group, column) = (i & !3, i & 3);
            let a = _mm512_castps_pd(t[group + column / 2]);
            let b = _mm512_castps_pd(t[group + 2 + column / 2]);
            _mm512_castpd_ps(if column & 1 == 0 {
                _mm512_unpacklo_pd(a, b)
            } else {
                _mm512_unpackhi_pd(a, b)
            })
        });
        for column in 0..4 {
            let [a, b, c, d] = [u[column], u[4 + column], u[8 + column], u[12 + column]];
            // Quarters 0 and 2, then 1 and 3, of two groups each.
            let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
            let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
            let quarters = [
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even),
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd),
            ];
            for (quarter, row) in quarters.into_iter().enumerate() {
                // SAFETY: the caller vouches for the 16 rows.
                unsafe { _mm512_storeu_ps(to.add((4 * quarter + column) * to_row), row) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_transposed() {
        for (rows, depth, stride) in [(1, 1, 1), (16, 16, 16), (48, 100, 130), (37, 33, 40)] {
            let source: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            let mut packed = vec![0.0; 48 * depth];
            transpose(&source, stride, rows, depth, &mut packed, 48);
            for j in 0..rows {
                for k in 0..depth {
                    assert_eq!(packed[k * 48 + j], source[j * stride + k]);
                }
            }
        }
    }
}
