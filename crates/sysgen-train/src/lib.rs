//! Supervised fine-tuning: rows with messages in, a Hugging Face checkpoint out.
//!
//! Read in this order: a row is read ([`rows`]), becomes ids and a mask and is cut to fit ([`example`]),
//! is judged by the gate ([`check`]), laid into packed rows ([`pack`]) and micro-batches ([`batch`]), at the
//! learning rate of its step ([`schedule`]), through the optimizer ([`optim`]) by the trainer ([`trainer`]). What of a model
//! is trained is [`method`], what a teacher adds [`distill`] ([`stored_teacher`], [`align`]). The trainer saves itself ([`checkpoint`]) and is handed on as a Hugging Face folder ([`export`]).
//!
//! It knows nothing of how the data came to be, nor of generating text: only the `sysgen-train` binary does.

pub mod align;
pub mod batch;
pub mod check;
pub mod check_page;
pub mod checkpoint;
pub mod distill;
pub mod example;
pub mod export;
pub mod identity;
mod journal;
pub mod method;
pub mod metrics;
pub mod mix;
pub mod on_policy;
pub mod optim;
pub mod order;
pub mod pack;
pub mod page;
pub mod parameters;
pub mod plan;
pub mod render_cache;
pub mod report;
pub mod resume;
pub mod row_losses;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod show;
pub mod stored_teacher;
pub mod tensorboard;
pub mod trainer;
pub mod variant;
pub mod watch;
pub mod workers;
