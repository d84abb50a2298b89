//! Conversations through real (small) tokenizers and, where `SYSGEN_EXTERNAL_DATA` names them, the models' own chat
//! templates.
#![allow(clippy::unwrap_used)]

mod effective;
mod fixtures;
mod golden;
mod masks;
mod own_template;
mod policies;
