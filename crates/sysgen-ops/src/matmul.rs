//! Matrix products of any size on all cores: packed block by block where that pays, then [`Product`] runs on the blocks.
//!
//! Every number of the result is one chain of multiply-adds in ascending order of the inner dimension, so neither the
//! threads nor the number of rows change its bits. What is cut is only who computes which block, and when.

use rayon::prelude::*;

use crate::few_rows::{self, FewRows};
use crate::lines::with_scratch;
use crate::pack::Number;
use crate::product::{MAX_TILE_COLUMNS, Product, Shared, TILE_ROWS};

/// Multiply-adds below which waking other threads costs more than it gives.
const PARALLEL_WORK: usize = 1 << 18;
/// Inner dimension of a block: a panel of `48 × 512` stays in the second-level cache.
const DEPTH: usize = 512;
/// Below this many rows the weight is read once, as fast as memory gives it, and nothing of it is copied needlessly.
const FEW_ROWS: usize = 16;
/// Rows of a block at most: `512 × 256` packed numbers are a quarter of a second-level cache.
const BLOCK_ROWS: usize = 512;
/// Blocks for each thread, so that none waits long for the last one.
const BLOCKS_PER_THREAD: usize = 4;
/// Panels a task takes at least when rows are many: packing its rows is then a small part of its work.
const TASK_PANELS: usize = 4;

/// A matrix by its numbers and the distances between its rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T = f32> {
    pub(crate) values: &'a [T],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<'a, T: Number> Matrix<'a, T> {
    /// Row-major, `columns` wide.
    pub(crate) fn rows(values: &'a [T], columns: usize) -> Self {
        Self {
            values,
            row: columns,
            column: 1,
        }
    }

    /// The transpose of a row-major matrix that is `columns` wide.
    pub(crate) fn transposed(values: &'a [T], columns: usize) -> Self {
        Self {
            values,
            row: 1,
            column: columns,
        }
    }

    fn from(self, row: usize, column: usize) -> &'a [T] {
        &self.values[row * self.row + column * self.column..]
    }

    fn assert_holds(self, rows: usize, columns: usize, name: &str) {
        assert!(
            self.row == 1 || self.column == 1,
            "product: {name} is dense in one direction"
        );
        assert!(
            self.values.len() > (rows - 1) * self.row + (columns - 1) * self.column,
            "product: {name} holds {rows} x {columns}"
        );
    }
}

/// `c[m, n] += a[m, k] · b[k, n]`, on all cores when that pays. Whatever b is stored in, the product is of f32.
pub(crate) fn add_product<T: Number>(
    a: Matrix,
    b: Matrix<T>,
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
) {
    assert_eq!(c.len(), m * n, "product: result [m, n]");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: c is [m, n].
    unsafe { run(a, b, (m, n, k), Shared(c.as_mut_ptr()), true) }
}

/// # Safety
/// `c` points at `[m, n]` numbers of a live allocation that nobody else touches meanwhile; no size is 0.
unsafe fn run<T: Number>(
    a: Matrix,
    b: Matrix<T>,
    (m, n, k): (usize, usize, usize),
    c: Shared,
    accumulate: bool,
) {
    a.assert_holds(m, k, "left [m, k]");
    b.assert_holds(k, n, "right [k, n]");
    let plan = Plan::new(m, n, k);
    // SAFETY: c is [m, n] and tasks own disjoint blocks of it; a and b were checked above.
    let task = |index: usize| unsafe { block(a, b, plan.block(index), k, c, n, accumulate) };
    if m * n * k < PARALLEL_WORK || rayon::current_num_threads() == 1 {
        (0..plan.tasks()).for_each(task);
    } else {
        (0..plan.tasks())
            .into_par_iter()
            .with_max_len(1)
            .for_each(task);
    }
}

/// `a[m, k] · b[k, n]`, as [`add_product`] makes it, in memory that nobody had to fill with zeros.
pub(crate) fn product<T: Number>(
    a: Matrix,
    b: Matrix<T>,
    (m, n, k): (usize, usize, usize),
) -> Vec<f32> {
    if m == 0 || n == 0 || k == 0 {
        return vec![0.0; m * n];
    }
    let mut c = Vec::with_capacity(m * n);
    let target = Shared(c.spare_capacity_mut().as_mut_ptr().cast());
    // SAFETY: the capacity is [m, n], and all of it has been written when this returns.
    unsafe {
        run(a, b, (m, n, k), target, false);
        c.set_len(m * n);
    }
    c
}

/// `c += a · b`, or `=` without `accumulate`, for one block of c on this thread; rows of c are `c_row` numbers apart.
///
/// # Safety
/// `c` points at a whole result whose block lies inside a live allocation that nobody else touches meanwhile; a and b hold the block's rows and columns.
pub(crate) unsafe fn block<T: Number>(
    a: Matrix,
    b: Matrix<T>,
    block: Block,
    k: usize,
    c: Shared,
    c_row: usize,
    accumulate: bool,
) {
    let Block {
        row,
        rows,
        column,
        columns,
    } = block;
    let few = rows < FEW_ROWS;
    let turned = if rows <= few_rows::MOST && a.column == 1 && b.row == 1 && few_rows::serves() {
        columns / few_rows::GROUP * few_rows::GROUP
    } else {
        0
    };
    if turned > 0 {
        // SAFETY: a and b hold the block's rows and columns, the caller vouches for c.
        unsafe {
            few_rows::run(FewRows {
                x: a.from(row, 0).as_ptr(),
                x_row: a.row,
                rows,
                weight: b.from(0, column).as_ptr(),
                stride: b.column,
                k,
                c: c.at(row * c_row + column),
                c_row,
                columns: turned,
                accumulate,
            });
        }
    }
    let (column, columns) = (column + turned, columns - turned);
    if columns == 0 {
        return;
    }
    // Rows that are dense are read as fast from where they are.
    let in_place = few || a.column == 1;
    let depth_taken = k.min(DEPTH);
    let left = if in_place {
        0
    } else {
        rows.next_multiple_of(TILE_ROWS) * depth_taken
    };
    with_scratch([left, MAX_TILE_COLUMNS * depth_taken], |[left, right]| {
        for depth in (0..k).step_by(DEPTH) {
            let taken = (k - depth).min(DEPTH);
            let (left, (a_row, a_column, a_tile)) = if in_place {
                (
                    a.from(row, depth).as_ptr(),
                    (a.row, a.column, TILE_ROWS * a.row),
                )
            } else {
                pack_left(a, row, rows, depth, taken, left);
                (left.as_ptr(), (1, TILE_ROWS, TILE_ROWS * taken))
            };
            for from in (column..column + columns).step_by(MAX_TILE_COLUMNS) {
                let width = (column + columns - from).min(MAX_TILE_COLUMNS);
                let source = b.from(depth, from);
                let (b_pointer, b_row) = match T::in_place(source) {
                    Some(source) if few && b.column == 1 => (source.as_ptr(), b.row),
                    _ => {
                        if b.column == 1 {
                            T::copy(source, b.row, taken, width, right, MAX_TILE_COLUMNS);
                        } else {
                            T::transpose(source, b.column, width, taken, right, MAX_TILE_COLUMNS);
                        }
                        (right.as_ptr(), MAX_TILE_COLUMNS)
                    }
                };
                // SAFETY: the packed blocks hold these sizes, the caller vouches for c.
                unsafe {
                    Product {
                        a: left,
                        a_row,
                        a_column,
                        a_tile,
                        b: b_pointer,
                        b_row,
                        c: c.at(row * c_row + from),
                        c_row,
                        m: rows,
                        n: width,
                        k: taken,
                        accumulate: accumulate || depth > 0,
                        ahead: None,
                    }
                    .run();
                }
            }
        }
    });
}

/// Sixteen rows side by side for each step of the inner dimension; rows beyond the matrix are left as they were.
fn pack_left(a: Matrix, row: usize, rows: usize, depth: usize, taken: usize, packed: &mut [f32]) {
    let tiles = packed.chunks_exact_mut(TILE_ROWS * taken);
    for (tile, packed) in tiles.take(rows.div_ceil(TILE_ROWS)).enumerate() {
        let first = tile * TILE_ROWS;
        let count = (rows - first).min(TILE_ROWS);
        let source = a.from(row + first, depth);
        f32::copy(source, a.column, taken, count, packed, TILE_ROWS);
    }
}

/// A part of the result.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) column: usize,
    pub(crate) columns: usize,
}

/// How a result is cut into blocks of about equal size.
struct Plan {
    m: usize,
    n: usize,
    rows: usize,
    columns: usize,
}

impl Plan {
    fn new(m: usize, n: usize, k: usize) -> Plan {
        // A block should be worth its overhead.
        let worth = (m * n * k / (PARALLEL_WORK / 4)).max(1);
        let wanted = (BLOCKS_PER_THREAD * rayon::current_num_threads()).min(worth);
        let row_blocks = m.div_ceil(BLOCK_ROWS);
        let rows = m.div_ceil(row_blocks).next_multiple_of(TILE_ROWS);
        let panels = n.div_ceil(MAX_TILE_COLUMNS);
        let least = if m < FEW_ROWS { 1 } else { TASK_PANELS };
        let groups = wanted.div_ceil(row_blocks).min(panels.div_ceil(least));
        Plan {
            m,
            n,
            rows,
            columns: panels.div_ceil(groups) * MAX_TILE_COLUMNS,
        }
    }

    fn tasks(&self) -> usize {
        self.m.div_ceil(self.rows) * self.n.div_ceil(self.columns)
    }

    fn block(&self, index: usize) -> Block {
        let groups = self.n.div_ceil(self.columns);
        let (row, column) = (index / groups * self.rows, index % groups * self.columns);
        Block {
            row,
            rows: (self.m - row).min(self.rows),
            column,
            columns: (self.n - column).min(self.columns),
        }
    }
}
