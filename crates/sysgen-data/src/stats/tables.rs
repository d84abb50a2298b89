//! The tables for a terminal.

use std::fmt;

use crate::manifest::percent;
use crate::stats::{AnswerStatistics, Statistics};
use crate::tag::Tag;
use crate::verify::Label;

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} rows", self.dataset, self.rows)?;
        match &self.answers {
            Some(answers) => write!(f, "\n{}", answers_table(answers))?,
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
    let columns = [
        "",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
        "ROUGE-Lsum",
        "GLEU words",
        "GLEU characters",
        "length ratio",
    ];
    let mut table = Table::new(&title, &columns);
    let AnswerStatistics {
        rouge1,
        rouge2,
        rouge_l,
        rouge_lsum,
        ..
    } = answers;
    let rouge = [rouge1, rouge2, rouge_l, rouge_lsum];
    let [words, characters] = [answers.gleu_words, answers.gleu_characters];
    let blank = String::new;
    table.row(
        [
            vec!["F, mean of rows".to_string()],
            rouge.map(|score| two(score.f)).to_vec(),
            vec![
                two(words.mean),
                two(characters.mean),
                two(answers.length_ratio),
            ],
        ]
        .concat(),
    );
    table.row(
        [
            vec!["precision".to_string()],
            rouge.map(|score| two(score.precision)).to_vec(),
            vec![blank(); 3],
        ]
        .concat(),
    );
    table.row(
        [
            vec!["recall".to_string()],
            rouge.map(|score| two(score.recall)).to_vec(),
            vec![blank(); 3],
        ]
        .concat(),
    );
    table.row(
        [
            vec!["whole corpus".to_string()],
            vec![blank(); 4],
            vec![two(words.corpus), two(characters.corpus), blank()],
        ]
        .concat(),
    );
    table
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
