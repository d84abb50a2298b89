//! Tests that cross crates: one binary, one module a subject.
#![allow(clippy::unwrap_used)]

mod rules;
