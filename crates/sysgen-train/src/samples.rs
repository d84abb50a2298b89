//! What the model answers before and after training, for a few rows it was never trained on.
//!
//! Greedy, so that a difference comes from training. The answers before are kept with the run: a resumed run has no
//! untrained model at hand any more.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sysgen_chat::Chat;
use sysgen_core::AppendLog;
use sysgen_core::files::write_atomically;
use sysgen_core::message::{Message, Role};
use sysgen_infer::{Engine, Options, Request, Sampling};
use sysgen_model::Decoder;
use sysgen_train::identity::Identity;
use sysgen_train::metrics;
use sysgen_train::report::Answer;
use sysgen_train::rows::Row;

/// Longest answer shown, in tokens.
const MAX_TOKENS: usize = 200;

/// One row and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// The row.
    pub(crate) id: String,
    /// Its system message, if any.
    pub(crate) system: Option<String>,
    /// Its last question.
    pub(crate) question: String,
    /// The source data's answer.
    pub(crate) original_answer: Option<String>,
    /// The answer in the data set.
    pub(crate) answer: String,
    /// What the model said before training.
    pub(crate) before: Option<String>,
    /// What the model says now.
    pub(crate) after: Option<String>,
}

impl Sample {
    /// For the report.
    pub(crate) fn to_answer(&self) -> Answer {
        let said = [
            ("system message", self.system.clone()),
            ("question", Some(self.question.clone())),
            ("answer to learn", Some(self.answer.clone())),
            ("before training", self.before.clone()),
            ("after training", self.after.clone()),
        ];
        Answer {
            id: self.id.clone(),
            said: said
                .into_iter()
                .filter_map(|(who, text)| Some((who, text?)))
                .collect(),
        }
    }
}

/// `samples_before.json`.
#[derive(Serialize, Deserialize)]
struct Kept {
    run: Identity,
    samples: Vec<Sample>,
}

/// The answers before training: those kept with the run, or new ones by `untrained`, which are then kept.
///
/// # Errors
/// When the untrained model cannot be loaded or the file cannot be written.
pub(crate) fn before(
    output_dir: &Path,
    run: &Identity,
    chat: &Chat,
    rows: &[Row],
    untrained: impl FnOnce() -> Result<Decoder>,
) -> Result<Vec<Sample>> {
    let path = kept_path(output_dir);
    let asked: Vec<Sample> = rows.iter().map(sample).collect();
    if let Some(kept) = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok())
        && kept.run == *run
        && kept
            .samples
            .iter()
            .map(|sample| &sample.id)
            .eq(asked.iter().map(|sample| &sample.id))
    {
        return Ok(kept.samples);
    }
    if asked.is_empty() {
        return Ok(asked);
    }
    let answers = answers(&untrained()?, chat, rows);
    let samples: Vec<Sample> = asked
        .into_iter()
        .zip(answers)
        .map(|(sample, before)| Sample { before, ..sample })
        .collect();
    let kept = Kept {
        run: run.clone(),
        samples,
    };
    let json = serde_json::to_string_pretty(&kept)?;
    write_atomically(&path, |file| writeln!(file, "{json}"))?;
    Ok(kept.samples)
}

/// Adds what the trained model says to each sample.
pub(crate) fn after(samples: &mut [Sample], decoder: &Decoder, chat: &Chat, rows: &[Row]) {
    for (sample, answer) in samples.iter_mut().zip(answers(decoder, chat, rows)) {
        sample.after = answer;
    }
}

/// Adds what the model answers after `step` to `samples.jsonl`, once: a resumed run may pass a step again.
///
/// # Errors
/// When the file cannot be read or written.
pub(crate) fn append(
    output_dir: &Path,
    step: usize,
    decoder: &Decoder,
    chat: &Chat,
    rows: &[Row],
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let path = output_dir.join("samples.jsonl");
    metrics::keep_until(&path, Some(step - 1))?;
    let mut log = AppendLog::open(&path)?;
    let answers: Vec<serde_json::Value> = rows
        .iter()
        .zip(answers(decoder, chat, rows))
        .map(|(row, answer)| json!({"id": row.id, "answer": answer}))
        .collect();
    log.append(&json!({"step": step, "answers": answers}))?;
    Ok(())
}

fn kept_path(output_dir: &Path) -> PathBuf {
    output_dir.join("samples_before.json")
}

fn sample(row: &Row) -> Sample {
    let said = |role: Role| {
        row.messages
            .iter()
            .rfind(|m| m.role == role)
            .map(|m| m.content.clone())
    };
    Sample {
        id: row.id.clone(),
        system: said(Role::System),
        question: said(Role::User).unwrap_or_default(),
        original_answer: row.original_answers.last().cloned(),
        answer: said(Role::Assistant).unwrap_or_default(),
        before: None,
        after: None,
    }
}

/// The model's answer to each row's last question; None where the prompt does not fit.
fn answers(decoder: &Decoder, chat: &Chat, rows: &[Row]) -> Vec<Option<String>> {
    let questions: Vec<Vec<Message>> = rows
        .iter()
        .map(|row| question(&row.messages).to_vec())
        .collect();
    replies(decoder, chat, &questions)
}

/// The model's greedy reply to each conversation; None where it does not fit or cannot be rendered.
pub(crate) fn replies(
    decoder: &Decoder,
    chat: &Chat,
    conversations: &[Vec<Message>],
) -> Vec<Option<String>> {
    let mut answers = vec![None; conversations.len()];
    let (mut requests, mut asked) = (Vec::new(), Vec::new());
    for (index, messages) in conversations.iter().enumerate() {
        if let Ok(prompt) = chat.prompt(messages) {
            requests.push(Request::new(
                prompt,
                Sampling::greedy(MAX_TOKENS),
                chat.stop_ids().to_vec(),
            ));
            asked.push(index);
        }
    }
    let longest = requests.iter().map(|request| request.prompt.len()).max();
    let options = Options {
        max_num_seqs: requests.len().max(1),
        max_length: longest.unwrap_or(0) + MAX_TOKENS,
        ..Options::default()
    };
    Engine::new(decoder, options).generate(requests, &mut |request, answer| {
        answers[asked[request]] = answer
            .ok()
            .map(|answer| chat.decode(&answer.into_first().ids));
        ControlFlow::Continue(())
    });
    answers
}

/// The conversation up to its last answer.
fn question(messages: &[Message]) -> &[Message] {
    let answer = messages
        .iter()
        .rposition(|m| m.role == Role::Assistant)
        .unwrap_or(messages.len());
    &messages[..answer]
}

/// For a person, one block for each row.
pub(crate) fn to_text(samples: &[Sample]) -> String {
    let mut lines = Vec::new();
    for sample in samples {
        lines.push(format!("── {} ──", sample.id));
        let system = sample.system.as_deref().unwrap_or("(none)");
        let absent = "(the prompt does not fit the model's context)";
        let answered =
            |answer: &Option<String>| answer.clone().unwrap_or_else(|| absent.to_string());
        let (before, after) = (answered(&sample.before), answered(&sample.after));
        let mut say = |what: &str, text: &str| {
            lines.push(format!(
                "  {what:<16} {}",
                text.trim().replace('\n', "\n                   ")
            ))
        };
        say("system message", system);
        say("question", &sample.question);
        if let Some(original) = &sample.original_answer {
            say("original answer", original);
        }
        say("answer to learn", &sample.answer);
        say("before training", &before);
        say("after training", &after);
    }
    lines.join("\n")
}
