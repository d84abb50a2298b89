//! What a row needs next, as a pure function of the answers it has got. Everything that decides about
//! a row is here, so a resumed run cannot decide otherwise than an undisturbed one.

use std::collections::BTreeMap;

use anyhow::Result;
use sysgen_core::config::{Engine, GenerateSection, RunConfig, Variant, VerifyMethod};
use sysgen_core::hash::{hash_bytes, seed_from};

use crate::filter::{filter, system_text};
use crate::generator::{Judgement, Prompt, Reply, Sampling};
use crate::input::Row;
use crate::log::{Answer, Answers, Entry, Phase};
use crate::prompt::PromptFile;
use crate::tag::{Phrase, RejectReason, Tag};
use crate::verify::Verdict;
use crate::{draft, respond, verify};

/// What the phases go by; the same for every row.
pub(crate) struct Plan {
    seed: u64,
    generate: GenerateSection,
    draft_prompt: PromptFile,
    verify_prompt: PromptFile,
}

/// What happens to a row next.
pub(crate) enum Step {
    /// The model is asked.
    Ask(Ask),
    /// It is left out.
    Dropped { phase: Phase, reason: &'static str },
    /// It is in the data set.
    Kept(Box<Kept>),
}

/// What the model is asked; `Plan::request` makes the prompt.
pub(crate) enum Ask {
    /// For a draft.
    Draft { attempt: usize },
    /// For its judgement.
    Judge(Box<Drafted>),
    /// For the answer of a turn, the earlier ones `written`.
    Respond {
        turn: usize,
        system: String,
        written: Vec<String>,
    },
}

impl Ask {
    /// The phase that the row is in.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Ask::Draft { .. } => Phase::Draft,
            Ask::Judge(_) => Phase::Verify,
            Ask::Respond { .. } => Phase::Respond,
        }
    }

    /// Of the system message that an answer is written under.
    pub(crate) fn system_hash(&self) -> Option<u64> {
        match self {
            Ask::Respond { system, .. } => Some(system_hash(system)),
            Ask::Draft { .. } | Ask::Judge(_) => None,
        }
    }
}

/// A request for the model.
pub(crate) enum Request {
    /// It writes.
    Complete(Prompt),
    /// It chooses labels.
    Choose(Judgement),
}

/// A row that went through all phases.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kept {
    /// The system message; none in `variant = "no_system"`.
    pub(crate) system: Option<String>,
    /// The draft the system message was made of.
    pub(crate) drafted: Option<Drafted>,
    /// The new answers, one per turn; empty when the original ones stay.
    pub(crate) answers: Vec<String>,
}

/// A draft with something usable in it, and what the verifier said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Drafted {
    pub(crate) attempt: usize,
    pub(crate) annotated: String,
    /// In canonical order, before verification.
    pub(crate) phrases: Vec<Phrase>,
    pub(crate) verdicts: BTreeMap<Tag, Verdict>,
    /// The phrases of these tags are in the system message.
    pub(crate) kept_tags: Vec<Tag>,
}

/// Reasons for leaving a row out.
pub(crate) const TOO_LONG: &str = "longer than the context";
pub(crate) const REFUSED: &str = "refused by the model (the log says why)";
pub(crate) const UNANSWERED: &str = "not answered by the endpoint";
pub(crate) const NOTHING_USABLE: &str = "no usable phrase in any draft";
pub(crate) const NOTHING_GOOD: &str = "no phrase judged good";
pub(crate) const EMPTY_ANSWER: &str = "empty answer";
pub(crate) const UNFINISHED_ANSWER: &str = "unfinished answer";

impl Plan {
    /// Reads the prompt files of the config.
    pub(crate) fn new(config: &RunConfig, generate: &GenerateSection) -> Result<Plan> {
        Ok(Plan {
            seed: config.seed,
            draft_prompt: draft::prompt_file(&generate.draft_prompt)?,
            verify_prompt: verify::prompt_file(&generate.verify_prompt)?,
            generate: generate.clone(),
        })
    }

    /// Whether rows that an endpoint did not answer are left out of the data set.
    pub(crate) fn skips_unanswered(&self) -> bool {
        self.generate.engine == Engine::Openai && self.generate.openai.skip_unanswered
    }

    pub(crate) fn prompt_hashes(&self) -> [&str; 2] {
        [&self.draft_prompt.hash, &self.verify_prompt.hash]
    }

    /// The prompt files by the phase they are for.
    pub(crate) fn prompt_texts(&self) -> [(&'static str, &str); 2] {
        [
            (Phase::Draft.name(), &self.draft_prompt.text),
            (Phase::Verify.name(), &self.verify_prompt.text),
        ]
    }

    /// The seed of one request. 53 bits, because the data set names it and many JSON readers hold
    /// numbers as doubles.
    pub(crate) fn seed(&self, row: &Row, phase: Phase, attempt: usize) -> u64 {
        seed_from(&[
            &self.seed.to_string(),
            &row.id,
            phase.name(),
            &attempt.to_string(),
        ]) >> 11
    }

    /// blake3 of the row's draft prompt as JSON.
    pub(crate) fn prompt_hash(&self, row: &Row) -> String {
        let messages = serde_json::to_vec(&draft::prompt(&self.draft_prompt, row));
        hash_bytes(&messages.expect("messages are plain data"))
    }

    /// The answers of `row` that count among all in the log: those of phase 4 only where they were written under the system
    /// message that the other phases lead to, which moves with the threshold.
    pub(crate) fn answers(&self, row: &Row, entries: Vec<Entry>) -> Answers {
        let place = |entry: Entry| ((entry.phase, entry.attempt), entry.answer);
        let is_response = |entry: &Entry| entry.phase == Phase::Respond;
        let (responses, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_response);
        let mut answers: Answers = others.into_iter().map(place).collect();
        if responses.is_empty() {
            return answers;
        }
        let system = match &row.system {
            Some(own) => Some(own.clone()),
            None => {
                let drafted = self.system_message(&answers).ok();
                drafted.map(|drafted| drafted.system_text())
            }
        };
        if let Some(hash) = system.as_deref().map(system_hash) {
            let count = responses
                .into_iter()
                .filter(|entry| entry.system_hash == Some(hash));
            answers.extend(count.map(place));
        }
        answers
    }

    /// What `row` needs next, given its answers so far.
    pub(crate) fn next(&self, row: &Row, answers: &Answers) -> Step {
        match self.generate.variant {
            Variant::NoSystem => {
                return Step::Kept(Box::new(Kept {
                    system: row.system.clone(),
                    ..Kept::default()
                }));
            }
            Variant::CommonSystem => {
                let common = self.generate.common_system_message.clone();
                let system = row.system.clone().unwrap_or(common);
                return Step::Kept(Box::new(Kept {
                    system: Some(system),
                    ..Kept::default()
                }));
            }
            Variant::Sysgen | Variant::OriginalAnswer | Variant::SystemInUser => {}
        }
        let (system, drafted) = match &row.system {
            Some(own) => (own.clone(), None),
            None => match self.system_message(answers) {
                Ok(drafted) => (drafted.system_text(), Some(drafted)),
                Err(step) => return step,
            },
        };
        let mut written = Vec::new();
        if self.generate.variant != Variant::OriginalAnswer {
            for turn in 0..row.turns.len() {
                let reply = match answers.get(&(Phase::Respond, turn)) {
                    Some(Answer::Reply(reply)) => reply,
                    Some(Answer::TooLong(_)) => return dropped(Phase::Respond, TOO_LONG),
                    Some(Answer::Refused(_)) => return dropped(Phase::Respond, REFUSED),
                    Some(Answer::Judged(_)) | None => {
                        return Step::Ask(Ask::Respond {
                            turn,
                            system,
                            written,
                        });
                    }
                };
                if !reply.finished {
                    return dropped(Phase::Respond, UNFINISHED_ANSWER);
                }
                if reply.text.trim().is_empty() {
                    return dropped(Phase::Respond, EMPTY_ANSWER);
                }
                written.push(reply.text.trim().to_string());
            }
        }
        Step::Kept(Box::new(Kept {
            system: Some(system),
            drafted,
            answers: written,
        }))
    }

    /// Phases 1 to 3; `Err` is the step that is still needed, or the drop.
    fn system_message(&self, answers: &Answers) -> Result<Drafted, Step> {
        let mut drafted = None;
        for attempt in 0..=self.generate.draft.retries {
            let reply = match answers.get(&(Phase::Draft, attempt)) {
                Some(Answer::Reply(reply)) => reply,
                Some(Answer::TooLong(_)) => return Err(dropped(Phase::Draft, TOO_LONG)),
                Some(Answer::Refused(_)) => return Err(dropped(Phase::Draft, REFUSED)),
                Some(Answer::Judged(_)) | None => return Err(Step::Ask(Ask::Draft { attempt })),
            };
            let phrases = filter(&reply.text, self.generate.tags).phrases;
            if !phrases.is_empty() {
                drafted = Some(Drafted {
                    attempt,
                    annotated: reply.text.clone(),
                    phrases,
                    ..Drafted::default()
                });
                break;
            }
        }
        let Some(mut drafted) = drafted else {
            return Err(dropped(Phase::Draft, NOTHING_USABLE));
        };
        drafted.verdicts = match answers.get(&(Phase::Verify, 0)) {
            Some(Answer::Judged(judged)) => verify::from_scores(&judged.scores),
            Some(Answer::Reply(reply)) => verify::from_text(&reply.text),
            Some(Answer::TooLong(_)) => return Err(dropped(Phase::Verify, TOO_LONG)),
            Some(Answer::Refused(_)) => return Err(dropped(Phase::Verify, REFUSED)),
            None => return Err(Step::Ask(Ask::Judge(Box::new(drafted)))),
        };
        for tag in Tag::CANONICAL {
            let used = drafted.phrases.iter().any(|phrase| phrase.tag == tag);
            if used && verify::keeps(&drafted.verdicts[&tag], self.generate.verify.threshold) {
                drafted.kept_tags.push(tag);
            }
        }
        if drafted.kept_tags.is_empty() {
            return Err(dropped(Phase::Verify, NOTHING_GOOD));
        }
        Ok(drafted)
    }

    /// The request of a step, and the place of its outcome.
    pub(crate) fn request(&self, row: &Row, ask: &Ask) -> ((Phase, usize), Request) {
        let (phase, attempt, messages) = match ask {
            Ask::Draft { attempt } => {
                let messages = draft::prompt(&self.draft_prompt, row);
                (Phase::Draft, *attempt, messages)
            }
            Ask::Judge(drafted) => {
                let turn = row.turns.last().expect("a row has at least one turn");
                let messages = verify::prompt(
                    &self.verify_prompt,
                    &drafted.phrases,
                    &drafted.annotated,
                    &turn.question,
                    &turn.answer,
                );
                if self.generate.verify.method == VerifyMethod::Score {
                    let steps = verify::label_steps();
                    let judgement = Judgement { messages, steps };
                    return ((Phase::Verify, 0), Request::Choose(judgement));
                }
                (Phase::Verify, 0, messages)
            }
            Ask::Respond {
                turn,
                system,
                written,
            } => {
                let messages = respond::prompt(system, row, written);
                (Phase::Respond, *turn, messages)
            }
        };
        let prompt = Prompt {
            messages,
            sampling: self.sampling(phase),
            seed: self.seed(row, phase, attempt),
            teacher_top_k: match phase {
                Phase::Respond => self.generate.respond.teacher_top_k,
                Phase::Draft | Phase::Verify => 0,
            },
        };
        ((phase, attempt), Request::Complete(prompt))
    }

    fn sampling(&self, phase: Phase) -> Sampling {
        let GenerateSection {
            draft,
            verify,
            respond,
            ..
        } = &self.generate;
        macro_rules! sampling_of {
            ($section:expr) => {
                Sampling {
                    temperature: $section.temperature,
                    top_p: $section.top_p,
                    top_k: $section.top_k,
                    min_p: $section.min_p,
                    repetition_penalty: $section.repetition_penalty,
                    max_tokens: $section.max_tokens,
                }
            };
        }
        // Three sections with the same keys and different defaults.
        match phase {
            Phase::Draft => sampling_of!(draft),
            Phase::Verify => sampling_of!(verify),
            Phase::Respond => sampling_of!(respond),
        }
    }

    /// Rejected pieces of all drafts of a row, counted by reason.
    pub(crate) fn count_rejects(
        &self,
        answers: &Answers,
        counts: &mut BTreeMap<RejectReason, usize>,
    ) {
        for reply in replies(answers, Phase::Draft) {
            for reject in filter(&reply.text, self.generate.tags).rejects {
                *counts.entry(reject.reason).or_default() += 1;
            }
        }
    }
}

impl Drafted {
    fn system_text(&self) -> String {
        let kept: Vec<Phrase> = self
            .phrases
            .iter()
            .filter(|phrase| self.kept_tags.contains(&phrase.tag))
            .cloned()
            .collect();
        system_text(&kept)
    }
}

/// What the model wrote for a row in one phase.
pub(crate) fn replies(answers: &Answers, phase: Phase) -> impl Iterator<Item = &Reply> {
    answers
        .iter()
        .filter(move |((of, _), _)| *of == phase)
        .filter_map(|(_, answer)| match answer {
            Answer::Reply(reply) => Some(reply),
            Answer::Judged(_) | Answer::TooLong(_) | Answer::Refused(_) => None,
        })
}

/// Tells system messages of one row apart. 53 bits, as `Plan::seed`.
fn system_hash(system: &str) -> u64 {
    seed_from(&["system message", system]) >> 11
}

fn dropped(phase: Phase, reason: &'static str) -> Step {
    Step::Dropped { phase, reason }
}
