//! Transposing a panel of a weight, so that the product reads its columns as vectors. With few rows of x this is
//! most of the work of `linear`: it should run at the speed of memory.

/// `packed[k, j] = weight[j, k]` for `columns` rows and `depth` columns of a weight whose rows are `stride` apart.
pub(super) fn pack(
    weight: &[f32],
    stride: usize,
    columns: usize,
    depth: usize,
    packed: &mut [f32],
) {
    assert!(columns == 0 || weight.len() >= (columns - 1) * stride + depth);
    assert!(packed.len() >= columns * depth);
    let (mut whole_columns, mut whole_depth) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        (whole_columns, whole_depth) = (columns / 16 * 16, depth / 16 * 16);
        for j in (0..whole_columns).step_by(16) {
            for k in (0..whole_depth).step_by(16) {
                // SAFETY: the block lies inside both slices, checked above.
                unsafe {
                    avx512::transpose(
                        weight.as_ptr().add(j * stride + k),
                        stride,
                        packed.as_mut_ptr().add(k * columns + j),
                        columns,
                    );
                }
            }
        }
    }
    for j in 0..columns {
        let done = if j < whole_columns { whole_depth } else { 0 };
        let row = &weight[j * stride..][..depth];
        for k in done..depth {
            packed[k * columns + j] = row[k];
        }
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
    use super::pack;

    #[test]
    fn a_panel_is_transposed() {
        for (columns, depth, stride) in [(1, 1, 1), (16, 16, 16), (48, 100, 130), (37, 33, 40)] {
            let weight: Vec<f32> = (0..columns * stride).map(|i| i as f32).collect();
            let mut packed = vec![0.0; columns * depth];
            pack(&weight, stride, columns, depth, &mut packed);
            for j in 0..columns {
                for k in 0..depth {
                    assert_eq!(packed[k * columns + j], weight[j * stride + k]);
                }
            }
        }
    }
}
