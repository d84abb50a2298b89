//! What a teacher adds to the loss: its next-token probabilities at every learnt position, from a second model that is run
//! beside the student, or stored with the rows. The two tokenizers are compared first, by what is in them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Tensor;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::RunConfig;
use sysgen_core::config::{CrossTokenizer, DistillSection, DivergenceKind};
use sysgen_model::{Decoder, Device, Tokens, WeightDtype};
use sysgen_ops::{Distillation, Divergence, Teacher, TopK, linear_distillation};

use crate::align::{Aligned, align};
use crate::batch::Batch;
use crate::example::Example;
use crate::rows::Row;
use crate::stored_teacher::Stored;
use crate::trainer::select;

/// Rows whose texts are cut by both tokenizers to compare them.
const COMPARED_ROWS: usize = 32;
/// What to do where the teacher has other tokens.
pub(crate) const OTHER_TOKENS: &str = "use cross_tokenizer = \"uld\" in [distill], or leave [distill] out and train on the teacher's answers alone";

/// What is learnt from besides the data.
pub struct Distiller {
    source: Source,
    divergence: Divergence,
    temperature: f32,
    alpha: f32,
}

/// Where the teacher's probabilities come from.
enum Source {
    /// A model of the student's tokenizer.
    Model(Box<Decoder>),
    /// A model of another tokenizer, and every row as it reads it.
    Foreign(Box<Decoder>, Arc<HashMap<String, Aligned>>),
    /// The rows.
    Stored(Arc<Stored>),
}

/// How two vocabularies stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabularies {
    /// The same tokens under the same ids.
    Same,
    /// The same tokens under the same ids, and one model has more rows than the other.
    Padded {
        /// Rows of the student's head.
        student: usize,
        /// Rows of the teacher's head.
        teacher: usize,
    },
    /// Different ones.
    Different {
        /// What was found first.
        first: String,
    },
}

impl fmt::Display for Vocabularies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vocabularies::Same => write!(f, "teacher and student have the same vocabulary"),
            Vocabularies::Padded { student, teacher } => write!(
                f,
                "teacher and student have the same tokens; their heads have {teacher} and {student} rows, and what both have is compared"
            ),
            Vocabularies::Different { first } => write!(
                f,
                "teacher and student have different vocabularies ({first})"
            ),
        }
    }
}

/// Compares two tokenizers token by token, and what they make of some texts; `rows` are those of the student's and the
/// teacher's head.
pub fn compare<'a>(
    student: &Chat,
    teacher: &Chat,
    rows: [usize; 2],
    texts: impl IntoIterator<Item = &'a str>,
) -> Vocabularies {
    let sizes = [student.vocab_size(), teacher.vocab_size()];
    let both = sizes[0].min(sizes[1]) as u32;
    for id in 0..both {
        let (ours, theirs) = (student.token(id), teacher.token(id));
        if ours != theirs {
            let first =
                format!("token {id} is {ours:?} for the student and {theirs:?} for the teacher");
            return Vocabularies::Different { first };
        }
    }
    if sizes[0] != sizes[1] {
        let first = format!(
            "the student has {} tokens and the teacher {}",
            sizes[0], sizes[1]
        );
        return Vocabularies::Different { first };
    }
    // The same tokens can be put together by other merges.
    for text in texts {
        if student.encode(text) != teacher.encode(text) {
            let start: String = text.chars().take(40).collect();
            let first = format!("they cut the text {start:?} into other tokens");
            return Vocabularies::Different { first };
        }
    }
    if rows[0] == rows[1] {
        return Vocabularies::Same;
    }
    Vocabularies::Padded {
        student: rows[0],
        teacher: rows[1],
    }
}

/// The teacher's side of the text: its tokenizer and template, and how its vocabulary stands to the student's.
pub struct TeacherChat {
    /// Tokenizer and template.
    pub chat: Chat,
    /// The comparison.
    pub vocabularies: Vocabularies,
}

impl TeacherChat {
    /// Loads them from the folder that `distill` names and compares them with those of the student, whose head has
    /// `student_rows` rows.
    ///
    /// # Errors
    /// The folder's tokenizer or `config.json` cannot be read.
    pub fn load(
        config: &RunConfig,
        distill: &DistillSection,
        student: &Chat,
        student_rows: usize,
        rows: &[Row],
    ) -> Result<TeacherChat> {
        let chat = Chat::load(&distill.teacher, ChatOptions::of(config))
            .with_context(|| format!("distill.teacher = \"{}\"", distill.teacher.display()))?;
        let teacher_rows = sysgen_model::ModelConfig::from_directory(&distill.teacher)?.vocab_size;
        let vocabularies = compare(student, &chat, [student_rows, teacher_rows], texts(rows));
        Ok(TeacherChat { chat, vocabularies })
    }
}

/// What `[distill]` asks for, with the model of the teacher that it names loaded.
///
/// # Errors
/// The tokenizers differ and `cross_tokenizer` does not allow it, or the model cannot be loaded.
pub fn distiller(
    distill: &DistillSection,
    student: &Chat,
    teacher: &TeacherChat,
    rows: &[Row],
    examples: &[Example],
    device: &Device,
) -> Result<Distiller> {
    let mut divergence = divergence(distill);
    let path = distill.teacher.display();
    let found = &teacher.vocabularies;
    tracing::info!("{found}");
    let load = || {
        tracing::info!("loading the teacher {path}");
        Decoder::load_as(&distill.teacher, device, WeightDtype::Auto).map(Box::new)
    };
    let source = match (found, distill.cross_tokenizer) {
        (Vocabularies::Same | Vocabularies::Padded { .. }, _) => Source::Model(load()?),
        (Vocabularies::Different { .. }, CrossTokenizer::Refuse) => {
            bail!("distill.teacher = \"{path}\": {found}; {OTHER_TOKENS}")
        }
        (Vocabularies::Different { .. }, CrossTokenizer::Uld) => {
            let aligned = align(student, &teacher.chat, rows, examples)?;
            let (of, spans) = aligned.values().fold((0, 0), |(of, spans), row| {
                (of + row.count(), spans + row.spans.len())
            });
            let learnt: usize = examples.iter().map(Example::supervised).sum();
            tracing::info!(
                "sorted probabilities are compared (ULD) over {spans} spans of text that both have as whole tokens: {of} of {learnt} learnt tokens"
            );
            divergence = Divergence::Uld;
            Source::Foreign(load()?, Arc::new(aligned))
        }
    };
    Ok(Distiller {
        source,
        divergence,
        temperature: distill.temperature as f32,
        alpha: distill.alpha as f32,
    })
}

/// Texts of some rows.
fn texts(rows: &[Row]) -> impl Iterator<Item = &str> {
    let messages = rows
        .iter()
        .take(COMPARED_ROWS)
        .flat_map(|row| &row.messages);
    messages.map(|message| message.content.as_str())
}

fn divergence(distill: &DistillSection) -> Divergence {
    match distill.divergence {
        DivergenceKind::ForwardKl => Divergence::ForwardKl,
        DivergenceKind::ReverseKl => Divergence::ReverseKl,
        DivergenceKind::Jsd => Divergence::Jsd(distill.beta as f32),
    }
}

impl Distiller {
    /// From probabilities that are stored with the rows.
    pub fn of_stored(distill: &DistillSection, stored: Arc<Stored>) -> Distiller {
        tracing::info!(
            "distilling from the probabilities stored with {} rows",
            stored.len()
        );
        Distiller {
            source: Source::Stored(stored),
            divergence: divergence(distill),
            temperature: distill.temperature as f32,
            alpha: distill.alpha as f32,
        }
    }

    /// From a teacher with the student's vocabulary that is run beside it.
    pub fn of_model(
        teacher: Decoder,
        divergence: Divergence,
        temperature: f32,
        alpha: f32,
    ) -> Distiller {
        Distiller {
            source: Source::Model(Box::new(teacher)),
            divergence,
            temperature,
            alpha,
        }
    }

    /// The same for a worker on `device`, with a teacher there.
    pub(crate) fn to_device(&self, device: &Device) -> Distiller {
        let there = |model: &Decoder| Box::new(model.to_device(device));
        let source = match &self.source {
            Source::Model(model) => Source::Model(there(model)),
            Source::Foreign(model, rows) => Source::Foreign(there(model), rows.clone()),
            Source::Stored(rows) => Source::Stored(rows.clone()),
        };
        Distiller { source, ..*self }
    }

    /// The losses of the supervised positions times `weight`, `[supervised]`: `alpha` of it the distance from the teacher,
    /// the rest cross-entropy; of the student's own words the distance alone. The teacher's numbers are gone when this returns.
    pub(crate) fn losses(
        &self,
        hidden: Tensor<3>,
        head: Tensor<2>,
        batch: &Batch,
        weight: f32,
        softcap: Option<f32>,
    ) -> Tensor<1> {
        let alpha = if batch.on_policy { 1.0 } else { self.alpha };
        let settings = Distillation {
            divergence: self.divergence,
            temperature: self.temperature,
            weight: weight * alpha,
            cross_entropy_weight: weight * (1.0 - alpha),
            softcap,
        };
        match &self.source {
            Source::Model(model) => {
                let (theirs, of_theirs, cap) = said_at(model, &batch.tokens, &batch.predict_at);
                let teacher = Teacher::Hidden {
                    hidden: theirs,
                    head: of_theirs,
                    softcap: cap,
                };
                let hidden = select(hidden, &batch.predict_at);
                linear_distillation(hidden, head, &batch.targets, &teacher, settings)
            }
            Source::Stored(rows) => {
                let teacher = Teacher::Top(Arc::new(gathered(rows, batch)));
                let hidden = select(hidden, &batch.predict_at);
                linear_distillation(hidden, head, &batch.targets, &teacher, settings)
            }
            Source::Foreign(model, rows) => {
                let rows: Vec<&Aligned> = batch.row_ids.iter().map(|id| &rows[id]).collect();
                let teacher = of_other_words(model, &rows, &batch.row_targets);
                let hidden = select(hidden, &batch.predict_at);
                linear_distillation(hidden, head, &batch.targets, &teacher, settings)
            }
        }
    }
}

/// What a model of another tokenizer says of the spans of some rows, of whose tokens `learnt` are learnt each.
fn of_other_words(model: &Decoder, rows: &[&Aligned], learnt: &[usize]) -> Teacher {
    let texts: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
    let tokens = Tokens::padded(&texts, 0);
    let (mut at, mut targets, mut spans) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = 0;
    for (number, row) in rows.iter().enumerate() {
        for span in &row.spans {
            let from = targets.len();
            for token in span.teacher.clone() {
                // A token is predicted where the one before it stands.
                at.push((number * tokens.time + token - 1) as u32);
                targets.push(row.ids[token]);
            }
            let learnt = before + span.learnt.start..before + span.learnt.end;
            spans.push((learnt, from..targets.len()));
        }
        before += learnt[number];
    }
    let (hidden, head, softcap) = said_at(model, &tokens, &at);
    Teacher::Spans {
        hidden,
        head,
        softcap,
        targets,
        spans: Arc::new(spans),
    }
}

/// Hidden states at some flat positions of `tokens`, the head and the soft-cap.
fn said_at(model: &Decoder, tokens: &Tokens, at: &[u32]) -> (Tensor<2>, Tensor<2>, Option<f32>) {
    let hidden = select(model.hidden(tokens), at);
    (hidden, model.head(), model.config.final_softcap)
}

/// The stored probabilities of a batch's rows, one after the other as its targets are.
fn gathered(rows: &Stored, batch: &Batch) -> TopK {
    let mut all = TopK::default();
    for id in &batch.row_ids {
        let row = &rows[id];
        all.k = row.k;
        all.ids.extend_from_slice(&row.ids);
        all.log_probabilities
            .extend_from_slice(&row.log_probabilities);
    }
    assert_eq!(
        all.ids.len(),
        batch.targets.len() * all.k,
        "the learnt tokens of the rows"
    );
    all
}

/// Every id once: what is looked up by a row's name must have one.
pub(crate) fn ensure_new<T>(rows: &HashMap<String, T>, id: &str) -> Result<()> {
    ensure!(
        !rows.contains_key(id),
        "two rows have the id `{id}`; a teacher's probabilities are found by it"
    );
    Ok(())
}
