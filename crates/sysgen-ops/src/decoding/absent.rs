//! A build without device kernels: the CPU reads the host's numbers where they are, so that neither of these ever exists.

use std::convert::Infallible;
use std::marker::PhantomData;

use burn::tensor::{Int, Tensor};

use super::StepNumbers;
use crate::attention::{PagedCache, PagedStep};

/// The numbers of a pass on a device; none in this build.
#[derive(Debug)]
pub struct StepInputs(Infallible);

impl StepInputs {
    /// Nothing.
    pub fn new(_cache: &PagedCache, _tokens: usize, _half: usize, _blocks: usize) -> Option<Self> {
        None
    }

    /// The block of padding.
    pub fn padding_block(&self) -> u32 {
        match self.0 {}
    }

    /// Replaces the numbers.
    pub fn put(&mut self, _numbers: StepNumbers) {
        match self.0 {}
    }

    /// The ids.
    pub fn ids(&self) -> Tensor<1, Int> {
        match self.0 {}
    }

    /// cos and sin.
    pub fn angles(&self) -> [Tensor<3>; 2] {
        match self.0 {}
    }

    /// The positions.
    pub fn step(&self) -> PagedStep<'static> {
        match self.0 {}
    }
}

/// A recorded pass; none in this build.
#[derive(Debug)]
pub struct Graph<T>(Infallible, PhantomData<T>);

impl<T: Send> Graph<T> {
    /// Never called: there are no inputs.
    ///
    /// # Errors
    /// None.
    pub fn record(inputs: &StepInputs, _run: impl FnMut() -> T + Send) -> Result<Self, String> {
        match inputs.0 {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub fn replay(&self) -> Result<&T, String> {
        match self.0 {}
    }
}
