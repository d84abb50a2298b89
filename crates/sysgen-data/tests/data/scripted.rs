//! A model that answers from a script: a pure function of each request, answered in an odd order and
//! in batches of any size, and able to die after so many answers.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;
use sysgen_core::config::RunConfig;
use sysgen_core::hash::seed_from;
use sysgen_data::generator::{
    Generator, Judged, Judgement, OnDone, Outcome, Prompt, Reply, Scores,
};
use sysgen_data::{ModelIdentity, Summary, dataset_path, run_with};

/// The source rows of the tests, in the order the script knows them.
pub(crate) const ROWS: [(&str, &str); 8] = [
    ("plain", "What is 1+1?"),
    ("second attempt", "Name a fruit."),
    ("never tagged", "Sing."),
    ("all bad", "Dance."),
    ("draft too long", "Long?"),
    ("empty answer", "Silence?"),
    ("unfinished answer", "Count!"),
    ("style is bad", "Greet me."),
];

/// The seed the library promises for a request.
pub(crate) fn seed(row: &str, phase: &str, attempt: usize) -> u64 {
    seed_from(&["5", row, phase, &attempt.to_string()]) >> 11
}

pub(crate) struct Script {
    pub(crate) at_once: usize,
    pub(crate) dies_after: Option<usize>,
    pub(crate) requests: usize,
}

impl Script {
    fn answer<R, T>(
        &mut self,
        requests: &[R],
        on_done: OnDone<'_, T>,
        answer: fn(&R) -> Outcome<T>,
    ) -> Result<()> {
        let indices: Vec<usize> = (0..requests.len()).collect();
        for batch in indices.chunks(self.at_once) {
            for i in batch.iter().rev() {
                if self.dies_after == Some(self.requests) {
                    bail!("the power is gone");
                }
                self.requests += 1;
                if on_done(*i, answer(&requests[*i])).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Generator for Script {
    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()> {
        self.answer(&prompts, on_done, write)
    }

    fn choose(&mut self, judgements: Vec<Judgement>, on_done: OnDone<'_, Judged>) -> Result<()> {
        self.answer(&judgements, on_done, judge)
    }
}

fn asked_about(text: &str) -> &'static str {
    ROWS.iter()
        .find(|(_, question)| text.contains(question))
        .map_or("other", |(name, _)| name)
}

fn write(prompt: &Prompt) -> Outcome<Reply> {
    let text = &prompt.messages.last().unwrap().content;
    let row = asked_about(text);
    let reply = |text: String, finished| {
        let reply_tokens = text.split_whitespace().count();
        Outcome::Done(Reply {
            teacher: None,
            text,
            finished,
            prompt_tokens: 100,
            reply_tokens,
        })
    };
    if text.contains("## [Conversation]") {
        assert_eq!(
            (prompt.sampling.temperature, prompt.sampling.max_tokens),
            (0.7, 512)
        );
        let question = text.split("User: ").last().unwrap().lines().next().unwrap();
        return match row {
            "draft too long" => Outcome::TooLong(9000),
            "never tagged" => reply("You sing well.".to_string(), true),
            "second attempt" if prompt.seed == seed(row, "draft", 0) => {
                reply("<<Task>>unclosed".to_string(), false)
            }
            _ => reply(
                format!(
                    "Here: <<Task>>Answer \"{question}\" with {}.<</Task>>\n<<Style>>Be brief.<</Style>> <<Role>>You are a clerk.<</Role>>",
                    prompt.seed
                ),
                true,
            ),
        };
    }
    if text.contains("## [Filtered System Message]") {
        assert_eq!(prompt.sampling.max_tokens, 256);
        let label = if row == "style is bad" { "Bad" } else { "Good" };
        return reply(
            format!("<<Task>>: Good\n<<Style>>: {label}\nnonsense"),
            true,
        );
    }
    assert_eq!(prompt.sampling.max_tokens, 1024);
    match row {
        "empty answer" => reply(" \n".to_string(), true),
        "unfinished answer" => reply("1, 2, 3,".to_string(), false),
        _ => {
            // The whole conversation shapes the answer, so that a wrong prompt shows.
            let said: Vec<String> = prompt
                .messages
                .iter()
                .map(|message| format!("{}={}", message.role, message.content))
                .collect();
            reply(format!("[{}|{}]\n", said.join("|"), prompt.seed), true)
        }
    }
}

fn judge(judgement: &Judgement) -> Outcome<Judged> {
    let text = &judgement.messages.last().unwrap().content;
    let row = asked_about(text);
    let scores = judgement.steps.iter().map(|step| {
        assert_eq!(step.labels, [" Good", " Bad", " None"]);
        let bad = row == "all bad" || (row == "style is bad" && step.forced.contains("<<Style>>:"));
        if bad {
            Scores {
                best: 1,
                log_probabilities: vec![-2.0, -0.25, -3.0],
            }
        } else {
            Scores {
                best: 0,
                log_probabilities: vec![-0.5, -1.25, -1.0],
            }
        }
    });
    Outcome::Done(Judged {
        scores: scores.collect(),
        prompt_tokens: 50,
    })
}

/// A folder with the source rows, and configs over it.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let rows = ROWS.map(|(id, question)| {
            format!(r#"{{"id":"{id}","question":"{question}","answer":"old {id}"}}"#)
        });
        std::fs::write(folder.path().join("rows.jsonl"), rows.join("\n")).unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join("model/config.json"), "{}").unwrap();
        Bench { folder }
    }

    /// The config with `settings` over it; its output goes to the folder `output`.
    pub(crate) fn config(&self, output: &str, settings: &[&str]) -> RunConfig {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let text = format!(
            "output_dir = {:?}\nseed = 5\n[model]\npath = {:?}\n[data]\npath = {:?}\n[generate]\n",
            path(output),
            path("model"),
            path("rows.jsonl")
        );
        std::fs::write(self.folder.path().join("run.toml"), text).unwrap();
        let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
        RunConfig::load(&self.folder.path().join("run.toml"), &settings).unwrap()
    }
}

pub(crate) fn model() -> ModelIdentity {
    ModelIdentity {
        name: "script".to_string(),
        key: [("model".to_string(), "v1".to_string())].into(),
    }
}

pub(crate) fn run(config: &RunConfig) -> Result<Summary> {
    run_until(config, None)
}

/// As `run`, with a model that dies after so many answers.
pub(crate) fn run_until(config: &RunConfig, dies_after: Option<usize>) -> Result<Summary> {
    let at_once = config.generate.as_ref().unwrap().batch_size;
    run_with(config, &model(), || {
        Ok(Box::new(Script {
            at_once,
            dies_after,
            requests: 0,
        }))
    })
}

pub(crate) fn data_dir(config: &RunConfig) -> PathBuf {
    config.generated_data_dir()
}

pub(crate) fn bytes(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The rows of the data set.
pub(crate) fn lines(config: &RunConfig) -> Vec<Value> {
    bytes(&dataset_path(config))
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The data set and the manifest.
pub(crate) fn outcome(config: &RunConfig) -> (String, String) {
    (
        bytes(&data_dir(config).join("dataset.jsonl")),
        bytes(&data_dir(config).join("manifest.json")),
    )
}
