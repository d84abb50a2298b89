//! The data library from the outside: formats in, the four phases with a scripted model, bytes out.
#![allow(clippy::unwrap_used)]

mod damage;
mod export;
mod external;
mod formats;
mod golden;
mod phases;
mod resume;
mod scripted;
mod shards;
mod stats;
