//! The trainer against the outside: PyTorch's curves, its own arithmetic done another way, broken inputs, real signals.

#![allow(clippy::unwrap_used)]

mod across;
mod command;
mod data;
mod distill;
mod ending;
mod export;
mod fixture;
mod formats;
mod gate;
mod golden;
#[path = "../../../sysgen-data/tests/data/hub_server.rs"]
mod hub_server;
mod lora;
mod memory;
mod merging;
mod methods;
mod on_policy;
mod plan;
mod rendered;
mod resume;
mod running;
#[path = "../../../sysgen-data/tests/data/server.rs"]
#[allow(dead_code)]
mod server;
mod step;
mod taught;
mod workers;
