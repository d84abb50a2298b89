//! Every format and container is read into the same turns, and what cannot be read is counted.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use sysgen_core::config::{ColumnsSection, DataSection, Deduplicate, ExistingSystem, MultiTurn};
use sysgen_core::message::Message;
use sysgen_data::input::{Turn, read, read_records};

fn data(files: &[(&str, &[u8])]) -> (tempfile::TempDir, DataSection) {
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
fn containers_hold_the_same_rows() {
    let rows = [
        r#"{"question":"a","answer":"A"}"#,
        r#"{"question":"b","answer":"B"}"#,
    ];
    let lines = format!("\u{feff}{}\n\n{}", rows[0], rows[1]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(lines.as_bytes()).unwrap();
    let pretty: serde_json::Value =
        serde_json::from_str(&format!("[{},{}]", rows[0], rows[1])).unwrap();
    let object = format!(r#"{{"0":{},"1":{}}}"#, rows[0], rows[1]);
    let pretty_object: serde_json::Value = serde_json::from_str(&object).unwrap();
    for (name, content) in [
        ("a.jsonl", lines.clone().into_bytes()),
        ("a.jsonl.gz", gzip.finish().unwrap()),
        ("a.json", serde_json::to_vec_pretty(&pretty).unwrap()),
        ("b.json", serde_json::to_vec(&pretty).unwrap()),
        ("c.json", object.into_bytes()),
        ("d.json", serde_json::to_vec_pretty(&pretty_object).unwrap()),
    ] {
        let (_folder, data) = data(&[(name, &content)]);
        let (records, counts) = read_records(&data).unwrap();
        let questions: Vec<&str> = records
            .iter()
            .map(|record| record.messages[0].content.as_str())
            .collect();
        assert_eq!((questions, counts.found), (vec!["a", "b"], 2), "{name}");
    }
    let (_folder, data) = data(&[(
        "one.json",
        serde_json::to_vec_pretty(&pretty[0]).unwrap().as_slice(),
    )]);
    assert_eq!(
        read_records(&data).unwrap().0.len(),
        1,
        "a single pretty-printed row"
    );
}

#[test]
fn a_bad_line_costs_one_row_and_a_broken_array_is_an_error() {
    let lines = b"{\"question\":\"a\n{\"question\":\"b\",\"answer\":\"B\"}\n\xff\xfe\n{\"question\":\"c\",\"answer\":\"C\"}\n";
    let (_folder, mut of_lines) = data(&[("x.jsonl", lines)]);
    let (records, counts) = read_records(&of_lines).unwrap();
    assert_eq!(
        records.iter().map(|record| record.line).collect::<Vec<_>>(),
        [2, 4]
    );
    assert_eq!(counts.unreadable["not valid JSON"].first, ["x.jsonl:1"]);
    assert_eq!(counts.unreadable["not valid UTF-8"].first, ["x.jsonl:3"]);
    of_lines.strict = true;
    let error = format!("{:#}", read_records(&of_lines).unwrap_err());
    assert!(
        error.contains("x.jsonl:1: not valid JSON (data.strict = true"),
        "{error}"
    );

    let (_folder, broken) = data(&[("y.json", br#"[{"question":"a","answer":"A"},{"quest"#)]);
    let error = format!("{:#}", read_records(&broken).unwrap_err());
    assert!(
        error.contains("y.json: the JSON document is damaged") && error.contains("line 1"),
        "{error}"
    );
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
fn no_rows_and_no_usable_rows_are_errors() {
    let (_folder, empty) = data(&[("e.jsonl", b"\n\n")]);
    assert!(
        read(&empty, 0)
            .unwrap_err()
            .to_string()
            .contains("holds no rows")
    );
    let (_folder, bad) = data(&[("b.jsonl", b"{\"text\":1}\n{\"text\":2}\n")]);
    let error = read(&bad, 0).unwrap_err().to_string();
    assert!(
        error.contains("can be used (2 × unknown format)"),
        "{error}"
    );
}

#[test]
fn tables_are_rows_of_texts() {
    let csv = b"question,answer\na,A\n\"b, with \"\"quotes\"\"\nand a line\",B\nc\n\xff,D\ne,E";
    let bytes = csv.to_vec();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(csv).unwrap();
    for (name, bytes) in [("t.csv", bytes), ("t.CSV.gz", gzip.finish().unwrap())] {
        let (_folder, data) = data(&[(name, &bytes)]);
        let (records, counts) = read_records(&data).unwrap();
        let read: Vec<(usize, &str)> = records
            .iter()
            .map(|record| (record.line, record.messages[0].content.as_str()))
            .collect();
        let quoted = "b, with \"quotes\"\nand a line";
        assert_eq!(read, [(2, "a"), (3, quoted), (7, "e")], "{name}");
        assert_eq!(counts.found, 5);
        assert_eq!(
            counts.files[0].formats,
            [("question/answer".to_string(), 3)].into()
        );
        let places = |reason: &str| counts.unreadable[reason].first.clone();
        assert_eq!(
            places("more or fewer fields than columns"),
            [format!("{name}:5")]
        );
        assert_eq!(places("not valid UTF-8"), [format!("{name}:6")]);
    }
    let tsv = "id\tconversations\n7\t[{\"from\":\"human\",\"value\":\"Q\"},{\"from\":\"gpt\",\"value\":\"A\"}]\n";
    let quoted = tsv
        .replace('[', "\"[")
        .replace(']', "]\"")
        .replace("\"from\"", "\"\"from\"\"");
    let quoted = quoted
        .replace("\"value\"", "\"\"value\"\"")
        .replace("\"human\"", "\"\"human\"\"");
    let quoted = quoted
        .replace("\"gpt\"", "\"\"gpt\"\"")
        .replace("\"Q\"", "\"\"Q\"\"")
        .replace("\"A\"", "\"\"A\"\"");
    for table in [tsv, &quoted] {
        let (_folder, data) = data(&[("t.tsv", table.as_bytes())]);
        let (records, _) = read_records(&data).unwrap();
        assert_eq!(records[0].id, "7", "{table}");
        assert_eq!(
            records[0].messages,
            [Message::user("Q"), Message::assistant("A")]
        );
    }
}

#[test]
fn a_quote_that_is_never_closed_loses_no_rows_in_silence() {
    let (_folder, open) = data(&[("t.csv", b"question,answer\na,A\n\"b,B\nc,C\nd,D\n")]);
    let error = read_records(&open).unwrap_err().to_string();
    assert!(
        error
            .contains("t.csv: a quote is opened and never closed, perhaps in the record of line 3"),
        "{error}"
    );
    // An inch mark within a text is no opening quote.
    let (_folder, inch) = data(&[("t.csv", b"question,answer\n5\" pipe?,A\n")]);
    assert_eq!(read_records(&inch).unwrap().0.len(), 1);
    let (_folder, unnamed) = data(&[("t.csv", b"\n\n")]);
    assert!(
        read_records(&unnamed)
            .unwrap_err()
            .to_string()
            .contains("must name its columns")
    );
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
        "r.jsonl: 2 rows: 1 data.columns; 1 unreadable"
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
fn every_file_is_reported_by_format() {
    let (_folder, data) = data(&[
        (
            "a.jsonl",
            b"{\"question\":\"a\",\"answer\":\"A\"}\n{\"query\":\"b\",\"response\":\"B\"}\n{\"question\":\"c\",\"answer\":\"C\"}\nx",
        ),
        ("b.json", br#"[{"instruction":"d","input":"","output":"D"}]"#),
    ]);
    let (_, counts) = read_records(&data).unwrap();
    let lines: Vec<String> = counts.files.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "a.jsonl: 4 rows: 2 question/answer, 1 query/response; 1 unreadable",
            "b.json: 1 rows: 1 Alpaca"
        ]
    );
    assert_eq!(
        (counts.found, counts.unreadable["not valid JSON"].count),
        (5, 1)
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

/// Files that pyarrow wrote (`files/make.py`), in every compression it has.
#[test]
fn where_no_row_can_be_used_the_columns_are_named() {
    for (name, content, words) in [
        (
            "rows.csv",
            "a;b\n1;2\n",
            "1 × unknown format); its first row has the columns a;b: [data.columns]",
        ),
        (
            "rows.json",
            "[{\"topic\":1,\"text\":\"x\"}]",
            "the columns topic, text: [data.columns]",
        ),
        ("rows.jsonl", "[1]\n", "1 × not a JSON object)"),
    ] {
        let (_folder, data) = data(&[(name, content.as_bytes())]);
        let error = read(&data, 0).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// The parquet crate asserts some of what a damaged file breaks; that must not end the program.
#[test]
fn a_parquet_file_with_any_byte_damaged_is_read_or_refused() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files");
    let mut refused = 0;
    for name in ["pairs-snappy.parquet", "pairs-none.parquet"] {
        let whole = std::fs::read(folder.join(name)).unwrap();
        for at in 4..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            let (_folder, data) = data(&[("rows.parquet", &damaged)]);
            match read_records(&data) {
                Ok((records, counts)) => assert!(records.len() <= counts.found),
                Err(error) => {
                    let error = format!("{error:#}");
                    assert!(error.contains("rows.parquet: the parquet file cannot be read"));
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn parquet_files_are_read_in_every_compression() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files");
    let read = |name: &str| {
        let data = DataSection {
            path: vec![folder.join(name)],
            ..DataSection::default()
        };
        read_records(&data).unwrap()
    };
    for compression in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"] {
        let name = format!("pairs-{compression}.parquet");
        let (records, counts) = read(&name);
        let answers: Vec<(usize, &str)> = records
            .iter()
            .map(|record| (record.line, record.messages[1].content.as_str()))
            .collect();
        assert_eq!(answers, [(1, "A"), (2, "B"), (4, "D"), (5, "E")], "{name}");
        assert_eq!(records[3].messages[0].content, "Question 4, ünïcode?");
        let places = &counts.unreadable["a question without an answer"];
        assert_eq!(places.first, [format!("{name}:3")]);
    }
    let (records, counts) = read("messages.parquet");
    assert_eq!(records[0].id, "x");
    assert_eq!(
        records[0].messages,
        [
            Message::system("S"),
            Message::user("Q"),
            Message::assistant("A")
        ]
    );
    assert_eq!((records.len(), counts.unreadable["no turns"].count), (2, 1));

    // Cut off, the file has no table of contents any more.
    let whole = std::fs::read(folder.join("messages.parquet")).unwrap();
    let (_folder, cut) = data(&[("cut.parquet", &whole[..whole.len() / 2])]);
    let error = format!("{:#}", read_records(&cut).unwrap_err());
    assert!(
        error.contains("cut.parquet: the parquet file cannot be read"),
        "{error}"
    );
}
