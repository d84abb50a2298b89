//! `linear` on the CPU: one product forward, two back.

use burn_flex::FlexTensor;

use crate::fused::{Fused, Numbers, Pass, numbers};
use crate::matmul::{Matrix, add_product, product};
use crate::pack::Number;

/// The fused operation; inputs are x, weight and, if there is one, bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) input: usize,
    pub(super) output: usize,
    /// The weight, where it is kept in bf16.
    pub(super) bf16: Option<FlexTensor>,
}

impl Linear {
    fn weight<'a>(&'a self, input: &'a [f32]) -> Numbers<'a> {
        self.bf16.as_ref().map_or(Numbers::F32(input), numbers)
    }
}

impl Fused for Linear {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let bias = inputs.get(2).copied();
        let weight = self.weight(inputs[1]);
        let y = weight.project(inputs[0], bias, self.input, self.output);
        (y, Vec::new())
    }

    fn keeps_input(&self, index: usize, wanted: &[bool]) -> bool {
        match index {
            0 => wanted[1],
            1 => wanted[0],
            _ => false,
        }
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let (x, weight) = (pass.inputs[0], self.weight(pass.inputs[1]));
        let mut results = vec![Vec::new(); pass.inputs.len()];
        if pass.wanted[0] {
            results[0] = weight.times(pass.gradient, self.input, self.output);
        }
        if pass.wanted[1] {
            results[1] = outer(pass.gradient, x, self.output, self.input);
        }
        if pass.wanted.len() == 3 && pass.wanted[2] {
            results[2] = column_sums(pass.gradient, self.output);
        }
        results
    }
}

/// A weight `[output, input]` in either format; bf16 is widened block by block, so the bits are those of its f32 copy.
impl Numbers<'_> {
    /// [`project`] with this weight.
    pub(crate) fn project(
        self,
        x: &[f32],
        bias: Option<&[f32]>,
        input: usize,
        output: usize,
    ) -> Vec<f32> {
        match self {
            Numbers::F32(weight) => project(x, weight, bias, input, output),
            Numbers::Bf16(weight) => project(x, weight, bias, input, output),
        }
    }

    /// [`times_weight`] with this weight.
    pub(crate) fn times(self, gradient: &[f32], input: usize, output: usize) -> Vec<f32> {
        match self {
            Numbers::F32(weight) => times_weight(gradient, weight, input, output),
            Numbers::Bf16(weight) => times_weight(gradient, weight, input, output),
        }
    }
}

/// The gradient of a bias: the sum over all rows.
pub(crate) fn column_sums(gradient: &[f32], output: usize) -> Vec<f32> {
    let mut sums = vec![0.0; output];
    for row in gradient.chunks(output) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sums
}

/// `x[rows, input] · weight[output, input]ᵀ + bias`; a row's bits depend on that row alone.
pub(crate) fn project<T: Number>(
    x: &[f32],
    weight: &[T],
    bias: Option<&[f32]>,
    input: usize,
    output: usize,
) -> Vec<f32> {
    assert_eq!(weight.len(), input * output, "linear: weight [out, in]");
    let rows = x.len() / input.max(1);
    let (a, b) = (Matrix::rows(x, input), Matrix::transposed(weight, input));
    let size = (rows, output, input);
    let Some(bias) = bias else {
        return product(a, b, size);
    };
    assert_eq!(bias.len(), output, "linear: bias [out]");
    let mut y = bias.repeat(rows);
    add_product(a, b, size, &mut y);
    y
}

/// `gradient[rows, output] · weight[output, input]`.
pub(crate) fn times_weight<T: Number>(
    gradient: &[f32],
    weight: &[T],
    input: usize,
    output: usize,
) -> Vec<f32> {
    let rows = gradient.len() / output.max(1);
    product(
        Matrix::rows(gradient, output),
        Matrix::rows(weight, input),
        (rows, input, output),
    )
}

/// `aᵀ · b` for `a[rows, m]` and `b[rows, n]`: `[m, n]`.
pub(crate) fn outer(a: &[f32], b: &[f32], m: usize, n: usize) -> Vec<f32> {
    let rows = a.len() / m.max(1);
    product(Matrix::transposed(a, m), Matrix::rows(b, n), (m, n, rows))
}
