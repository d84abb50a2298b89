//! One source row after reading, whatever format its file had. Reading the formats is left to
//! `sysgen-data`.

use serde::{Deserialize, Serialize};

use crate::message::Message;

/// One conversation of the source data, with where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The row's own id, or `<file name>:<line>`; unique within a run.
    pub id: String,
    /// The file the row was read from.
    pub source: String,
    /// 1-based line number, or index + 1 in a JSON array.
    pub line: usize,
    /// The turns, in order.
    pub messages: Vec<Message>,
    /// For each assistant message, in order: is it to be learnt? False is an answer that is only context.
    pub learnt_answers: Vec<bool>,
}
