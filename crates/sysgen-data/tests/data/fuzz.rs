//! Damaged input of every kind: the tag parser and the readers of rows (JSON lines, arrays, objects, CSV, TSV, parquet,
//! gzip) may refuse it, and must neither panic nor lose count. The same checks run three ways: a few thousand mutations on
//! every test run, proptest on texts made of the pieces that matter, and for as long as one likes:
//!
//!     SYSGEN_FUZZ_SECONDS=600 cargo test --workspace --test data fuzz -- --ignored --nocapture

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sysgen_core::config::{DataSection, Deduplicate, ExistingSystem, MultiTurn, TagRules};
use sysgen_core::hash::seed_from;
use sysgen_data::export::{Format, export};
use sysgen_data::filter::filter;
use sysgen_data::input::{read, read_records};
use sysgen_data::open::DataSet;
use sysgen_data::tag::{self, Tag};

use crate::scripted::{Bench, data_dir, run};

/// Mutations on every test run.
const MUTATIONS: u64 = 3000;
/// Inputs that are mutated further; the oldest find makes room for the newest.
const POOL: usize = 400;

/// Bytes of an input.
const LONGEST: usize = 1 << 15;

/// Where one piece is put in by a mutation: what the parsers look for, and what breaks parsers.
const PIECES: [&str; 40] = [
    "<<",
    ">>",
    "<</",
    "<<Role>>",
    "<</Role>>",
    "<<Task>>x<</Task>>",
    "<<//Style>>",
    "<<tools>>",
    "«Format»",
    "«/Format»",
    "<Role>",
    "<<48/2=24>>",
    "<<Example>>",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    ",",
    ":",
    "\n",
    "\r\n",
    "\u{feff}",
    "\u{2028}",
    "null",
    "1e999",
    "-0",
    "true",
    "\"messages\":",
    "\"role\":\"system\"",
    "\"conversations\":[{\"from\":\"gpt\",\"value\":1}]",
    "\"history\":[[]]",
    "\"instances\":[{}]",
    "\"id\":",
    "PAR1",
    "\u{1f}\u{8b}",
    "question,answer\n",
];

const ROWS: &str = r#"{"id":1,"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":[{"type":"text","text":"A"}],"weight":0}]}
{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"},{"from":"human","value":"R"},{"from":"gpt","value":"B"}]}
{"source":"x","conversation":[{"input":"Q","output":"A"}]}
{"instruction":"Q","input":"I","output":"A","system":"S","history":[["a","b"]]}
{"id":"t","instruction":"Q","instances":[{"input":"","output":"A"}]}
{"prompt":[{"role":"user","content":"Q"}],"completion":[{"role":"assistant","content":"A"}]}
{"question":"Was ist 48/2? <<48/2=24>>","answer":"24 안녕 \ud83d\ude00"}
"#;
const OBJECTS: &str = r#"{"0":{"query":"Q","response":"A"},"b":{"problem":"Q","solution":"A"}}"#;
const TABLE: &str = "id,question,answer\n1,\"a, \"\"b\"\"\nc\",d\n2,e,f\n";
const DRAFT: &str = "Sure: <<Role>>You are a clerk.<</Role>> <<Task>>Add 1 << 2.<</Task>>\n<<Style>>brief<<Style>> «Format»a list«/Format» <Tool>x</Tool> <<Example>>no<</Example>>";

/// What came of an input, coarsely: inputs with an outcome not seen before are mutated further.
type Outcome = String;

fn check_draft(text: &str) -> Outcome {
    let mut outcome = String::new();
    for rules in [TagRules::Strict, TagRules::Lenient] {
        let filtered = filter(text, rules);
        assert!(filtered.phrases.is_sorted_by_key(|phrase| phrase.tag));
        for phrase in &filtered.phrases {
            assert!(!phrase.text.is_empty() && phrase.text == phrase.text.trim());
            assert!(
                text.contains(&phrase.text),
                "a phrase is a piece of the draft"
            );
        }
        let (phrases, rejects) = tag::parse(text, rules);
        assert_eq!(
            (phrases.len(), &rejects),
            (filtered.phrases.len(), &filtered.rejects)
        );
        if rules == TagRules::Strict {
            for tag in Tag::CANONICAL {
                let left = |phrase: &tag::Phrase| phrase.text.contains(&format!("<<{tag}>>"));
                assert!(
                    !phrases.iter().any(left),
                    "a tag is left in a phrase of {text:?}"
                );
            }
        }
        // What was accepted is accepted again.
        let again = tag::parse(&tag::render(&phrases), rules);
        assert_eq!(again, (phrases.clone(), Vec::new()), "{text:?}");
        let tags: Vec<&str> = phrases.iter().map(|phrase| phrase.tag.name()).collect();
        let reasons: HashSet<String> = rejects
            .iter()
            .map(|reject| format!("{:?}", reject.reason))
            .collect();
        let mut reasons: Vec<String> = reasons.into_iter().collect();
        reasons.sort();
        outcome += &format!("{rules:?} {} {}; ", tags.join("+"), reasons.join("+"));
    }
    outcome
}

fn check_file(path: &Path) -> Outcome {
    let mut data = DataSection {
        path: vec![path.to_path_buf()],
        ..DataSection::default()
    };
    let (records, counts) = match read_records(&data) {
        Ok(read) => read,
        // A whole file may be refused, with a reason; numbers and places do not make a new one.
        Err(error) => {
            return format!("{error:#}")
                .chars()
                .filter(|c| c.is_alphabetic())
                .take(60)
                .collect();
        }
    };
    let unreadable: usize = counts.unreadable.values().map(|places| places.count).sum();
    assert_eq!(
        counts.found,
        records.len() + unreadable,
        "a row is neither read nor counted"
    );
    let ids: HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
    assert_eq!(ids.len(), records.len(), "two rows have one id");
    // Every input is read in one of the ways; there are many inputs.
    let mut ways = StdRng::seed_from_u64(seed_from(&[&format!("{:?}", records)]));
    let mut way = |count: usize| ways.random_range(0..count);
    data.multi_turn = [MultiTurn::Unroll, MultiTurn::First, MultiTurn::Whole][way(3)];
    data.existing_system = [
        ExistingSystem::Replace,
        ExistingSystem::Keep,
        ExistingSystem::Skip,
    ][way(3)];
    data.deduplicate = [Deduplicate::None, Deduplicate::Exact, Deduplicate::Minhash][way(3)];
    data.shuffle = way(2) == 0;
    data.limit = way(3);
    if let Ok(input) = read(&data, 1) {
        assert_eq!(input.rows.len(), input.counts.rows);
        assert!(input.rows.iter().all(|row| !row.turns.is_empty()));
    }
    let formats: Vec<String> = counts
        .files
        .iter()
        .flat_map(|file| file.formats.keys().cloned())
        .collect();
    let reasons: Vec<&str> = counts.unreadable.keys().map(String::as_str).collect();
    format!(
        "{} rows {} {}",
        records.len().min(9),
        formats.join("+"),
        reasons.join("+")
    )
}

/// An input and the name of the file that holds it; a draft needs none.
#[derive(Clone)]
struct Case {
    name: Option<&'static str>,
    bytes: Vec<u8>,
}

impl Case {
    fn check(&self, folder: &Path) -> Outcome {
        match self.name {
            None => check_draft(&String::from_utf8_lossy(&self.bytes)),
            Some(name) => {
                let path = folder.join(name);
                std::fs::write(&path, &self.bytes).unwrap();
                check_file(&path)
            }
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// A parquet file of our own, one of every text format, and a draft.
fn seeds(bench: &Bench) -> Vec<Case> {
    let config = bench.config("seed", &[]);
    run(&config).unwrap();
    let path = bench.folder.path().join("seed.parquet");
    export(
        &DataSet::open(&data_dir(&config)).unwrap(),
        Format::Parquet,
        &path,
    )
    .unwrap();
    let case = |name, bytes: &[u8]| Case {
        name,
        bytes: bytes.to_vec(),
    };
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files");
    let files = [
        "messages",
        "pairs-brotli",
        "pairs-gzip",
        "pairs-lz4",
        "pairs-none",
        "pairs-snappy",
        "pairs-zstd",
    ]
    .map(|name| std::fs::read(files.join(name).with_extension("parquet")).unwrap());
    let mut seeds = vec![
        case(None, DRAFT.as_bytes()),
        case(
            None,
            tag::render(&tag::parse(DRAFT, TagRules::Lenient).0).as_bytes(),
        ),
        case(Some("rows.jsonl"), ROWS.as_bytes()),
        case(
            Some("rows.json"),
            format!("[{}]", ROWS.trim_end().replace('\n', ",\n")).as_bytes(),
        ),
        case(Some("rows.json"), OBJECTS.as_bytes()),
        case(Some("rows.csv"), TABLE.as_bytes()),
        case(Some("rows.tsv"), TABLE.replace(',', "\t").as_bytes()),
        case(Some("rows.jsonl.gz"), &gzip(ROWS.as_bytes())),
        case(Some("rows.csv.gz"), &gzip(TABLE.as_bytes())),
        case(Some("rows.parquet"), &std::fs::read(path).unwrap()),
    ];
    seeds.extend(files.iter().map(|file| case(Some("rows.parquet"), file)));
    seeds
}

fn mutate(pool: &[Case], random: &mut StdRng) -> Case {
    let mut below = |end: usize| random.random_range(0..end.max(1));
    let mut case = pool[below(pool.len())].clone();
    for _ in 0..=below(4) {
        let bytes = &mut case.bytes;
        let from = below(bytes.len() + 1);
        let to = (from + below(24)).min(bytes.len());
        match below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(from) {
                    *byte ^= 1 << below(8);
                }
            }
            1 => drop(bytes.drain(from..to)),
            2 => bytes.truncate(from),
            3 => {
                let again = bytes[from..to].repeat(1 + below(3));
                bytes.splice(to..to, again);
            }
            4 => {
                let other = &pool[below(pool.len())].bytes;
                let start = below(other.len() + 1);
                let end = (start + below(200)).min(other.len());
                bytes.splice(from..to, other[start..end].iter().copied());
            }
            5 => {
                bytes.splice(from..to, [below(256) as u8]);
            }
            _ => {
                let piece = PIECES[below(PIECES.len())].bytes();
                bytes.splice(from..from, piece);
            }
        }
        bytes.truncate(LONGEST);
    }
    case
}

/// Mutates until `goes_on` says no; how many inputs, and how many different outcomes.
fn fuzz(seed: &str, mut goes_on: impl FnMut(u64) -> bool) -> (u64, usize) {
    let bench = Bench::new();
    let seeds = seeds(&bench);
    let mut pool = seeds.clone();
    let mut outcomes: HashSet<Outcome> = seeds
        .iter()
        .map(|case| case.check(bench.folder.path()))
        .collect();
    let mut random = StdRng::seed_from_u64(seed_from(&[seed]));
    let mut inputs = 0;
    while goes_on(inputs) {
        inputs += 1;
        let case = mutate(&pool, &mut random);
        // What a failing run needs to be repeated lies beside the panic's message.
        let failing = std::env::temp_dir().join("sysgen-fuzz-failing");
        let checked = std::panic::catch_unwind(|| case.check(bench.folder.path()));
        let outcome = checked.unwrap_or_else(|panic| {
            let _ = std::fs::write(&failing, &case.bytes);
            eprintln!(
                "seed {seed:?}, input {inputs}, as {:?}: {}",
                case.name,
                failing.display()
            );
            std::panic::resume_unwind(panic)
        });
        if outcomes.insert(outcome) {
            if pool.len() == POOL {
                pool.remove(seeds.len());
            }
            pool.push(case);
        }
    }
    (inputs, outcomes.len())
}

#[test]
fn a_few_thousand_mutations_neither_panic_nor_lose_count() {
    fuzz("every run", |inputs| inputs < MUTATIONS);
}

#[test]
#[ignore = "runs for SYSGEN_FUZZ_SECONDS, ten minutes without it"]
fn mutations_for_as_long_as_asked() {
    let seconds = std::env::var("SYSGEN_FUZZ_SECONDS").map_or(600, |text| text.parse().unwrap());
    let started = Instant::now();
    let seed = format!("{:?}", std::time::SystemTime::now());
    let (inputs, outcomes) = fuzz(&seed, |_| started.elapsed() < Duration::from_secs(seconds));
    eprintln!("{inputs} inputs, {outcomes} different outcomes, none wrong");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn drafts_of_tags_and_any_text_are_parsed(pieces in prop::collection::vec(piece(), 0..20)) {
        check_draft(&pieces.concat());
    }

    #[test]
    fn lines_of_any_text_are_counted(pieces in prop::collection::vec(piece(), 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let case = Case { name: Some("rows.jsonl"), bytes: pieces.concat().into_bytes() };
        case.check(folder.path());
    }
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(PIECES.to_vec()).prop_map(str::to_string),
        any::<String>(),
        "[a-zA-Z<>/«» \n]{0,12}",
    ]
}
