//! The words every SysGen crate shares: messages, source rows, the run's config, and files that are
//! either whole or absent. Nothing here knows of tokens, tensors or models.

pub mod allocator;
pub mod message;
pub mod record;

pub mod command_line;
pub mod config;
pub mod files;
pub mod hash;
pub mod interrupt;
pub mod jsonl;
pub mod measure;
pub mod no_room;
pub mod size;

pub mod append_log;
pub mod output_lock;
pub mod tell;

pub use append_log::AppendLog;
pub use config::RunConfig;
pub use message::{Message, Role};
pub use no_room::NoRoom;
pub use output_lock::{OutputLock, lock_output, lock_part, note_start, started};
pub use record::Record;
pub use tell::tell;
