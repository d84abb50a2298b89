//! Table 8: the source data, set by set.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use sysgen_core::config::DataSection;
use sysgen_core::message::Role;

use crate::dataset::Line;
use crate::input::read_records;

/// One source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SourceStatistics {
    /// Conversations.
    pub conversations: usize,
    /// Questions with their answers; more than `conversations` where some have several turns.
    pub instances: usize,
    /// Mean length of a question, in characters.
    pub question_characters: f64,
    /// Mean length of an original answer, in characters.
    pub answer_characters: f64,
    /// Conversations that came with a system message.
    pub with_system: usize,
    /// Questions that are counted with a system message before them: `variant = "system_in_user"` of a message that the row
    /// does not tell apart, because it was the conversation's own.
    pub joined_questions: usize,
}

/// Sums by source.
#[derive(Default)]
pub(crate) struct Sums(BTreeMap<String, Sum>);

#[derive(Default)]
struct Sum {
    conversations: usize,
    instances: usize,
    question_characters: usize,
    answer_characters: usize,
    with_system: usize,
    joined_questions: usize,
}

/// Every readable conversation of the files of `[data]`, whatever `limit` says.
pub(crate) fn of_files(data: &DataSection) -> Result<Sums> {
    let mut sums = Sums::default();
    let (records, _) = read_records(data)?;
    for record in records {
        let sum = sums.0.entry(record.source).or_default();
        sum.conversations += 1;
        for pair in record.messages.windows(2) {
            if let [question, answer] = pair
                && (question.role, answer.role) == (Role::User, Role::Assistant)
            {
                sum.instances += 1;
                sum.question_characters += question.content.chars().count();
                sum.answer_characters += answer.content.chars().count();
            }
        }
        let first = record.messages.first();
        sum.with_system += usize::from(first.is_some_and(|first| first.role == Role::System));
    }
    Ok(sums)
}

impl Sums {
    /// Adds a row of the data set: the turns that are learnt, with their original answers.
    pub(crate) fn add_line(&mut self, line: &Line) {
        let provenance = &line.sysgen;
        let sum = self.0.entry(provenance.source.clone()).or_default();
        sum.conversations += 1;
        // Answers are written under a system message: where none leads, it is at the beginning of the first question.
        let written = !provenance.seeds.respond.is_empty();
        let joined = written && line.system().is_none();
        let questions = line
            .messages
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| pair[0].role == Role::User && pair[1].is_learnt());
        for ((at, pair), original) in questions.zip(line.originals()) {
            let mut question = pair[0].content.as_str();
            if joined && at == 0 {
                match line.without_drafted_system(question) {
                    Some(asked) => question = asked,
                    None => sum.joined_questions += 1,
                }
            }
            sum.instances += 1;
            sum.question_characters += question.chars().count();
            sum.answer_characters += original.chars().count();
        }
        // A system message that no draft was made for is the row's own.
        let own = provenance.annotated.is_none()
            && (joined || line.system().is_some() && provenance.model.is_some());
        sum.with_system += usize::from(own);
    }

    pub(crate) fn finish(&self) -> BTreeMap<String, SourceStatistics> {
        let finish = |(source, sum): (&String, &Sum)| {
            let mean = |total: usize| total as f64 / sum.instances.max(1) as f64;
            let statistics = SourceStatistics {
                conversations: sum.conversations,
                instances: sum.instances,
                question_characters: mean(sum.question_characters),
                answer_characters: mean(sum.answer_characters),
                with_system: sum.with_system,
                joined_questions: sum.joined_questions,
            };
            (source.clone(), statistics)
        };
        self.0.iter().map(finish).collect()
    }
}
