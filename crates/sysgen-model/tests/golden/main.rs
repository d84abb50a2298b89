//! Parity with PyTorch: every case folder (one that has `reference.json`) below `SYSGEN_GOLDEN`, or below
//! `tests/golden` where that is not set, is run through the same tests. `tests/golden/make` is the recipe.
#![allow(missing_docs, clippy::unwrap_used)]

mod bf16;
mod case;
mod files;
mod forward;
mod generate;
mod gradient;
mod rope;
