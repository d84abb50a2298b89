//! The ready configs of the paper's five sources read rows of each set's shape.

use std::path::Path;

use sysgen_core::config::{HubDataset, RunConfig};
use sysgen_data::input::read;

use crate::scripted::Bench;

/// Config, Hub id, two rows in the set's shape (written for this test), and the questions and answers they are.
type Source = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);
const SOURCES: [Source; 5] = [
    (
        "capybara",
        "LDJnr/Capybara",
        r#"{"source":"Test","conversation":[{"input":"Why is ice slippery?","output":"It melts a little."},{"input":"Always?","output":"Nearly."}]}
{"source":"Test","conversation":[{"input":"Name a bird.","output":"The wren."}]}"#,
        &[
            ("Why is ice slippery?", "It melts a little."),
            ("Always?", "Nearly."),
            ("Name a bird.", "The wren."),
        ],
    ),
    (
        "airoboros",
        "jondurbin/airoboros-3.1",
        r#"[{"id":"1","conversations":[{"from":"system","value":"Be brief."},{"from":"human","value":"What is 2 + 3?"},{"from":"gpt","value":"<mathjson>[\"Add\", 2, 3]</mathjson>"},{"from":"human","value":"Thanks."},{"from":"gpt","value":"Welcome."}],"category":"mathjson"},
{"id":"2","conversations":[{"from":"human","value":"Who are you?"},{"from":"gpt","value":"A pirate."}],"category":"roleplay"}]"#,
        &[
            ("What is 2 + 3?", "<mathjson>[\"Add\", 2, 3]</mathjson>"),
            ("Who are you?", "A pirate."),
        ],
    ),
    (
        "orca-math",
        "microsoft/orca-math-word-problems-200k",
        r#"{"question":"Ann has 3 pens and buys 2. How many has she?","answer":"3 + 2 = 5."}
{"question":"Half of 8?","answer":"4"}"#,
        &[
            ("Ann has 3 pens and buys 2. How many has she?", "3 + 2 = 5."),
            ("Half of 8?", "4"),
        ],
    ),
    (
        "magicoder",
        "ise-uiuc/Magicoder-Evol-Instruct-110K",
        r#"{"instruction":"Print 1 in C++.","response":"std::cout << 1;"}
{"instruction":"Negate x.","response":"-x"}"#,
        &[("Print 1 in C++.", "std::cout << 1;"), ("Negate x.", "-x")],
    ),
    (
        "metamath",
        "meta-math/MetaMathQA",
        r#"[{"type":"GSM_Rephrased","query":"What do 2 and 2 make?","original_question":"What is 2+2?","response":"4\nThe answer is: 4"},
{"type":"MATH_FOBAR","query":"If x + 2 = 4, what is x?","original_question":"What is 2+2?","response":"2"}]"#,
        &[
            ("What do 2 and 2 make?", "4\nThe answer is: 4"),
            ("If x + 2 = 4, what is x?", "2"),
        ],
    ),
];

#[test]
fn every_source_of_the_paper_has_a_config() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/sources");
    let configs = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(configs, SOURCES.len());
    for (name, id, rows, expected) in SOURCES {
        let bench = Bench::new();
        let path = folder.join(format!("{name}.toml"));
        let model = format!("model.path={}", bench.folder.path().join("model").display());
        let config = RunConfig::load(&path, std::slice::from_ref(&model)).unwrap();
        let dataset = HubDataset::named_by(&config.data.path[0]).unwrap();
        assert_eq!(dataset.id, id);
        let phases = config.generate.unwrap();
        assert_eq!(
            (
                phases.draft.max_tokens,
                phases.verify.max_tokens,
                phases.respond.max_tokens
            ),
            (512, 256, 1024)
        );

        let file = bench.folder.path().join("rows.json");
        std::fs::write(&file, rows).unwrap();
        let mine = format!("data.path={}", file.display());
        let data = RunConfig::load(&path, &[model, mine]).unwrap().data;
        let input = read(&data, 0).unwrap();
        let read: Vec<(&str, &str)> = input
            .rows
            .iter()
            .map(|row| (row.turns[0].question.as_str(), row.turns[0].answer.as_str()))
            .collect();
        assert_eq!(read, expected, "{name}");
        assert!(input.rows.iter().all(|row| row.system.is_none()));
    }
}
