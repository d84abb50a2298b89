//! Files of every kind hold the same rows; broken ones cost what is broken, and each is reported by itself.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use sysgen_core::config::DataSection;
use sysgen_core::message::Message;
use sysgen_data::input::{read, read_records};

use crate::formats::data;

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
            "a.jsonl: 4 rows: 2 question/answer, 1 query/response; 1 left out",
            "b.json: 1 rows: 1 Alpaca"
        ]
    );
    assert_eq!(
        (counts.found, counts.unreadable["not valid JSON"].count),
        (5, 1)
    );
}

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

/// Files that pyarrow wrote (`files/make.py`), in every compression it has.
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
