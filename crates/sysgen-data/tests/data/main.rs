//! The data library from the outside: formats in, the four phases with a scripted model, bytes out.
#![allow(clippy::unwrap_used)]

mod bert_score;
mod card;
mod containers;
mod damage;
mod endpoint;
mod export;
mod external;
mod formats;
mod fuzz;
mod golden;
mod hub;
mod hub_server;
mod phases;
mod report;
mod resume;
mod scripted;
mod server;
mod shards;
mod sources;
mod stats;
mod teacher;
