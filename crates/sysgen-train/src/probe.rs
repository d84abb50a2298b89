//! Does the model obey? A few fixed questions under fixed system messages, each with a constraint that a program can check.
//!
//! Ours, written for this; no row of any data set. They say nothing of how good an answer is, only whether its form was
//! obeyed, and so whether training moves in the right direction. Answers are greedy.

use anyhow::Result;
use sysgen_chat::Chat;
use sysgen_core::message::Message;
use sysgen_model::Decoder;

use crate::samples;

/// What an answer has to look like.
#[derive(Clone, Copy, Debug)]
enum Constraint {
    /// Begins with these words.
    Begins(&'static str),
    /// Ends with these words.
    Ends(&'static str),
    /// Has this word, whatever its case.
    Contains(&'static str),
    /// Does not have this letter or word, whatever its case.
    Avoids(&'static str),
    /// No small letter.
    Capitals,
    /// No capital letter.
    Small,
    /// At most so many words.
    AtMostWords(usize),
    /// At least two lines, each beginning with `- `.
    Bullets,
    /// A JSON object with this key.
    Json(&'static str),
    /// Ends with a question mark.
    Question,
}

/// System message, question, constraint.
const PROBES: [(&str, &str, Constraint); 12] = [
    (
        "Begin every answer with \"Certainly:\".",
        "What do bees make?",
        Constraint::Begins("Certainly:"),
    ),
    (
        "End every answer with the words \"Over and out.\"",
        "How many days has a week?",
        Constraint::Ends("Over and out."),
    ),
    (
        "Write in capital letters only.",
        "Name a colour.",
        Constraint::Capitals,
    ),
    (
        "Write in small letters only, without any capital.",
        "What is the capital of Italy?",
        Constraint::Small,
    ),
    (
        "Answer in at most five words.",
        "Why is the sky blue?",
        Constraint::AtMostWords(5),
    ),
    (
        "Answer as a bullet list; begin every line with \"- \".",
        "Name three fruits.",
        Constraint::Bullets,
    ),
    (
        "Mention the word \"harbour\" in every answer.",
        "What can I do on a rainy day?",
        Constraint::Contains("harbour"),
    ),
    (
        "Never use the word \"very\".",
        "Describe the sun.",
        Constraint::Avoids("very"),
    ),
    (
        "Reply with a JSON object that has the key \"answer\".",
        "What is two plus two?",
        Constraint::Json("answer"),
    ),
    (
        "Do not answer; ask one question back.",
        "Which book should I read?",
        Constraint::Question,
    ),
    (
        "You are a pirate. Say \"ahoy\" in every answer.",
        "How do I boil an egg?",
        Constraint::Contains("ahoy"),
    ),
    (
        "Answer with a single word.",
        "Is the moon larger than the earth?",
        Constraint::AtMostWords(1),
    ),
];

/// The share of the probes that the model obeys.
pub(crate) fn obedience(decoder: &Decoder, chat: &Chat) -> Result<f64> {
    let conversations: Vec<Vec<Message>> = PROBES
        .iter()
        .map(|(system, user, _)| vec![Message::system(*system), Message::user(*user)])
        .collect();
    let answers = samples::replies(decoder, chat, &conversations);
    let obeyed = PROBES
        .iter()
        .zip(&answers)
        .filter(|((.., constraint), answer)| {
            answer
                .as_deref()
                .is_some_and(|answer| holds(*constraint, answer))
        })
        .count();
    Ok(obeyed as f64 / PROBES.len() as f64)
}

/// Whether an answer keeps to a constraint; an empty one never does.
fn holds(constraint: Constraint, answer: &str) -> bool {
    let answer = answer.trim();
    if answer.is_empty() {
        return false;
    }
    let lower = answer.to_lowercase();
    match constraint {
        Constraint::Begins(words) => answer.starts_with(words),
        Constraint::Ends(words) => answer.ends_with(words),
        Constraint::Contains(word) => lower.contains(word),
        Constraint::Avoids(word) => !lower.contains(word),
        Constraint::Capitals => {
            answer.chars().any(char::is_alphabetic) && !answer.chars().any(char::is_lowercase)
        }
        Constraint::Small => {
            answer.chars().any(char::is_alphabetic) && !answer.chars().any(char::is_uppercase)
        }
        Constraint::AtMostWords(most) => answer.split_whitespace().count() <= most,
        Constraint::Bullets => {
            let lines: Vec<&str> = answer
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            lines.len() >= 2 && lines.iter().all(|line| line.starts_with("- "))
        }
        Constraint::Json(key) => serde_json::from_str::<serde_json::Value>(answer)
            .is_ok_and(|value| value.get(key).is_some()),
        Constraint::Question => answer.ends_with('?'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_tell_obedience_from_its_look_alikes() {
        for (constraint, good, bad) in [
            (
                Constraint::Begins("Certainly:"),
                "Certainly: honey.",
                "Honey. Certainly:",
            ),
            (
                Constraint::Ends("Over and out."),
                "Seven. Over and out.",
                "Over and out. Seven",
            ),
            (
                Constraint::Contains("harbour"),
                "Visit the Harbour.",
                "Visit the port.",
            ),
            (Constraint::Avoids("very"), "Hot and bright.", "Very hot."),
            (Constraint::Capitals, "BLUE, OF COURSE!", "BLUE, of course"),
            (Constraint::Small, "rome.", "Rome."),
            (Constraint::Capitals, "A1", "42"),
            (Constraint::AtMostWords(1), "No.", "It is not."),
            (Constraint::Bullets, "- one\n- two", "- one\ntwo"),
            (Constraint::Json("answer"), "{\"answer\": 4}", "answer: 4"),
            (Constraint::Question, "What do you like?", "Read Emma."),
            (Constraint::Avoids("very"), "yes", ""),
        ] {
            assert!(holds(constraint, good), "{constraint:?}: {good:?}");
            assert!(!holds(constraint, bad), "{constraint:?}: {bad:?}");
        }
    }
}
