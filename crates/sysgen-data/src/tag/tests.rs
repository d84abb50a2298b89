//! What is a tag and what is text.

use super::*;
use RejectReason::*;
use TagRules::{Lenient, Strict};

#[track_caller]
fn check(rules: TagRules, text: &str, phrases: &[(Tag, &str)], rejects: &[(RejectReason, &str)]) {
    let (found, rejected) = parse(text, rules);
    let found: Vec<_> = found.iter().map(|p| (p.tag, p.text.as_str())).collect();
    let rejected: Vec<_> = rejected
        .iter()
        .map(|r| (r.reason, r.text.as_str()))
        .collect();
    assert_eq!(
        (found.as_slice(), rejected.as_slice()),
        (phrases, rejects),
        "{text}"
    );
}

#[test]
fn matching_pairs_are_phrases() {
    check(
        Strict,
        "<<Role>>You are a judge.<</Role>>\n<<Task>> Rule. <</Task>>",
        &[(Tag::Role, "You are a judge."), (Tag::Task, "Rule.")],
        &[],
    );
}

#[test]
fn a_tag_may_occur_twice() {
    check(
        Strict,
        "<<Task>>a<</Task>><<Task>>b<</Task>>",
        &[(Tag::Task, "a"), (Tag::Task, "b")],
        &[],
    );
}

#[test]
fn sums_and_streams_are_text() {
    check(
        Strict,
        "<<Task>>Show 48/2=<<48/2=24>>24 and cout << x << endl;<</Task>>",
        &[(Tag::Task, "Show 48/2=<<48/2=24>>24 and cout << x << endl;")],
        &[],
    );
    check(
        Strict,
        "<<48/2=24>>24 if (a<b) cout << x;",
        &[],
        &[(Untagged, "<<48/2=24>>24 if (a<b) cout << x;")],
    );
    check(
        Lenient,
        "<style>p</style> vector<int> a<<b>>c",
        &[],
        &[(Untagged, "<style>p</style> vector<int> a<<b>>c")].map(|(_, t)| (UnknownTag, t)),
    );
}

#[test]
fn text_outside_tags_is_rejected() {
    check(
        Strict,
        "Sure! <<Role>>a<</Role>> Done.",
        &[(Tag::Role, "a")],
        &[(Untagged, "Sure!"), (Untagged, "Done.")],
    );
}

#[test]
fn tags_outside_the_eight_are_rejected_with_their_text() {
    check(
        Strict,
        "<<Example>>x<</Example>><<Role>>a<</Role>>",
        &[(Tag::Role, "a")],
        &[(UnknownTag, "<<Example>>x<</Example>>")],
    );
}

#[test]
fn a_phrase_with_a_tag_outside_the_eight_is_rejected() {
    for rules in [Strict, Lenient] {
        check(
            rules,
            "<<Role>>You sing. <<Example>>La la.<</Example>><</Role>> <<Task>>Add 48/2=<<48/2=24>>24.<</Task>>",
            &[(Tag::Task, "Add 48/2=<<48/2=24>>24.")],
            &[(UnknownTag, "You sing. <<Example>>La la.<</Example>>")],
        );
    }
}

#[test]
fn boundaries_must_match() {
    check(
        Strict,
        "<<Task>>a<</Format>> <<Role>>b<</Role>>",
        &[(Tag::Role, "b")],
        &[(Mismatched, "a")],
    );
    check(
        Strict,
        "<<Task>>a<<Format>>b<</Format>>",
        &[(Tag::Format, "b")],
        &[(Unclosed, "a")],
    );
    check(Strict, "<<Format>>a", &[], &[(Unclosed, "a")]);
    check(
        Strict,
        "<</Format>>a",
        &[],
        &[(StrayClose, "<</Format>>"), (Untagged, "a")],
    );
    check(Strict, "<<Role>> <</Role>>", &[], &[(Empty, "<</Role>>")]);
    check(
        Strict,
        "<<Role>>a<<//Role>>b<</Role>>",
        &[],
        &[(Malformed, "a"), (Untagged, "b"), (StrayClose, "<</Role>>")],
    );
}

#[test]
fn strict_refuses_what_lenient_reads() {
    for text in [
        "<<Role>>a<<Role>>",
        "«Role»a«/Role»",
        "<Role>a</Role>",
        "<<role>>a<</ROLE>>",
        "<<Roles>>a<</ Role >>",
        "<<Role>>a<<//Role>>",
    ] {
        assert_eq!(parse(text, Strict).0, [], "{text}");
        check(Lenient, text, &[(Tag::Role, "a")], &[]);
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn phrase() -> impl Strategy<Value = Phrase> {
        let text = prop_oneof![
            "\\PC{1,40}",
            Just("48/2=<<48/2=24>>24".to_string()),
            Just("cout << x << \"a>>b\";\nreturn".to_string()),
            Just("Antworte höflich. 정중하게 «답» 하세요".to_string()),
        ];
        (0..8usize, text).prop_filter_map("a phrase holds text and no tag", |(tag, text)| {
            let text = text.trim().to_string();
            let bare = !text.is_empty()
                && !has_unknown_tag(&text)
                && next_mark(&format!("{text}<</Role>>"), 0, Strict)?.start == text.len();
            bare.then(|| Phrase {
                tag: Tag::CANONICAL[tag],
                text,
            })
        })
    }

    /// Text that is dense in almost-tags.
    fn noise() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "<<",
            ">>",
            "<",
            ">",
            "«",
            "»",
            "/",
            "\\",
            " ",
            "Role",
            "tasks",
            "Style",
            "é",
            "값",
            "\n",
            "x",
            "<<Role>>",
            "<</Role>>",
            "<</Task>>",
            "<<Example>>",
        ]);
        prop::collection::vec(pieces, 0..30).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn parse_undoes_render(phrases in prop::collection::vec(phrase(), 0..6)) {
            let (read, rejects) = parse(&render(&phrases), Strict);
            prop_assert_eq!(read, phrases);
            prop_assert_eq!(rejects, vec![]);
        }

        #[test]
        fn any_text_is_read(text in prop_oneof![".{0,80}", noise()]) {
            for rules in [Strict, Lenient] {
                let (phrases, rejects) = parse(&text, rules);
                for phrase in &phrases {
                    prop_assert!(!phrase.text.is_empty());
                    prop_assert_eq!(phrase.text.trim(), &phrase.text);
                    prop_assert!(next_mark(&phrase.text, 0, rules).is_none() && !has_unknown_tag(&phrase.text), "a tag is left in {:?}", phrase.text);
                }
                // Nothing vanishes: a text that is not blank leaves a phrase or a reject.
                prop_assert_eq!(phrases.is_empty() && rejects.is_empty(), text.trim().is_empty());
            }
        }
    }
}
