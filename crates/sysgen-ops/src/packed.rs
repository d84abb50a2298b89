//! A frozen weight in the order in which products read it: panels of 48 outputs, the numbers of one input side by side.
//! Decoding then streams through memory, and nothing is packed anew for every product.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, bf16};
use rayon::prelude::*;

use crate::fused;
use crate::lines::Lines;
use crate::pack::Number;
use crate::panels::{self, Panels, WIDTH, Weight};

const CONTIGUOUS: &str = "made contiguous, and of the dtype that was asked for";

/// A frozen weight `[out, in]` for products on the CPU.
#[derive(Clone)]
pub struct Packed {
    shape: [usize; 2],
    panels: Arc<Stored>,
}

/// `[panels, in, 48]`; the outputs beyond the last one are 0.
enum Stored {
    F32(Lines<f32>),
    Bf16(Lines<bf16>),
}

impl Packed {
    /// A weight `[out, in]`; `None` where products do not read panels: on other devices than the CPU, and of other numbers
    /// than f32 and bf16.
    pub fn pack(weight: &Tensor<2>) -> Option<Packed> {
        if weight.device() != Device::flex() {
            return None;
        }
        let shape = weight.dims();
        let panels = match weight.dtype() {
            DType::F32 => {
                let held = fused::values(weight.clone());
                Stored::F32(pack(held.as_slice().expect(CONTIGUOUS), shape))
            }
            DType::BF16 => {
                let held = fused::values(weight.clone());
                Stored::Bf16(pack(held.as_slice().expect(CONTIGUOUS), shape))
            }
            _ => return None,
        };
        Some(Packed {
            shape,
            panels: Arc::new(panels),
        })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The numbers in f32, `[out, in]`.
    pub fn dense(&self) -> Tensor<2> {
        let rows: Vec<u32> = (0..self.shape[0] as u32).collect();
        self.rows(&rows)
    }

    /// Rows of the weight, `[rows, in]`, in f32.
    ///
    /// # Panics
    /// A row is not below `out`.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        let [output, input] = self.shape;
        let mut values = Vec::with_capacity(rows.len() * input);
        for &row in rows {
            let row = row as usize;
            assert!(row < output, "packed: row {row} of {output}");
            let first = row / WIDTH * input * WIDTH + row % WIDTH;
            match &*self.panels {
                Stored::F32(panels) => {
                    values.extend(panels[first..].iter().step_by(WIDTH).take(input))
                }
                Stored::Bf16(panels) => {
                    let column = panels[first..].iter().step_by(WIDTH).take(input);
                    values.extend(column.map(|number| number.to_f32()));
                }
            }
        }
        fused::plain(values, [rows.len(), input])
    }

    fn panels(&self) -> Panels<'_> {
        match &*self.panels {
            Stored::F32(panels) => Panels::F32(panels),
            Stored::Bf16(panels) => Panels::Bf16(panels),
        }
    }
}

/// `x · weightᵀ + bias` for each weight, the bits of [`linear`](crate::linear) with the weights as they were. There is no
/// gradient.
///
/// # Shapes
/// * `x`: `[.., in]`, on the CPU in f32; `weights`: `[out, in]`, `bias`: `[out]` each
/// * output: `[.., out]` each
///
/// # Panics
/// `x` takes part in a graph.
pub fn packed_linear<const D: usize, const N: usize>(
    x: Tensor<D>,
    weights: [(&Packed, Option<&Tensor<1>>); N],
) -> [Tensor<D>; N] {
    assert!(
        !x.is_autodiff(),
        "packed_linear: no gradient goes through packed weights"
    );
    let mut shape = x.dims();
    let (x, input) = (fused::values(x), shape[D - 1]);
    let biases = weights.map(|(_, bias)| bias.cloned().map(fused::values));
    let each = weights.iter().zip(&biases).map(|((weight, _), bias)| {
        let [output, inner] = weight.shape;
        assert_eq!(
            inner, input,
            "packed_linear: x [.., in] and weights [out, in]"
        );
        Weight {
            panels: weight.panels(),
            bias: bias.as_ref().map(fused::slice),
            output,
        }
    });
    let each: Vec<Weight> = each.collect();
    let mut results = panels::project(fused::slice(&x), input, &each).into_iter();
    weights.map(|(weight, _)| {
        shape[D - 1] = weight.shape[0];
        fused::plain(results.next().expect("a result for each weight"), shape)
    })
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let dtype = match &*self.panels {
            Stored::F32(_) => "f32",
            Stored::Bf16(_) => "bf16",
        };
        write!(f, "Packed({:?}, {dtype})", self.shape)
    }
}

fn pack<T: Number>(weight: &[T], [output, input]: [usize; 2]) -> Lines<T> {
    let sources: Vec<&[T]> = weight.chunks_exact(input.max(1)).collect();
    let mut panels = Lines::new(output.div_ceil(WIDTH) * input * WIDTH);
    panels
        .par_chunks_mut((input * WIDTH).max(1))
        .zip(sources.par_chunks(WIDTH))
        .for_each(|(panel, rows)| {
            // In squares, so that what is read and what is written stays at hand.
            for from in (0..input).step_by(64) {
                let end = input.min(from + 64);
                for (j, row) in rows.iter().enumerate() {
                    for k in from..end {
                        panel[k * WIDTH + j] = row[k];
                    }
                }
            }
        });
    panels
}
