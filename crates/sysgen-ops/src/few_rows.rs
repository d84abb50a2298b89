//! A few rows times a weight, read once as it lies: sixteen of its rows are turned round in registers and multiplied there,
//! at the speed of memory. Every number is the same chain of multiply-adds as in [`crate::product`].

/// Rows of x that are served.
pub(crate) const MOST: usize = 8;
/// Weight rows taken together.
pub(crate) const GROUP: usize = 16;

/// `c[rows, columns] (+)= x[rows, k] · weight[columns, k]ᵀ` for dense rows `x_row`, `stride` and `c_row` numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct FewRows<T> {
    pub(crate) x: *const f32,
    pub(crate) x_row: usize,
    pub(crate) rows: usize,
    pub(crate) weight: *const T,
    pub(crate) stride: usize,
    pub(crate) k: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// A multiple of [`GROUP`].
    pub(crate) columns: usize,
    pub(crate) accumulate: bool,
}

/// Whether this CPU has the registers for it.
pub(crate) fn serves() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::run;

/// # Safety
/// Never: [`serves`] said no.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn run<T>(_task: FewRows<T>) {
    unreachable!("the caller asks `serves` first")
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use super::{FewRows, GROUP, MOST};
    use crate::pack::Number;

    /// # Safety
    /// [`serves`](super::serves) said yes; the three matrices lie inside live allocations and nobody else touches c's
    /// part; there are 1 to [`MOST`] rows.
    pub(crate) unsafe fn run<T: Number>(task: FewRows<T>) {
        for column in (0..task.columns).step_by(GROUP) {
            // SAFETY: the caller's.
            unsafe {
                match task.rows {
                    1 => group::<T, 1>(task, column),
                    2 => group::<T, 2>(task, column),
                    3 => group::<T, 3>(task, column),
                    4 => group::<T, 4>(task, column),
                    5 => group::<T, 5>(task, column),
                    6 => group::<T, 6>(task, column),
                    7 => group::<T, 7>(task, column),
                    _ => group::<T, MOST>(task, column),
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn group<T: Number, const M: usize>(task: FewRows<T>, column: usize) {
        // SAFETY: the caller's; blocks end at k.
        unsafe {
            let weight = task.weight.add(column * task.stride);
            let c = task.c.add(column);
            let mut sums = [_mm512_setzero_ps(); M];
            if task.accumulate {
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(c.add(m * task.c_row));
                }
            }
            let mut at = 0;
            while at + T::BLOCK <= task.k && T::can_turn(task.stride) {
                let columns = T::turned(weight.add(at), task.stride);
                for (i, column) in columns.into_iter().enumerate() {
                    step(&mut sums, task.x.add(at + i), task.x_row, column);
                }
                at += T::BLOCK;
            }
            for at in at..task.k {
                let mut column = [0.0f32; GROUP];
                for (row, x) in column.iter_mut().enumerate() {
                    *x = (*weight.add(row * task.stride + at)).wide();
                }
                let column = _mm512_loadu_ps(column.as_ptr());
                step(&mut sums, task.x.add(at), task.x_row, column);
            }
            for (m, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(c.add(m * task.c_row), sum);
            }
        }
    }

    /// One step of the inner dimension for all rows.
    ///
    /// # Safety
    /// `x` points at a number of each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step<const M: usize>(
        sums: &mut [__m512; M],
        x: *const f32,
        x_row: usize,
        column: __m512,
    ) {
        for (m, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let x = _mm512_set1_ps(unsafe { *x.add(m * x_row) });
            *sum = _mm512_fmadd_ps(x, column, *sum);
        }
    }
}
