//! The trainer against the outside: PyTorch's curves, its own arithmetic done another way, broken inputs, real signals.

#![allow(clippy::unwrap_used)]

mod across;
mod command;
mod data;
mod distill;
mod export;
mod fixture;
mod gate;
mod golden;
mod lora;
mod memory;
mod methods;
mod on_policy;
mod resume;
mod step;
mod taught;
mod workers;
