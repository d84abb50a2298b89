//! Damaged input by the thousand: readers and the tag parser neither crash nor lose a row in silence. Some
//! rounds run with the tests; `SYSGEN_FUZZ_SECONDS=600` goes on for ten minutes, from another start each time.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sysgen_core::config::{DataSection, Deduplicate, MultiTurn, TagRules};
use sysgen_data::input::{read, read_records};
use sysgen_data::tag;

/// Rounds with the tests.
const ROUNDS: usize = 300;

const ROWS: [&str; 6] = [
    "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Q\"}]},{\"role\":\"assistant\",\"content\":\"A\",\"tool_calls\":[]}]}",
    "{\"id\":7,\"conversations\":[{\"from\":\"human\",\"value\":\"Q\"},{\"from\":\"gpt\",\"value\":\"ünï\\n\"}],\"system\":\"S\"}",
    "{\"conversation\":[{\"input\":\"Q\",\"output\":\"A\"},{\"input\":\"R\",\"output\":\"B\"}]}",
    "{\"instruction\":\"I\",\"input\":\"x\",\"output\":\"y\",\"history\":[[\"a\",\"b\"]]}",
    "{\"question\":\"What is 1+1?\",\"answer\":\"<<1+1=2>>2\"}",
    "{\"prompt\":[{\"role\":\"user\",\"content\":\"Q\"}],\"completion\":[{\"role\":\"assistant\",\"content\":\"A\"}]}",
];
const DRAFTS: [&str; 3] = [
    "<<Role>>You are a clerk.<</Role>> and <<Task>>add<</Task>>",
    "cout << x; <<48/2=24>> <<Style>>short<<Style>> «Tool»t«/Tool»",
    "<Role>r</Role><<Format>>JSON <<Content>>c<</Content>>",
];
/// What damage is made of.
const PIECES: [&str; 24] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "\r\n",
    "\\",
    "null",
    "<<",
    ">>",
    "<</",
    "Role",
    "«",
    "\u{feff}",
    "PAR1",
    "\u{1f600}",
    "\u{0}",
    "1e999",
    "\"role\"",
    "<<Role>>",
    "<</Role>>",
];

/// A few changes of bytes, ranges and pieces.
fn damage(bytes: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(0..6) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..20)).min(bytes.len());
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                let to = random.random_range(0..=bytes.len());
                bytes.splice(to..to, copy);
            }
            3 => bytes.truncate(at),
            _ => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
}

/// A file of rows in some container, whole.
fn file(random: &mut StdRng) -> (&'static str, Vec<u8>) {
    let count = random.random_range(0..5);
    let rows: Vec<&str> = (0..count)
        .map(|_| ROWS[random.random_range(0..ROWS.len())])
        .collect();
    match random.random_range(0..5) {
        0 => ("r.json", format!("[{}]", rows.join(",")).into_bytes()),
        1 => {
            let rows: Vec<String> = rows
                .iter()
                .enumerate()
                .map(|(i, row)| format!("\"{i}\":{row}"))
                .collect();
            ("r.json", format!("{{{}}}", rows.join(",")).into_bytes())
        }
        2 => (
            "r.csv",
            "question,answer\na,\"b\nc\"\nd,e\n\"f\",\"g\"\"h\"\n"
                .as_bytes()
                .to_vec(),
        ),
        3 => {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files");
            let file = [
                "messages.parquet",
                "pairs-snappy.parquet",
                "pairs-none.parquet",
            ][random.random_range(0..3)];
            ("r.parquet", std::fs::read(folder.join(file)).unwrap())
        }
        _ => ("r.jsonl", rows.join("\n").into_bytes()),
    }
}

fn round(random: &mut StdRng, folder: &std::path::Path) {
    let (name, mut bytes) = file(random);
    damage(&mut bytes, random);
    let path = folder.join(name);
    std::fs::write(&path, &bytes).unwrap();
    let data = DataSection {
        path: vec![path],
        deduplicate: Deduplicate::Minhash,
        multi_turn: [MultiTurn::Unroll, MultiTurn::First, MultiTurn::Whole]
            [random.random_range(0..3)],
        ..DataSection::default()
    };
    if let Ok((records, counts)) = read_records(&data) {
        let unreadable: usize = counts.unreadable.values().map(|places| places.count).sum();
        assert_eq!(counts.found, records.len() + unreadable, "{bytes:?}");
        let ids: HashSet<&String> = records.iter().map(|record| &record.id).collect();
        assert_eq!(ids.len(), records.len(), "{bytes:?}");
    }
    if let Ok(input) = read(&data, 0) {
        assert!(
            input.rows.iter().all(|row| !row.turns.is_empty()),
            "{bytes:?}"
        );
    }

    let mut draft = DRAFTS[random.random_range(0..DRAFTS.len())]
        .as_bytes()
        .to_vec();
    damage(&mut draft, random);
    let draft = String::from_utf8_lossy(&draft);
    for rules in [TagRules::Strict, TagRules::Lenient] {
        let (phrases, _) = tag::parse(&draft, rules);
        assert!(
            phrases.iter().all(|phrase| !phrase.text.trim().is_empty()),
            "{draft:?}"
        );
        // What was accepted is accepted again.
        let (again, rejects) = tag::parse(&tag::render(&phrases), rules);
        assert_eq!((again, rejects.len()), (phrases, 0), "{draft:?}");
    }
}

#[test]
fn damaged_input_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = std::env::var("SYSGEN_FUZZ_SECONDS").ok();
    let Some(seconds) = seconds.and_then(|text| text.parse().ok()) else {
        let mut random = StdRng::seed_from_u64(0);
        for _ in 0..ROUNDS {
            round(&mut random, folder.path());
        }
        return;
    };
    let start = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut random = StdRng::seed_from_u64(start.as_nanos() as u64);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut rounds = 0u64;
    while Instant::now() < end {
        round(&mut random, folder.path());
        rounds += 1;
    }
    println!("{rounds} rounds from {start:?}");
}
