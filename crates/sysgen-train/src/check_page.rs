//! What the gates found, for a person: a table for the terminal, and a page that shows the rows with what is learnt marked.

use sysgen_chat::Chat;

use crate::check::{Findings, Gate, Verdict, stretches};
use crate::example::Example;
use crate::page::{escape, page};

/// The verdict as a word.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Note => "note",
        Verdict::Refused => "refused",
    }
}

/// The gates as lines of a table: gate, verdict, number of rows; below it what is the matter and the way out.
pub fn table(findings: &Findings, colour: bool) -> String {
    let width = findings.gates.iter().map(|gate| gate.name.len()).max();
    let width = width.unwrap_or(0);
    let mut lines = vec![format!("{:<width$}  {:<8}  rows", "gate", "verdict")];
    for gate in &findings.gates {
        let paint = match (colour, gate.verdict) {
            (false, _) => "",
            (true, Verdict::Passed) => "\u{1b}[32m",
            (true, Verdict::Note) => "\u{1b}[33m",
            (true, Verdict::Refused) => "\u{1b}[31m",
        };
        let plain = if colour { "\u{1b}[0m" } else { "" };
        let rows = match gate.rows.len() {
            0 => String::new(),
            rows => rows.to_string(),
        };
        let line = format!(
            "{:<width$}  {paint}{:<8}{plain}  {rows}",
            gate.name,
            word(gate.verdict)
        );
        lines.push(line.trim_end().to_string());
        if gate.verdict != Verdict::Passed {
            lines.push(format!("    {}", gate.sentence()));
        }
    }
    lines.join("\n")
}

/// One self-contained HTML page: the gates, and `examples` with what is learnt marked.
pub fn html(findings: &Findings, chat: &Chat, examples: &[&Example], about: &str) -> String {
    let gates: String = findings.gates.iter().map(gate_row).collect();
    let rows: String = examples.iter().map(|row| example_card(chat, row)).collect();
    let refused = findings.problems().len();
    let verdict = match refused {
        0 => "<p class=\"passed\">Nothing stands in the way of training.</p>".to_string(),
        n => format!("<p class=\"refused\">Training would go wrong: {n} of the gates refuse.</p>"),
    };
    page(
        "What would be learnt",
        &format!(
            "<h1>What would be learnt</h1>\n<p class=\"faint\">{}</p>\n{verdict}\n<h2>Gates</h2>\n\
             <table class=\"gates\"><thead><tr><th>gate</th><th>verdict</th><th>rows</th><th>finding</th><th>fix</th></tr></thead>\n\
             <tbody>\n{gates}</tbody></table>\n<h2>Rows</h2>\n\
             <p class=\"faint\">What the model learns to say is <mark>marked</mark>; the rest is only read.</p>\n{rows}",
            escape(about)
        ),
    )
}

fn gate_row(gate: &Gate) -> String {
    let verdict = word(gate.verdict);
    let rows = match gate.rows.len() {
        0 => String::new(),
        count => format!("{count}: {}", gate.named_rows()),
    };
    format!(
        "<tr><td>{}</td><td class=\"{verdict}\">{verdict}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        escape(gate.name),
        escape(&rows),
        escape(&gate.finding),
        escape(gate.fix)
    )
}

fn example_card(chat: &Chat, example: &Example) -> String {
    let text: String = stretches(chat, example)
        .into_iter()
        .map(|(learnt, text)| match learnt {
            true => format!("<mark>{}</mark>", escape(&text)),
            false => escape(&text),
        })
        .collect();
    format!(
        "<div class=\"card\"><div class=\"faint\">{}: {} tokens, {} learnt</div><pre>{text}</pre></div>\n",
        escape(&example.id),
        example.ids.len(),
        example.supervised()
    )
}
