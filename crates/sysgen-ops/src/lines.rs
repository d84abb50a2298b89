//! Memory that begins at a cache line, so that vectors of packed numbers do not straddle two of them.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers, all zero at first. `T` must be a plain number, of which every pattern of bits is one.
#[derive(Default)]
pub(crate) struct Lines<T> {
    lines: Vec<Line>,
    length: usize,
    numbers: PhantomData<T>,
}

impl<T: Copy> Lines<T> {
    pub(crate) fn new(length: usize) -> Lines<T> {
        let mut lines = Lines {
            lines: Vec::new(),
            length: 0,
            numbers: PhantomData,
        };
        lines.grow(length);
        lines
    }

    /// At least `length` numbers.
    pub(crate) fn grow(&mut self, length: usize) {
        if length > self.length {
            let lines = (length * size_of::<T>()).div_ceil(64);
            self.lines.resize(lines, Line([0; 64]));
            self.length = length;
        }
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold `length` numbers, whose bits were set.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Lines<f32>> = RefCell::new(Lines::new(0));
}

/// Calls `work` with two buffers of at least these lengths that this thread keeps, with any content.
pub(crate) fn with_scratch<R>(
    [first, second]: [usize; 2],
    work: impl FnOnce([&mut [f32]; 2]) -> R,
) -> R {
    let first = first.next_multiple_of(16);
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.grow(first + second);
        work(scratch.split_at_mut(first).into())
    })
}
