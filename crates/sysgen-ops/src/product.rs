//! The matrix product behind [`linear`](crate::linear) and attention: `C += A · B`, one thread, B and C row-major, A with any strides.
//!
//! Every element of C is one chain of fused multiply-adds over `k`, in ascending order, whatever the tiling, so a
//! row's bits do not depend on its neighbours. General libraries choose their order of summation by the matrix's size.

use pulp::{MemMask, Simd, WithSimd};

use crate::simd::prefetch;

/// Columns of C that one register tile covers at most: 3 vectors of 16 (AVX-512).
pub(crate) const MAX_TILE_COLUMNS: usize = 48;
/// Rows of A that lie side by side when it is packed.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;

/// `C[m, n] += A[m, k] · B[k, n]`, or `=` without `accumulate`.
///
/// A's element `(i, k)` is `a[i / 16 · a_tile + i % 16 · a_row + k · a_column]`: `a_tile` is `16 · a_row` unless A is
/// packed. Rows of B and C are `b_row` and `c_row` numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_column: usize,
    pub(crate) a_tile: usize,
    pub(crate) b: *const f32,
    pub(crate) b_row: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) accumulate: bool,
    /// What is read after this, to be fetched meanwhile.
    pub(crate) ahead: Option<Ahead>,
}

/// Memory that is fetched into the second-level cache while a product is computed: all of it where the product has rows
/// enough, from its beginning on where it has fewer.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    first: *const u8,
    lines: usize,
}

impl Ahead {
    pub(crate) fn new<T>(numbers: &[T]) -> Ahead {
        Ahead {
            first: numbers.as_ptr().cast(),
            lines: size_of_val(numbers).div_ceil(LINE),
        }
    }
}

impl Product {
    /// Computes it with this CPU's widest vectors.
    ///
    /// # Safety
    /// The three matrices lie inside live allocations; nothing else touches C's `m × n` meanwhile.
    pub(crate) unsafe fn run(self) {
        pulp::Arch::new().dispatch(self);
    }
}

impl WithSimd for Product {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Known strides leave the registers to the numbers.
        if self.a_row == 1 && self.a_column == TILE_ROWS {
            self.all::<S, true>(simd);
        } else {
            self.all::<S, false>(simd);
        }
    }
}

impl Product {
    #[inline(always)]
    fn all<S: Simd, const PACKED: bool>(self, simd: S) {
        let lanes = S::F32_LANES;
        // Eight rows by three vectors fill 24 of 32 registers; on 16 registers four rows by two vectors.
        let wide = S::REGISTER_COUNT >= 32;
        let mut column = 0;
        while column < self.n {
            let left = self.n - column;
            // SAFETY: tiles stay inside m × n; `run`'s caller vouches for the matrices.
            let taken = unsafe {
                if wide && left > 2 * lanes {
                    columns::<S, 8, 3, PACKED>(simd, self, column)
                } else if left > lanes {
                    if wide {
                        columns::<S, 8, 2, PACKED>(simd, self, column)
                    } else {
                        columns::<S, 4, 2, PACKED>(simd, self, column)
                    }
                } else {
                    columns::<S, 8, 1, PACKED>(simd, self, column)
                }
            };
            column += taken;
        }
    }
}

/// All rows of the next `V` vectors of columns; returns how many columns that was.
#[inline(always)]
unsafe fn columns<S: Simd, const M: usize, const V: usize, const PACKED: bool>(
    simd: S,
    p: Product,
    column: usize,
) -> usize {
    let taken = (p.n - column).min(V * S::F32_LANES);
    let last = taken - (V - 1) * S::F32_LANES;
    let mask = MemMask::new(simd.mask_between_m32s(0, last as u32).mask());
    let mut row = 0;
    // SAFETY: as the caller's.
    unsafe {
        while row + M <= p.m {
            if last == S::F32_LANES {
                tile::<S, M, V, PACKED, true>(simd, p, row, column, mask);
            } else {
                tile::<S, M, V, PACKED, false>(simd, p, row, column, mask);
            }
            row += M;
        }
        // The rest at once: B is read for each tile.
        match p.m - row {
            0 => {}
            1 => tile::<S, 1, V, PACKED, false>(simd, p, row, column, mask),
            2 => tile::<S, 2, V, PACKED, false>(simd, p, row, column, mask),
            3 => tile::<S, 3, V, PACKED, false>(simd, p, row, column, mask),
            4 => tile::<S, 4, V, PACKED, false>(simd, p, row, column, mask),
            5 => tile::<S, 5, V, PACKED, false>(simd, p, row, column, mask),
            6 => tile::<S, 6, V, PACKED, false>(simd, p, row, column, mask),
            _ => tile::<S, 7, V, PACKED, false>(simd, p, row, column, mask),
        }
    }
    taken
}

/// `M` rows by `V` vectors, the last one masked unless `WHOLE`, held in registers over all of `k`.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const V: usize, const PACKED: bool, const WHOLE: bool>(
    simd: S,
    p: Product,
    row: usize,
    column: usize,
    mask: MemMask<S::m32s>,
) {
    let lanes = S::F32_LANES;
    // SAFETY: the tile is inside the matrices, and the mask keeps the last vector inside the row.
    unsafe {
        let load = |ptr: *const f32, v: usize| {
            if v + 1 == V && !WHOLE {
                simd.mask_load_ptr_f32s(mask, ptr.add(v * lanes))
            } else {
                ptr.add(v * lanes).cast::<S::f32s>().read_unaligned()
            }
        };
        let c = p.c.add(row * p.c_row + column);
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        if p.accumulate {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = load(c.add(i * p.c_row), v);
                }
            }
        }
        let (a_row, a_column) = if PACKED {
            (1, TILE_ROWS)
        } else {
            (p.a_row, p.a_column)
        };
        let mut a =
            p.a.add(row / TILE_ROWS * p.a_tile + row % TILE_ROWS * a_row);
        let mut b = p.b.add(column);
        // The first rows wait for B itself; each tile of later ones fetches as many lines as it takes steps.
        let fetched = (row / M).wrapping_sub(1).wrapping_mul(p.k);
        let (mut ahead, ahead_step) = match p.ahead {
            Some(Ahead { first, lines }) if fetched < lines => (first.add(fetched * LINE), LINE),
            _ => (b.cast(), 0),
        };
        for _ in 0..p.k {
            prefetch(ahead);
            ahead = ahead.wrapping_add(ahead_step);
            let mut right = [simd.splat_f32s(0.0); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = load(b, v);
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = simd.splat_f32s(*a.add(i * a_row));
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add_f32s(left, right[v], *sum);
                }
            }
            // After the last step neither points into its matrix.
            a = a.wrapping_add(a_column);
            b = b.wrapping_add(p.b_row);
        }
        for (i, sums) in sums.iter().enumerate() {
            let c = c.add(i * p.c_row);
            for (v, &sum) in sums.iter().enumerate() {
                if v + 1 == V && !WHOLE {
                    simd.mask_store_ptr_f32s(mask, c.add(v * lanes), sum);
                } else {
                    c.add(v * lanes).cast::<S::f32s>().write_unaligned(sum);
                }
            }
        }
    }
}

/// A pointer that tasks share to write disjoint parts of one buffer.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: users write disjoint ranges.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The address `offset` numbers on.
    ///
    /// # Safety
    /// Inside the allocation.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_shape_agrees_with_the_definition() {
        for m in [1, 3, 4, 8, 13] {
            for n in [1, 15, 16, 17, 33, 48, 50, 97] {
                let k = 7;
                let a: Vec<f32> = (0..m * k).map(|i| (i % 11) as f32 - 5.0).collect();
                let b: Vec<f32> = (0..k * n).map(|i| (i % 7) as f32 - 3.0).collect();
                let mut c = vec![1.0; m * n];
                let product = Product {
                    a: a.as_ptr(),
                    a_row: 1,
                    a_column: m,
                    a_tile: TILE_ROWS,
                    b: b.as_ptr(),
                    b_row: n,
                    c: c.as_mut_ptr(),
                    c_row: n,
                    m,
                    n,
                    k,
                    accumulate: true,
                    ahead: Some(Ahead::new(&b)),
                };
                // SAFETY: the vectors above have these sizes.
                unsafe { product.run() };
                for i in 0..m {
                    for j in 0..n {
                        let exact: f32 = (0..k).map(|x| a[x * m + i] * b[x * n + j]).sum();
                        assert_eq!(c[i * n + j], exact + 1.0, "{m}x{n} at {i},{j}");
                    }
                }
            }
        }
    }
}
