//! Going back through a part of a graph, from a gradient that came from elsewhere.

use burn::tensor::{Gradients, Tensor};

use crate::fused::{self, Fused, Pass};

/// The gradients of the graph behind `output` when the gradient of `output` is `gradient`, which lives outside of it.
///
/// # Shapes
/// `gradient` is shaped like `output`.
pub fn backward<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Gradients {
    assert_eq!(
        output.dims(),
        gradient.dims(),
        "backward: a gradient for every number"
    );
    if !fused::serves(&output) {
        return (output * gradient.autodiff()).sum().backward();
    }
    let root = Root {
        gradient: fused::slice(&fused::values(gradient)).to_vec(),
    };
    fused::apply(root, [output.into()], [1]).backward()
}

/// A graph's root of no value, whose gradient is already known.
#[derive(Debug)]
struct Root {
    gradient: Vec<f32>,
}

impl Fused for Root {
    fn forward(&self, _inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        (vec![0.0], Vec::new())
    }

    fn keeps_input(&self, _index: usize, _wanted: &[bool]) -> bool {
        false
    }

    fn backward(&self, _pass: Pass) -> Vec<Vec<f32>> {
        vec![self.gradient.clone()]
    }
}
