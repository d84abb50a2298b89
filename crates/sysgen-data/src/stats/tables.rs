//! The tables for a terminal.

use std::fmt;

use crate::manifest::percent;
use crate::stats::bert_score::BertScoreStatistics;
use crate::stats::rouge::Score;
use crate::stats::{AnswerStatistics, Statistics};
use crate::tag::Tag;
use crate::verify::Label;

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} rows", self.dataset, self.rows)?;
        match &self.answers {
            Some(answers) => {
                write!(f, "\n{}", answers_table(answers))?;
                if let Some(column) = &answers.bert_score {
                    writeln!(f, "{}", bert_score_line(column, answers.pairs))?;
                }
            }
            None => writeln!(
                f,
                "\nNew answers against original ones (Table 1): no answer was written anew"
            )?,
        }
        if let Some(funnel) = &self.funnel {
            let rows = funnel.read.rows;
            let mut table = Table::new("Rows after each phase (Table 2)", &["phase", "rows", "%"]);
            for (name, left) in [
                ("original", rows),
                ("draft, filter", funnel.draft.left),
                ("verify", funnel.verify.left),
                ("respond", funnel.respond.left),
            ] {
                table.row([name.to_string(), left.to_string(), two(percent(left, rows))]);
            }
            write!(f, "\n{table}")?;
        }
        let columns = [
            "tag", "kept", "%", "drafted", "Good", "Bad", "None", "unread",
        ];
        let mut table = Table::new("Rows that have a tag (Table 6)", &columns);
        for (tag, counts) in &self.tags {
            let labels = [Label::Good, Label::Bad, Label::None, Label::Unread]
                .map(|label| counts.labels.get(&label).copied().unwrap_or(0).to_string());
            let share = two(percent(counts.kept, self.rows));
            let start = [
                tag.to_string(),
                counts.kept.to_string(),
                share,
                counts.drafted.to_string(),
            ];
            table.row(start.into_iter().chain(labels));
        }
        write!(f, "\n{table}")?;
        let title = format!("Source data, {} (Table 8)", self.sources.of);
        let columns = [
            "source",
            "instances",
            "question",
            "answer",
            "conversations",
            "with a system message",
        ];
        let mut table = Table::new(&title, &columns);
        for (source, statistics) in &self.sources.by_source {
            table.row([
                source.clone(),
                statistics.instances.to_string(),
                two(statistics.question_characters),
                two(statistics.answer_characters),
                statistics.conversations.to_string(),
                statistics.with_system.to_string(),
            ]);
        }
        writeln!(f, "\n{table}  question, answer: mean length in characters")?;
        let joined: usize = (self.sources.by_source.values())
            .map(|statistics| statistics.joined_questions)
            .sum();
        if joined > 0 {
            writeln!(
                f,
                "  {joined} question(s) are counted with the system message that `variant = \"system_in_user\"` put before them; \
                 --config FILE counts the source files instead"
            )?;
        }
        let columns = std::iter::once("source").chain(Tag::CANONICAL.map(Tag::name));
        let title = "Judged Bad / None, % of the kept rows whose draft has the tag (Table 9)";
        let mut table = Table::new(title, &columns.collect::<Vec<_>>());
        for (source, tags) in &self.removed {
            let share = |tag: Tag| {
                tags.get(&tag).map_or("-".to_string(), |removed| {
                    format!("{:.2}/{:.2}", removed.bad_percent, removed.none_percent)
                })
            };
            table.row(std::iter::once(source.clone()).chain(Tag::CANONICAL.map(share)));
        }
        write!(f, "\n{table}")
    }
}

fn answers_table(answers: &AnswerStatistics) -> Table {
    let stemmed = if answers.stemmer {
        ", ROUGE with stemmer"
    } else {
        ""
    };
    let title = format!(
        "New answers against original ones, {} pairs{stemmed} (Table 1)",
        answers.pairs
    );
    let scores = [
        ("ROUGE-1", Some(answers.rouge1)),
        ("ROUGE-2", Some(answers.rouge2)),
        ("ROUGE-L", Some(answers.rouge_l)),
        ("ROUGE-Lsum", Some(answers.rouge_lsum)),
        (
            "BERTScore",
            answers.bert_score.as_ref().map(|column| column.score),
        ),
    ];
    let mut columns: Vec<[String; 5]> = Vec::new();
    for (name, score) in scores {
        if let Some(Score {
            precision,
            recall,
            f,
        }) = score
        {
            let [f, precision, recall] = [f, precision, recall].map(two);
            columns.push([name.to_string(), f, precision, recall, String::new()]);
        }
    }
    let blank = String::new;
    for (name, gleu) in [
        ("GLEU words", answers.gleu_words),
        ("GLEU characters", answers.gleu_characters),
    ] {
        let [mean, corpus] = [gleu.mean, gleu.corpus].map(two);
        columns.push([name.to_string(), mean, blank(), blank(), corpus]);
    }
    let ratio = two(answers.length_ratio);
    columns.push(["length ratio".to_string(), ratio, blank(), blank(), blank()]);
    let rows = ["", "F, mean of rows", "precision", "recall", "whole corpus"];
    let row = |i: usize| {
        let cells = columns.iter().map(move |column| column[i].clone());
        std::iter::once(rows[i].to_string()).chain(cells)
    };
    let mut table = Table {
        title,
        rows: vec![row(0).collect()],
    };
    for i in 1..rows.len() {
        table.row(row(i));
    }
    table
}

fn bert_score_line(column: &BertScoreStatistics, pairs: usize) -> String {
    let BertScoreStatistics {
        model,
        layer,
        max_length,
        cut_texts,
        ..
    } = column;
    let mut line = format!("  BERTScore: {model}, layer {layer}, no idf, no rescaling");
    if column.pairs < pairs {
        line.push_str(&format!("; {} of {pairs} pairs", column.pairs));
    }
    if *cut_texts > 0 {
        line.push_str(&format!(
            "; {cut_texts} of {} answers are longer than its {max_length} tokens and were cut",
            2 * column.pairs
        ));
    }
    line
}

fn two(value: f64) -> String {
    format!("{value:.2}")
}

/// A title, a heading and rows; the first column is aligned left, the others right.
struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: &str, columns: &[&str]) -> Table {
        Table {
            title: title.to_string(),
            rows: vec![columns.iter().map(|column| column.to_string()).collect()],
        }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for row in &self.rows {
            let mut line = format!("  {:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
