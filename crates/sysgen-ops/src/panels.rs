//! Products with a weight in panels: `[panels, in, 48]`, the numbers of one input side by side.
//!
//! With few rows a panel is read once, in one stream, and all rows of a product are held in registers; with many a panel
//! stays in the cache while the rows go by. Every number is the same chain of multiply-adds as in [`crate::product`].

use std::ops::Range;

use burn::tensor::bf16;
use rayon::prelude::*;

use crate::lines::with_scratch;
use crate::pack::Number;
use crate::product::{Ahead, MAX_TILE_COLUMNS, Product, Shared, TILE_ROWS};

/// Outputs of a panel.
pub(crate) const WIDTH: usize = MAX_TILE_COLUMNS;
/// Weights, each with up to [`FEW_ROWS`] rows, below which waking another thread costs more than it gives.
const PARALLEL_WEIGHTS: usize = 1 << 16;
/// Rows up to which reading a weight takes longer than multiplying with it.
const FEW_ROWS: usize = 8;
/// Rows of a block at most.
const BLOCK_ROWS: usize = 256;
/// Inner dimension of a block where rows are many: they stay in the second-level cache.
const DEPTH: usize = 512;
/// Inner dimension of a block that is widened for few rows: it stays in the first-level cache.
const WIDENED: usize = 128;
/// Blocks for each thread, so that none waits long for the last one.
const BLOCKS_PER_THREAD: usize = 4;

/// A weight `[output, input]` in panels, and its bias.
pub(crate) struct Weight<'a> {
    pub(crate) panels: Panels<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) output: usize,
}

/// The numbers of a weight.
#[derive(Clone, Copy)]
pub(crate) enum Panels<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl Panels<'_> {
    /// What is read first from a number on.
    fn ahead(&self, first: usize) -> Ahead {
        match self {
            Panels::F32(panels) => Ahead::new(&panels[first..]),
            Panels::Bf16(panels) => Ahead::new(&panels[first..]),
        }
    }
}

impl Weight<'_> {
    fn count(&self) -> usize {
        self.output.div_ceil(WIDTH)
    }

    fn assert_valid(&self, input: usize) {
        let length = match self.panels {
            Panels::F32(panels) => panels.len(),
            Panels::Bf16(panels) => panels.len(),
        };
        assert_eq!(
            length,
            self.count() * input * WIDTH,
            "packed: panels of [in, 48]"
        );
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), self.output, "packed: bias [out]");
        }
    }
}

/// `x[rows, input] · weight[output, input]ᵀ + bias` for each weight, all at once; a row's bits depend on that row alone.
pub(crate) fn project(x: &[f32], input: usize, weights: &[Weight]) -> Vec<Vec<f32>> {
    let rows = x.len() / input.max(1);
    assert_eq!(x.len(), rows * input, "packed: x [rows, in]");
    let mut results: Vec<Vec<f32>> = Vec::with_capacity(weights.len());
    for weight in weights {
        weight.assert_valid(input);
        results.push(match weight.bias {
            Some(bias) => bias.repeat(rows),
            None if input == 0 => vec![0.0; rows * weight.output],
            None => Vec::with_capacity(rows * weight.output),
        });
    }
    if rows == 0 || input == 0 {
        return results;
    }
    let targets: Vec<Shared> = results.iter_mut().map(|y| Shared(y.as_mut_ptr())).collect();

    let count: usize = weights.iter().map(Weight::count).sum();
    let row_blocks = rows.div_ceil(BLOCK_ROWS);
    let block_rows = rows.div_ceil(row_blocks);
    let work = input * count * WIDTH * rows.div_ceil(FEW_ROWS);
    let parallel = rayon::current_num_threads() > 1 && work >= PARALLEL_WEIGHTS;
    let groups = match parallel {
        true => (BLOCKS_PER_THREAD * rayon::current_num_threads())
            .div_ceil(row_blocks)
            .min(count),
        false => 1,
    };
    let task = |index: usize| {
        let (row, group) = (index / groups * block_rows, index % groups);
        let rows = block_rows.min(rows - row);
        let (from, end) = (count * group / groups, count * (group + 1) / groups);
        let mut first = 0;
        for (number, (weight, &c)) in weights.iter().zip(&targets).enumerate() {
            let next = first + weight.count();
            if from < next && end > first {
                // A thread mostly goes on with the next block, or with the next weight in this one.
                let ahead = match end < next {
                    true => Some(weight.panels.ahead((end - first) * input * WIDTH)),
                    false => weights.get(number + 1).map(|weight| weight.panels.ahead(0)),
                };
                let block = Block {
                    row,
                    rows,
                    panels: from.max(first) - first..end.min(next) - first,
                    sizes: [input, weight.output],
                    accumulate: weight.bias.is_some(),
                    ahead,
                };
                // SAFETY: c is [rows, output] and tasks own disjoint blocks of it; x and panels hold theirs, as asserted.
                unsafe {
                    match weight.panels {
                        Panels::F32(panels) => block.run(x, panels, c),
                        Panels::Bf16(panels) => block.run(x, panels, c),
                    }
                }
            }
            first = next;
        }
    };
    let tasks = row_blocks * groups;
    if parallel {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
    for (y, weight) in results.iter_mut().zip(weights) {
        // SAFETY: the capacity is [rows, output], and all of it has been written.
        unsafe { y.set_len(rows * weight.output) };
    }
    results
}

/// Some rows times some panels, on one thread.
struct Block {
    row: usize,
    rows: usize,
    panels: Range<usize>,
    /// `[input, output]`
    sizes: [usize; 2],
    accumulate: bool,
    /// What is likely read after it.
    ahead: Option<Ahead>,
}

impl Block {
    /// # Safety
    /// `c` points at `[rows, output]` numbers of a live allocation whose block nobody else touches meanwhile.
    unsafe fn run<T: Number>(self, x: &[f32], panels: &[T], c: Shared) {
        let [input, output] = self.sizes;
        let few = self.rows <= FEW_ROWS;
        let widened = T::in_place(panels).is_none();
        let depth_step = match (few, widened) {
            (true, false) => input,
            (true, true) => WIDENED,
            (false, _) => DEPTH,
        };
        let scratch = if widened { depth_step * WIDTH } else { 0 };
        with_scratch([0, scratch], |[_, wide]| {
            // Few rows look at a panel to its end, many stay with their part of the inner dimension.
            let parts = input.div_ceil(depth_step);
            let place = |number: usize| {
                let (panel, part) = match few {
                    true => (number / parts, number % parts),
                    false => (number % self.panels.len(), number / self.panels.len()),
                };
                (self.panels.start + panel, part * depth_step)
            };
            let source = |(panel, depth): (usize, usize)| {
                let taken = depth_step.min(input - depth);
                &panels[(panel * input + depth) * WIDTH..][..taken * WIDTH]
            };
            let count = self.panels.len() * parts;
            for number in 0..count {
                let (panel, depth) = place(number);
                let numbers = source((panel, depth));
                let k = numbers.len() / WIDTH;
                let b = match T::in_place(numbers) {
                    Some(numbers) => numbers.as_ptr(),
                    None => {
                        T::copy(numbers, WIDTH, k, WIDTH, wide, WIDTH);
                        wide.as_ptr()
                    }
                };
                let ahead = match number + 1 < count {
                    true => Some(Ahead::new(source(place(number + 1)))),
                    false => self.ahead,
                };
                let column = panel * WIDTH;
                // SAFETY: the caller vouches for c; the block's rows and columns lie in it.
                unsafe {
                    Product {
                        a: x[self.row * input + depth..].as_ptr(),
                        a_row: input,
                        a_column: 1,
                        a_tile: TILE_ROWS * input,
                        b,
                        b_row: WIDTH,
                        c: c.at(self.row * output + column),
                        c_row: output,
                        m: self.rows,
                        n: WIDTH.min(output - column),
                        k,
                        accumulate: self.accumulate || depth > 0,
                        ahead,
                    }
                    .run();
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_agree_with_the_definition() {
        for (rows, input) in [(1, 1), (1, 700), (3, 129), (8, 33), (70, 600), (600, 20)] {
            let x: Vec<f32> = (0..rows * input).map(|i| (i % 7) as f32 - 3.0).collect();
            let weight = |row: usize, k: usize| ((row * 5 + k * 3) % 11) as f32 - 5.0;
            let outputs = [97, 1, 200];
            let bias: Vec<f32> = (0..97).map(|i| i as f32).collect();
            let panels = outputs.map(|output: usize| -> Vec<f32> {
                let numbers = output.div_ceil(WIDTH) * input * WIDTH;
                let number = |i: usize| {
                    let row = i / (input * WIDTH) * WIDTH + i % WIDTH;
                    if row < output {
                        weight(row, i / WIDTH % input)
                    } else {
                        0.0
                    }
                };
                (0..numbers).map(number).collect()
            });
            let narrow: Vec<bf16> = panels[2].iter().map(|&x| bf16::from_f32(x)).collect();
            let weights = [
                (Panels::F32(&panels[0]), Some(&bias[..]), 97),
                (Panels::F32(&panels[1]), None, 1),
                (Panels::Bf16(&narrow), None, 200),
            ]
            .map(|(panels, bias, output)| Weight {
                panels,
                bias,
                output,
            });
            let results = project(&x, input, &weights);
            for (y, weighted) in results.iter().zip(&weights) {
                for (place, &y) in y.iter().enumerate() {
                    let (row, j) = (place / weighted.output, place % weighted.output);
                    let exact: f32 = (0..input).map(|k| x[row * input + k] * weight(j, k)).sum();
                    let exact = exact + weighted.bias.map_or(0.0, |bias| bias[j]);
                    assert_eq!(
                        y, exact,
                        "{rows}x{input} at {row},{j} of {}",
                        weighted.output
                    );
                }
            }
        }
    }
}
