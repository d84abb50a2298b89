//! The words every SysGen crate shares: messages, source rows, the run's config, and files that are
//! either whole or absent. Nothing here knows of tokens, tensors or models.

pub mod message;
pub mod record;

pub mod config;

pub use config::RunConfig;
pub use message::{Message, Role};
pub use record::Record;
