//! The eight functions of a system message, and phrases tagged with them: `<<Role>>…<</Role>>`.
//! Reading is total: whatever a model writes comes out as phrases and rejects, never as an error.
//! Only the eight names are tags, so `<<48/2=24>>` and `cout << x` are text.

use std::fmt;

use serde::{Deserialize, Serialize};
use sysgen_core::config::TagRules;

/// What a phrase of a system message is for (paper §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tag {
    /// The role or profession to take on.
    Role,
    /// What must appear in the answer.
    Content,
    /// What is to be done.
    Task,
    /// How to behave.
    Action,
    /// How to sound.
    Style,
    /// Context the answer must agree with.
    Background,
    /// Tools to use.
    Tool,
    /// The shape of the answer.
    Format,
}

impl Tag {
    /// The order of phrases in a finished system message (paper Fig. 2).
    pub const CANONICAL: [Tag; 8] = [
        Tag::Role,
        Tag::Content,
        Tag::Task,
        Tag::Action,
        Tag::Style,
        Tag::Background,
        Tag::Tool,
        Tag::Format,
    ];

    /// The order in the prompts, and so in the verifier's eight lines (paper Tables 12 and 13).
    pub const IN_PROMPTS: [Tag; 8] = [
        Tag::Task,
        Tag::Tool,
        Tag::Style,
        Tag::Action,
        Tag::Content,
        Tag::Background,
        Tag::Role,
        Tag::Format,
    ];

    /// The name inside the brackets.
    pub fn name(self) -> &'static str {
        match self {
            Tag::Role => "Role",
            Tag::Content => "Content",
            Tag::Task => "Task",
            Tag::Action => "Action",
            Tag::Style => "Style",
            Tag::Background => "Background",
            Tag::Tool => "Tool",
            Tag::Format => "Format",
        }
    }

    fn named(name: &str) -> Option<Tag> {
        Tag::CANONICAL.into_iter().find(|tag| tag.name() == name)
    }

    /// As `named`, in any case and in the plural (`<<Tasks>>`, seen because prompts list them so).
    fn named_loosely(name: &str) -> Option<Tag> {
        let name = name.trim();
        Tag::CANONICAL.into_iter().find(|tag| {
            let singular = tag.name();
            name.eq_ignore_ascii_case(singular)
                || name
                    .strip_suffix(['s', 'S'])
                    .is_some_and(|name| name.eq_ignore_ascii_case(singular))
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A piece of a system message and what it is for. The text is trimmed and not empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phrase {
    /// What it is for.
    pub tag: Tag,
    /// The text without tags.
    pub text: String,
}

/// Why a piece of a draft is no phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Text outside any tag.
    Untagged,
    /// Text with a tag outside the eight, such as `<<Example>>`, in a phrase or outside any.
    UnknownTag,
    /// A tag that another opening tag or the end follows.
    Unclosed,
    /// A tag closed by another one's closing tag.
    Mismatched,
    /// A closing tag that closes nothing.
    StrayClose,
    /// One of the eight names, badly written: `<<//Role>>`, `<<role>>`, `<<Roles>>`.
    Malformed,
    /// A pair of tags with nothing between.
    Empty,
}

/// A piece of a draft that is no phrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// The piece, trimmed.
    pub text: String,
}

/// Phrases and rejects of `text`, each in the order they stand there.
///
/// Strict: `<<X>>…<</X>>` with exactly the eight names and no other tag inside; a badly written one still ends the phrase it
/// stands in, so that no tag is left in a system message. Lenient also reads `<<X>>…<<X>>`,
/// `«X»…«/X»`, `<X>…</X>`, other case, plural, spaces and repeated slashes.
pub fn parse(text: &str, rules: TagRules) -> (Vec<Phrase>, Vec<Reject>) {
    let mut phrases = Vec::new();
    let mut rejects = Vec::new();
    let mut reject = |reason, text: &str| {
        rejects.push(Reject {
            reason,
            text: text.trim().to_string(),
        })
    };
    // The tag that waits for its end, and where its text starts.
    let mut open: Option<(Tag, usize)> = None;
    let mut untagged_from = 0;
    let mut from = 0;
    while let Some(mark) = next_mark(text, from, rules) {
        from = mark.end;
        let Some((tag, start)) = open else {
            reject_outside(&text[untagged_from..mark.start], &mut reject);
            untagged_from = mark.end;
            match mark.kind {
                MarkKind::Open => open = Some((mark.tag, mark.end)),
                MarkKind::Close => reject(RejectReason::StrayClose, &text[mark.start..mark.end]),
                MarkKind::Malformed => reject(RejectReason::Malformed, &text[mark.start..mark.end]),
            }
            continue;
        };
        let inside = text[start..mark.start].trim();
        untagged_from = mark.end;
        open = None;
        let closes = match mark.kind {
            MarkKind::Close => true,
            MarkKind::Open => rules == TagRules::Lenient && mark.tag == tag && !inside.is_empty(),
            MarkKind::Malformed => false,
        };
        if closes && mark.tag == tag {
            if inside.is_empty() {
                reject(RejectReason::Empty, &text[mark.start..mark.end]);
            } else if has_unknown_tag(inside) {
                reject(RejectReason::UnknownTag, inside);
            } else {
                phrases.push(Phrase {
                    tag,
                    text: inside.to_string(),
                });
            }
        } else if closes {
            reject(RejectReason::Mismatched, inside);
        } else if mark.kind == MarkKind::Malformed {
            reject(RejectReason::Malformed, inside);
        } else {
            reject(RejectReason::Unclosed, inside);
            open = Some((mark.tag, mark.end));
        }
    }
    match open {
        Some((_, start)) => reject(RejectReason::Unclosed, &text[start..]),
        None => reject_outside(&text[untagged_from..], &mut reject),
    }
    (phrases, rejects)
}

/// The phrases with their tags, one per line; `parse` gives them back.
pub fn render(phrases: &[Phrase]) -> String {
    let tagged = |phrase: &Phrase| format!("<<{0}>>{1}<</{0}>>", phrase.tag, phrase.text);
    phrases.iter().map(tagged).collect::<Vec<_>>().join("\n")
}

fn reject_outside(text: &str, reject: &mut impl FnMut(RejectReason, &str)) {
    if text.trim().is_empty() {
        return;
    }
    let unknown = has_unknown_tag(text);
    reject(
        if unknown {
            RejectReason::UnknownTag
        } else {
            RejectReason::Untagged
        },
        text,
    );
}

/// `<<Example>>`, `<<Conversational History>>`: words in tag brackets (paper §3.2, the second rule). What stands under such
/// a tag has none of the eight functions, so a phrase with one in it goes as a whole.
fn has_unknown_tag(text: &str) -> bool {
    text.match_indices("<<").any(|(at, _)| {
        let name = text[at + 2..].trim_start_matches('/');
        name.find(">>").is_some_and(|end| {
            let name = &name[..end];
            name.starts_with(|c: char| c.is_alphabetic())
                && name
                    .chars()
                    .all(|c| c.is_alphanumeric() || c == ' ' || c == '_' || c == '-')
        })
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkKind {
    Open,
    Close,
    Malformed,
}

/// A tag where it stands: `text[start..end]`.
struct Mark {
    start: usize,
    end: usize,
    tag: Tag,
    kind: MarkKind,
}

/// The next tag at or after byte `from`.
fn next_mark(text: &str, from: usize, rules: TagRules) -> Option<Mark> {
    let starts = text[from..]
        .char_indices()
        .filter(|(_, c)| *c == '<' || *c == '«');
    starts
        .map(|(at, _)| from + at)
        .find_map(|start| mark_at(text, start, rules))
}

fn mark_at(text: &str, start: usize, rules: TagRules) -> Option<Mark> {
    let rest = &text[start..];
    let brackets: &[(&str, &str)] = match rules {
        TagRules::Strict => &[("<<", ">>")],
        TagRules::Lenient => &[("<<", ">>"), ("«", "»"), ("<", ">")],
    };
    let (opening, closing) = brackets
        .iter()
        .find(|(opening, _)| rest.starts_with(opening))?;
    let body = &rest[opening.len()..];
    let length = body.find(closing)?;
    let body = &body[..length];
    let end = start + opening.len() + length + closing.len();
    let name = body.trim_start_matches(|c: char| c == '/' || c == '\\' || c.is_whitespace());
    let slashes = &body[..body.len() - name.len()];
    let closes = slashes.contains(['/', '\\']);
    let exact = Tag::named(name).filter(|_| slashes.is_empty() || slashes == "/");
    let kind = if closes {
        MarkKind::Close
    } else {
        MarkKind::Open
    };
    if let Some(tag) = exact {
        return Some(Mark {
            start,
            end,
            tag,
            kind,
        });
    }
    // `<style>` and `<content>` are HTML; in single brackets only `<Style>` is one of ours.
    if *opening == "<" && !name.starts_with(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    let tag = Tag::named_loosely(name)?;
    let kind = if rules == TagRules::Strict {
        MarkKind::Malformed
    } else {
        kind
    };
    Some(Mark {
        start,
        end,
        tag,
        kind,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
