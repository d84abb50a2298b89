//! Every format and container is read into the same turns, and what cannot be read is counted.

use sysgen_core::config::{ColumnsSection, DataSection, Deduplicate, ExistingSystem, MultiTurn};
use sysgen_core::message::Message;
use sysgen_data::input::{Turn, read, read_records};

/// These files in a folder, as the `[data]` section that names them.
pub(crate) fn data(files: &[(&str, &[u8])]) -> (tempfile::TempDir, DataSection) {
    let folder = tempfile::tempdir().unwrap();
    let mut data = DataSection::default();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        data.path.push(path);
    }
    (folder, data)
}

fn messages_of(row: &str) -> Vec<Message> {
    let (_folder, data) = data(&[("rows.jsonl", row.as_bytes())]);
    let (records, counts) = read_records(&data).unwrap();
    assert_eq!(counts.unreadable, Default::default(), "{row}");
    assert_eq!(records.len(), 1, "{row}");
    records[0].messages.clone()
}

fn reason_of(row: &str) -> String {
    let (_folder, data) = data(&[("rows.jsonl", row.as_bytes())]);
    let (records, counts) = read_records(&data).unwrap();
    assert_eq!(records, [], "{row}");
    let (reason, places) = counts.unreadable.into_iter().next().unwrap();
    assert_eq!(
        (places.count, places.first),
        (1, vec!["rows.jsonl:1".to_string()])
    );
    reason
}

#[test]
fn pairs_of_every_format_are_one_turn() {
    let pair = vec![Message::user("Q"), Message::assistant("A")];
    for row in [
        r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Q"}]},{"role":"assistant","content":[{"type":"text","value":"A"}],"loss_weight":1.0}]}"#,
        r#"{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}]}"#,
        r#"{"conversation":[{"from":"user","text":"Q"},{"from":"assistant","content":"A"}]}"#,
        r#"{"source":"x","conversation":[{"input":"Q","output":"A"}]}"#,
        r#"{"instruction":"Q","input":"","output":"A"}"#,
        r#"{"instruction":"Q","response":"A"}"#,
        r#"{"prompt":"Q","completion":"A"}"#,
        r#"{"prompt":[{"role":"user","content":"Q"}],"completion":[{"role":"assistant","content":"A"}]}"#,
        r#"{"question":"Q","answer":"A"}"#,
        r#"{"type":"t","query":"Q","original_question":"q","response":"A"}"#,
        r#"{"lang":"c","problem":"Q","solution":"A"}"#,
        r#"{"prompt":"Q","response":"A"}"#,
        r#"{"question":"Q","response":"A"}"#,
        r#"{"question":"Q","context":"","options":[],"choices":null,"answer":"A"}"#,
        r#"{"id":"t0","instruction":"Q","instances":[{"input":"","output":"A"}],"is_classification":false}"#,
    ] {
        assert_eq!(messages_of(row), pair, "{row}");
    }
}

#[test]
fn inputs_follow_their_instruction_and_histories_come_first() {
    assert_eq!(
        messages_of(r#"{"instruction":"Add.","input":"1 2","output":"3"}"#)[0],
        Message::user("Add.\n1 2")
    );
    for row in [
        // Dolly, sql-create-context.
        r#"{"instruction":"Who?","context":"Ada wrote it.","response":"Ada","category":"closed_qa"}"#,
        r#"{"instruction":"Who?","input":"","context":"Ada wrote it.","output":"Ada"}"#,
        r#"{"question":"Who?","context":"Ada wrote it.","answer":"Ada"}"#,
    ] {
        assert_eq!(
            messages_of(row)[0],
            Message::user("Who?\nAda wrote it."),
            "{row}"
        );
    }
    assert_eq!(
        messages_of(r#"{"id":"o","system_prompt":"S","question":"Q","response":"A"}"#),
        [
            Message::system("S"),
            Message::user("Q"),
            Message::assistant("A")
        ],
        "OpenOrca"
    );
    assert_eq!(
        messages_of(r#"{"instruction":"b","output":"B","system":"S","history":[["a","A"]]}"#),
        [
            Message::system("S"),
            Message::user("a"),
            Message::assistant("A"),
            Message::user("b"),
            Message::assistant("B")
        ]
    );
}

#[test]
fn what_cannot_be_used_has_a_reason() {
    for (row, reason) in [
        (r#"{"question": "Q"#, "not valid JSON"),
        ("7", "not a JSON object"),
        (
            r#"{"question":"Q","context":{"sentences":[["a"]]},"answer":"A"}"#,
            "a context that is not a text",
        ),
        (
            r#"{"question":"Q","choices":["a","b"],"answer":1}"#,
            "a list of options beside the question",
        ),
        (
            r#"{"instruction":"Q","options":{"A":"a"},"output":"A"}"#,
            "a list of options beside the question",
        ),
        (r#"{"text":"Q"}"#, "unknown format"),
        (
            r#"{"question":"Q","answer":null}"#,
            "a question without an answer",
        ),
        (r#"{"question":"Q","answer":"  "}"#, "an empty answer"),
        (r#"{"question":"","answer":"A"}"#, "an empty question"),
        (r#"{"messages":[]}"#, "no turns"),
        (
            r#"{"messages":[{"role":"user","content":"Q"}]}"#,
            "a question without an answer",
        ),
        (
            r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":null}]}"#,
            "an empty answer",
        ),
        (
            r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}]}"#,
            "tool calls",
        ),
        (
            r#"{"messages":[{"role":"user","content":"Q"},{"role":"user","content":"R"},{"role":"assistant","content":"A"}]}"#,
            "two user turns in a row",
        ),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"image","url":"u"}]},{"role":"assistant","content":"A"}]}"#,
            "a content part that is not a text",
        ),
        (
            r#"{"messages":[{"role":"narrator","content":"Q"}]}"#,
            "unknown role",
        ),
        (
            r#"{"conversations":[{"from":"gpt","value":"A"},{"from":"human","value":"Q"}]}"#,
            "the assistant speaks first",
        ),
        (
            r#"{"conversations":[{"from":"human","value":"Q"},{"from":"function_call","value":"{}"}]}"#,
            "tool calls",
        ),
    ] {
        assert_eq!(reason_of(row), reason, "{row}");
    }
}

#[test]
fn ids_are_the_rows_own_and_unique() {
    let rows = r#"{"id":"a","question":"1","answer":"1"}
{"id":7,"question":"2","answer":"2"}
{"id":"a","question":"3","answer":"3"}
{"question":"4","answer":"4"}"#;
    let (_folder, mut data) = data(&[("r.jsonl", rows.as_bytes())]);
    data.path.push(data.path[0].clone());
    let ids: Vec<String> = read_records(&data)
        .unwrap()
        .0
        .into_iter()
        .map(|record| record.id)
        .collect();
    assert_eq!(ids[..4], ["a", "7", "r.jsonl:3", "r.jsonl:4"]);
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 8, "{ids:?}");
}

#[test]
fn unrolled_rows_take_no_other_rows_id() {
    let turn = r#"{"from":"human","value":"q"},{"from":"gpt","value":"a"}"#;
    let rows = format!(
        r#"{{"id":"a","conversations":[{turn},{turn}]}}
{{"id":"a#1","question":"q","answer":"a"}}
{{"id":"a~2","question":"q","answer":"a"}}
{{"id":"b","conversations":[{turn},{turn}]}}"#
    );
    let (_folder, mut data) = data(&[("r.jsonl", rows.as_bytes())]);
    let ids = |data: &DataSection| {
        let rows = read(data, 1).unwrap().rows;
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    let expected = ["a~3#1", "a~3#2", "a#1", "a~2", "b#1", "b#2"];
    assert_eq!(ids(&data), expected);
    // An id is a row's whatever else is chosen.
    data.limit = 1;
    assert_eq!(ids(&data), expected[..2]);
    data.limit = 0;
    data.shuffle = true;
    let mut shuffled = ids(&data);
    shuffled.sort();
    let mut sorted = expected;
    sorted.sort();
    assert_eq!(shuffled, sorted);
}

#[test]
fn conversations_are_unrolled_cut_or_kept_whole() {
    let row = r#"{"id":"c","messages":[{"role":"system","content":"S"},{"role":"user","content":"a"},{"role":"assistant","content":"A"},{"role":"user","content":"b"},{"role":"assistant","content":"B"},{"role":"user","content":"c"}]}"#;
    let (_folder, mut data) = data(&[("r.jsonl", row.as_bytes())]);
    let turn = |q: &str, a: &str| Turn {
        question: q.to_string(),
        answer: a.to_string(),
    };
    let shape = |data: &DataSection| {
        let input = read(data, 0).unwrap();
        assert_eq!(input.counts.last_question_unanswered, 1);
        input
            .rows
            .into_iter()
            .map(|row| (row.id, row.system, row.history, row.turns))
            .collect::<Vec<_>>()
    };
    let (a, b) = (turn("a", "A"), turn("b", "B"));
    assert_eq!(
        shape(&data),
        [
            ("c#1".to_string(), None, vec![], vec![a.clone()]),
            ("c#2".to_string(), None, vec![a.clone()], vec![b.clone()])
        ]
    );
    data.multi_turn = MultiTurn::First;
    assert_eq!(
        shape(&data),
        [("c".to_string(), None, vec![], vec![a.clone()])]
    );
    data.multi_turn = MultiTurn::Whole;
    data.existing_system = ExistingSystem::Keep;
    assert_eq!(
        shape(&data),
        [("c".to_string(), Some("S".to_string()), vec![], vec![a, b])]
    );
    data.existing_system = ExistingSystem::Skip;
    let error = read(&data, 0).unwrap_err().to_string();
    assert!(
        error.contains("existing_system = \"skip\" leaves no row"),
        "{error}"
    );
}

#[test]
fn a_shuffle_depends_on_the_seed_and_a_larger_limit_only_adds() {
    let rows: String = (0..50)
        .map(|i| format!("{{\"id\":{i},\"question\":\"q\",\"answer\":\"a\"}}\n"))
        .collect();
    let (_folder, mut data) = data(&[("r.jsonl", rows.as_bytes())]);
    let ids = |data: &DataSection, seed| {
        read(data, seed)
            .unwrap()
            .rows
            .into_iter()
            .map(|row| row.id)
            .collect::<Vec<_>>()
    };
    data.limit = 10;
    assert_eq!(
        ids(&data, 0),
        (0..10).map(|i| i.to_string()).collect::<Vec<_>>()
    );
    data.shuffle = true;
    let ten = ids(&data, 1);
    assert_ne!(ten, ids(&data, 2));
    data.limit = 20;
    assert_eq!(ids(&data, 1)[..10], ten);
    assert_eq!(read(&data, 1).unwrap().counts.beyond_limit, 30);
}

#[test]
fn columns_of_other_names_are_read_by_the_config() {
    let rows = r#"{"nr":4,"frage":"Q","mehr":"I","antwort":42,"rolle":"S","question":"x","answer":"y"}
{"frage":"Q"}"#;
    let (_folder, mut data) = data(&[("r.jsonl", rows.as_bytes())]);
    let column = str::to_string;
    data.columns = ColumnsSection {
        question: column("frage"),
        input: column("mehr"),
        answer: column("antwort"),
        system: column("rolle"),
        id: column("nr"),
        ..ColumnsSection::default()
    };
    let (records, counts) = read_records(&data).unwrap();
    assert_eq!(records[0].id, "4");
    assert_eq!(
        records[0].messages,
        [
            Message::system("S"),
            Message::user("Q\nI"),
            Message::assistant("42")
        ]
    );
    assert_eq!(
        counts.unreadable["no text in column antwort"].first,
        ["r.jsonl:2"]
    );
    assert_eq!(
        counts.files[0].to_string(),
        "r.jsonl: 2 rows: 1 data.columns; 1 left out"
    );
    data.columns = ColumnsSection {
        messages: column("dialog"),
        ..ColumnsSection::default()
    };
    std::fs::write(&data.path[0], r#"{"dialog":[{"input":"Q","output":"A"}]}"#).unwrap();
    assert_eq!(
        read_records(&data).unwrap().0[0].messages,
        [Message::user("Q"), Message::assistant("A")]
    );
}

#[test]
fn duplicates_and_contaminated_rows_are_counted_in_source_order() {
    let rows = "{\"question\":\"a\",\"answer\":\"A\"}\n{\"question\":\"What is the sum of two and two?\",\"answer\":\"4\"}\n{\"question\":\"A\",\"answer\":\"a\"}\n{\"question\":\"b\",\"answer\":\"B\"}\n";
    let (folder, mut data) = data(&[("r.jsonl", rows.as_bytes())]);
    let bench = folder.path().join("bench.txt");
    std::fs::write(&bench, "what is the sum of two and two\n").unwrap();
    data.decontaminate = vec![bench];
    data.deduplicate = Deduplicate::Exact;
    data.shuffle = true;
    data.limit = 1;
    let counts = read(&data, 3).unwrap().counts;
    assert_eq!(counts.contaminated.first, ["r.jsonl:2"]);
    assert_eq!(counts.duplicates.first, ["r.jsonl:3"]);
    assert_eq!((counts.beyond_limit, counts.used), (1, 1));
}
