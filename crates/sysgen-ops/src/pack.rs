//! Laying a block of a matrix out as the product reads it. With few rows this is most of the work of `linear`: it should
//! run at the speed of memory.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

use burn::tensor::bf16;

use crate::simd::vectorised;

/// A number that a matrix is stored in and that becomes f32 without loss.
pub(crate) trait Number: Copy + Send + Sync {
    /// `packed[k, j] = source[j, k]` for `rows` rows of `source`, `stride` apart, and `depth` columns; rows of `packed`
    /// are `packed_row` apart.
    fn transpose(
        source: &[Self],
        stride: usize,
        rows: usize,
        depth: usize,
        packed: &mut [f32],
        packed_row: usize,
    );

    /// `packed[k, j] = source[k, j]` for `depth` rows of `source`, `stride` apart, and `columns` columns.
    fn copy(
        source: &[Self],
        stride: usize,
        depth: usize,
        columns: usize,
        packed: &mut [f32],
        packed_row: usize,
    );

    /// The same numbers where they are, if that is as f32.
    fn in_place(source: &[Self]) -> Option<&[f32]>;

    /// This number.
    fn wide(self) -> f32;

    /// Columns that [`Number::turned`] takes at a time.
    const BLOCK: usize;

    /// [`Number::BLOCK`] columns of sixteen rows.
    #[cfg(target_arch = "x86_64")]
    type Columns: IntoIterator<Item = __m512>;

    /// Whether [`Number::turned`] can read rows that are so far apart.
    #[cfg(target_arch = "x86_64")]
    fn can_turn(stride: usize) -> bool;

    /// The columns of sixteen rows, `stride` apart, as vectors.
    ///
    /// # Safety
    /// AVX-512F is there; the block lies inside an allocation.
    #[cfg(target_arch = "x86_64")]
    unsafe fn turned(source: *const Self, stride: usize) -> Self::Columns;
}

impl Number for f32 {
    fn transpose(
        source: &[f32],
        stride: usize,
        rows: usize,
        depth: usize,
        packed: &mut [f32],
        packed_row: usize,
    ) {
        assert!(rows == 0 || source.len() >= (rows - 1) * stride + depth);
        assert!(rows <= packed_row && packed.len() >= depth * packed_row);
        #[allow(unused_mut)]
        let mut done = (0, 0);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            done = (rows / 16 * 16, depth / 16 * 16);
            for j in (0..done.0).step_by(16) {
                for k in (0..done.1).step_by(16) {
                    // SAFETY: the block lies inside both slices, checked above.
                    unsafe {
                        let columns =
                            avx512::transpose(source.as_ptr().add(j * stride + k), stride);
                        avx512::store(
                            columns,
                            packed.as_mut_ptr().add(k * packed_row + j),
                            packed_row,
                        );
                    }
                }
            }
        }
        transpose_rest(source, stride, rows, depth, done, packed, packed_row, |x| x);
    }

    fn copy(
        source: &[f32],
        stride: usize,
        depth: usize,
        columns: usize,
        packed: &mut [f32],
        packed_row: usize,
    ) {
        if columns == 16 && packed_row == 16 {
            return copy_sixteen(source, stride, depth, packed);
        }
        for (k, packed) in packed.chunks_exact_mut(packed_row).take(depth).enumerate() {
            packed[..columns].copy_from_slice(&source[k * stride..][..columns]);
        }
    }

    fn in_place(source: &[f32]) -> Option<&[f32]> {
        Some(source)
    }

    fn wide(self) -> f32 {
        self
    }

    const BLOCK: usize = 16;

    #[cfg(target_arch = "x86_64")]
    type Columns = [__m512; 16];

    #[cfg(target_arch = "x86_64")]
    fn can_turn(_stride: usize) -> bool {
        true
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn turned(source: *const f32, stride: usize) -> [__m512; 16] {
        // SAFETY: the caller's.
        unsafe { avx512::transpose(source, stride) }
    }
}

impl Number for bf16 {
    fn transpose(
        source: &[bf16],
        stride: usize,
        rows: usize,
        depth: usize,
        packed: &mut [f32],
        packed_row: usize,
    ) {
        assert!(rows == 0 || source.len() >= (rows - 1) * stride + depth);
        assert!(rows <= packed_row && packed.len() >= depth * packed_row);
        #[allow(unused_mut)]
        let mut done = (0, 0);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && stride.is_multiple_of(2) {
            done = (rows / 16 * 16, depth / 32 * 32);
            for j in (0..done.0).step_by(16) {
                for k in (0..done.1).step_by(32) {
                    // SAFETY: the block lies inside both slices, checked above.
                    unsafe {
                        let columns = bf16::turned(source.as_ptr().add(j * stride + k), stride);
                        let to = packed.as_mut_ptr().add(k * packed_row + j);
                        avx512::store(columns, to, packed_row);
                    }
                }
            }
        }
        transpose_rest(
            source,
            stride,
            rows,
            depth,
            done,
            packed,
            packed_row,
            bf16::to_f32,
        );
    }

    fn copy(
        source: &[bf16],
        stride: usize,
        depth: usize,
        columns: usize,
        packed: &mut [f32],
        packed_row: usize,
    ) {
        if columns == stride && columns == packed_row {
            return widen(&source[..depth * columns], &mut packed[..depth * columns]);
        }
        for (k, packed) in packed.chunks_exact_mut(packed_row).take(depth).enumerate() {
            widen(&source[k * stride..][..columns], &mut packed[..columns]);
        }
    }

    fn in_place(_source: &[bf16]) -> Option<&[f32]> {
        None
    }

    fn wide(self) -> f32 {
        self.to_f32()
    }

    const BLOCK: usize = 32;

    #[cfg(target_arch = "x86_64")]
    type Columns = [__m512; 32];

    /// Two neighbours travel as one number of 32 bits.
    #[cfg(target_arch = "x86_64")]
    fn can_turn(stride: usize) -> bool {
        stride.is_multiple_of(2)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn turned(source: *const bf16, stride: usize) -> [__m512; 32] {
        // SAFETY: the caller's; loads need no alignment.
        unsafe { avx512::parted(avx512::transpose(source.cast(), stride / 2)) }
    }
}

vectorised! {
    /// One cache line of each row: a call of `memcpy` for each would cost more than the copy.
    fn copy_sixteen(source: &[f32], stride: usize, depth: usize, packed: &mut [f32]) {
        for (k, packed) in packed.as_chunks_mut::<16>().0.iter_mut().take(depth).enumerate() {
            *packed = *source[k * stride..]
                .first_chunk::<16>()
                .expect("sixteen columns of every row");
        }
    }

    fn widen(source: &[bf16], wide: &mut [f32]) {
        for (wide, x) in wide.iter_mut().zip(source) {
            *wide = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

/// What is left of a transposition when its first `done` rows and columns are there.
#[allow(clippy::too_many_arguments)]
fn transpose_rest<T: Copy>(
    source: &[T],
    stride: usize,
    rows: usize,
    depth: usize,
    done: (usize, usize),
    packed: &mut [f32],
    packed_row: usize,
    wide: impl Fn(T) -> f32,
) {
    for j in 0..rows {
        let from = if j < done.0 { done.1 } else { 0 };
        let row = &source[j * stride..][..depth];
        for k in from..depth {
            packed[k * packed_row + j] = wide(row[k]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_and_si512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512,
        _mm512_castsi512_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_shuffle_f32x4,
        _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
        _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    /// Loads 16 by 16 numbers and transposes them in registers: pairs, then fours, then 128-bit quarters, twice.
    ///
    /// # Safety
    /// AVX-512F is there; the block lies inside an allocation.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(from: *const f32, from_row: usize) -> [__m512; 16] {
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
        let mut columns = u;
        for column in 0..4 {
            let [a, b, c, d] = [u[column], u[4 + column], u[8 + column], u[12 + column]];
            // Quarters 0 and 2, then 1 and 3, of two groups each.
            let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
            let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
            columns[column] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even);
            columns[4 + column] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd);
            columns[8 + column] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even);
            columns[12 + column] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd);
        }
        columns
    }

    /// 32 vectors from 16 of pairs of bf16, the first of a pair in the low bits.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn parted(pairs: [__m512; 16]) -> [__m512; 32] {
        std::array::from_fn(|index| {
            let pairs = _mm512_castps_si512(pairs[index / 2]);
            _mm512_castsi512_ps(if index % 2 == 0 {
                _mm512_slli_epi32::<16>(pairs)
            } else {
                _mm512_and_si512(pairs, _mm512_set1_epi32(-65536))
            })
        })
    }

    /// Writes vectors as rows.
    ///
    /// # Safety
    /// AVX-512F is there; the rows lie inside an allocation.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn store<const N: usize>(rows: [__m512; N], to: *mut f32, to_row: usize) {
        for (index, row) in rows.into_iter().enumerate() {
            // SAFETY: the caller vouches for the rows.
            unsafe { _mm512_storeu_ps(to.add(index * to_row), row) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Number>(number: impl Fn(f32) -> T) {
        for (rows, depth, stride) in [(1, 1, 1), (16, 32, 32), (48, 100, 130), (37, 33, 41)] {
            // Numbers that bf16 holds, too.
            let source: Vec<f32> = (0..rows * stride).map(|i| (i % 251) as f32).collect();
            let stored: Vec<T> = source.iter().map(|&x| number(x)).collect();
            let mut packed = vec![0.0; 48 * depth];
            T::transpose(&stored, stride, rows, depth, &mut packed, 48);
            for j in 0..rows {
                for k in 0..depth {
                    assert_eq!(packed[k * 48 + j], source[j * stride + k]);
                }
            }
            let mut packed = vec![0.0; depth * rows];
            T::copy(&stored, depth, rows, depth.min(stride), &mut packed, depth);
            assert_eq!(packed[..], source[..rows * depth]);
        }
    }

    #[test]
    fn a_block_is_transposed_and_copied() {
        check(|x| x);
        check(bf16::from_f32);
    }
}
