//! `report.html`: the run on one page, without a network: what came out, curves over the steps, samples, the settings.

use crate::metrics::Line;
use crate::page::{escape, page};

/// Size of a curve's drawing, in its own units.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 200.0;
/// Room for the axes' words.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
/// Points drawn of a curve; of longer runs every n-th step is taken.
const POINTS: usize = 600;

/// A number with its name.
pub type Fact = (&'static str, String);

/// What a model answered to one row.
pub struct Answer {
    /// The row.
    pub id: String,
    /// What was said, by whom: system message, question, answers.
    pub said: Vec<(&'static str, String)>,
}

/// The whole page.
pub fn html(
    title: &str,
    facts: &[Fact],
    lines: &[Line],
    answers: &[Answer],
    settings: &str,
) -> String {
    let facts: String = facts
        .iter()
        .map(|(name, value)| {
            format!(
                "<div><dt>{}</dt><dd>{}</dd></div>\n",
                escape(name),
                escape(value)
            )
        })
        .collect();
    let curves: String = curves(lines)
        .into_iter()
        .map(|(name, curves)| {
            format!(
                "<div class=\"card\"><div class=\"faint\">{name}</div>{}</div>\n",
                svg(name, &curves)
            )
        })
        .collect();
    let answers: String = answers.iter().map(answer_card).collect();
    let answers = match answers.is_empty() {
        true => String::new(),
        false => format!("<h2>Answers to rows it was not trained on</h2>\n{answers}"),
    };
    page(
        title,
        &format!(
            "<h1>{}</h1>\n<div class=\"card\"><dl>{facts}</dl></div>\n<h2>Over the steps</h2>\n\
             <div class=\"curves\">{curves}</div>\n{answers}<h2>Settings</h2>\n<div class=\"card\"><pre>{}</pre></div>",
            escape(title),
            escape(settings)
        ),
    )
}

type Curve = (&'static str, Vec<(f64, f64)>);

/// The curves that have points, by the name of their drawing.
fn curves(lines: &[Line]) -> Vec<(&'static str, Vec<Curve>)> {
    let of = |value: fn(&Line) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = lines
            .iter()
            .filter_map(|line| Some((line.step as f64, value(line)?)));
        points.collect()
    };
    let drawings = vec![
        (
            "loss",
            vec![
                ("training", of(|l| l.loss)),
                ("held out", of(|l| l.eval_loss)),
            ],
        ),
        ("learning rate", vec![("", of(|l| l.learning_rate))]),
        (
            "gradient norm before clipping",
            vec![("", of(|l| l.grad_norm))],
        ),
        ("tokens per second", vec![("", of(|l| l.tokens_per_second))]),
        (
            "share of fixed system messages obeyed",
            vec![("", of(|l| l.obedience))],
        ),
    ];
    let has_points = |(_, curves): &(&str, Vec<Curve>)| curves.iter().any(|(_, p)| !p.is_empty());
    drawings.into_iter().filter(has_points).collect()
}

fn svg(name: &str, curves: &[Curve]) -> String {
    let all = || curves.iter().flat_map(|(_, points)| points);
    let (first, last) = range(all().map(|p| p.0));
    let (low, high) = range(all().map(|p| p.1));
    let x = |step: f64| LEFT + (step - first) / (last - first) * (WIDTH - LEFT - 8.0);
    let y = |value: f64| 8.0 + (high - value) / (high - low) * (HEIGHT - BOTTOM - 16.0);
    let mut inside = String::new();
    for value in [low, f64::midpoint(low, high), high] {
        inside += &format!(
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            short(value)
        );
    }
    for (step, anchor) in [(first, "start"), (last, "end")] {
        inside += &format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">step {step:.0}</text>",
            x(step),
            HEIGHT - 6.0
        );
    }
    for ((label, points), colour) in curves.iter().zip(["--one", "--two"]) {
        let every = points.len().div_ceil(POINTS).max(1);
        let drawn: Vec<String> = points
            .iter()
            .step_by(every)
            .chain(points.last())
            .map(|&(step, value)| format!("{:.1},{:.1}", x(step), y(value)))
            .collect();
        inside += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"var({colour})\" stroke-width=\"2\"/>",
            drawn.join(" ")
        );
        if let (Some(&(step, value)), false) = (points.last(), label.is_empty()) {
            inside += &format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"var({colour})\"/>",
                x(step),
                y(value)
            );
        }
    }
    let labels: Vec<String> = curves
        .iter()
        .zip(["--one", "--two"])
        .filter(|((label, points), _)| !label.is_empty() && !points.is_empty())
        .map(|((label, _), colour)| format!("<span style=\"color:var({colour})\">● {label}</span>"))
        .collect();
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" font-size=\"12\" fill=\"var(--faint)\">{inside}</svg>{}",
        escape(name),
        labels.join(" ")
    )
}

/// Least and greatest, never the same.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if high > low {
        (low, high)
    } else {
        let around = (0.5 * low.abs()).max(1e-3);
        (low - around, low + around)
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_string(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.0}"),
    }
}

fn answer_card(answer: &Answer) -> String {
    let said: String = answer
        .said
        .iter()
        .map(|(who, text)| {
            format!(
                "<div class=\"faint\">{}</div><pre>{}</pre>",
                escape(who),
                escape(text.trim())
            )
        })
        .collect();
    format!(
        "<div class=\"card\"><strong>{}</strong>{said}</div>\n",
        escape(&answer.id)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_curve_for_each_number_and_needs_no_network() {
        let line = |step: usize| Line {
            step,
            loss: Some(2.0 / (step + 1) as f64),
            learning_rate: Some(1e-6),
            eval_loss: step.is_multiple_of(5).then_some(1.5),
            ..Line::default()
        };
        let lines: Vec<Line> = (0..2000).map(line).collect();
        let answer = Answer {
            id: "a".into(),
            said: vec![("before", "<none>".into())],
        };
        let page = html(
            "A run",
            &[("steps", "2000".into())],
            &lines,
            &[answer],
            "seed = 0",
        );
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polyline").count(), 3);
        assert!(
            page.contains("held out") && page.contains("&lt;none&gt;") && page.contains("seed = 0")
        );
        assert!(!page.contains("http") && !page.contains("NaN"));
        assert!(page.len() < 60_000, "{} bytes", page.len());
    }
}
