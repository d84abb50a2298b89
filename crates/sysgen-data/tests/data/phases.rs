//! What the four phases make of scripted answers.

use anyhow::Result;
use serde_json::{Value, json};
use sysgen_core::config::RunConfig;
use sysgen_core::hash::{FileHashes, hash_bytes};
use sysgen_data::generator::{Generator, Judged, Judgement, OnDone, Outcome, Prompt, Reply};
use sysgen_data::{Shard, dataset_path, is_complete_with, run_shard_with, run_with};

use crate::scripted::{Bench, Script, bytes, data_dir, lines, model, outcome, run, seed};

fn ids(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["sysgen"]["id"].as_str().unwrap())
        .collect()
}

fn system_of(question: &str, seed: u64) -> String {
    format!("You are a clerk. Answer \"{question}\" with {seed}. Be brief.")
}

#[test]
fn a_row_goes_through_all_phases() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    let summary = run(&config).unwrap();
    let lines = lines(&config);
    assert_eq!(ids(&lines), ["plain", "second attempt", "style is bad"]);

    let drafted = seed("plain", "draft", 0);
    let responded = seed("plain", "respond", 0);
    let system = system_of("What is 1+1?", drafted);
    let answer = format!("[system={system}|user=What is 1+1?|{responded}]");
    let verdict = |tag: &str| json!({"tag": tag, "label": "Good", "margin": 0.5, "kept": true});
    let mut line = lines[0].clone();
    let prompt_hash = line["sysgen"]
        .as_object_mut()
        .unwrap()
        .remove("prompt_hash")
        .unwrap();
    assert_eq!(prompt_hash.as_str().unwrap().len(), 64);
    assert_eq!(
        line,
        json!({
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": "What is 1+1?"},
                {"role": "assistant", "content": answer},
            ],
            "sysgen": {
                "id": "plain",
                "source": "rows.jsonl",
                "line": 1,
                "tags": [verdict("Role"), verdict("Task"), verdict("Style")],
                "annotated": format!("Here: <<Task>>Answer \"What is 1+1?\" with {drafted}.<</Task>>\n<<Style>>Be brief.<</Style>> <<Role>>You are a clerk.<</Role>>"),
                "original_answer": "old plain",
                "model": "script",
                "seeds": {"draft": drafted, "verify": null, "respond": [responded]},
                "tokens": {"draft_prompt": 100, "draft": 13, "verify_prompt": 50, "verify": 0, "respond_prompt": 100, "respond": 14},
            },
        })
    );
    // An attempt without a phrase is followed by one with another seed; its tokens count.
    assert_eq!(
        lines[1]["messages"][0]["content"],
        system_of("Name a fruit.", seed("second attempt", "draft", 1))
    );
    assert_eq!(lines[1]["sysgen"]["tokens"]["draft_prompt"], 200);
    // A bad tag takes its phrases along and leaves the others.
    let greet = seed("style is bad", "draft", 0);
    assert_eq!(
        lines[2]["messages"][0]["content"],
        format!("You are a clerk. Answer \"Greet me.\" with {greet}.")
    );
    assert_eq!(
        lines[2]["sysgen"]["tags"][2],
        json!({"tag": "Style", "label": "Bad", "margin": -1.75, "kept": false})
    );

    let first = &summary.samples[0];
    assert_eq!(
        (
            first.question.as_str(),
            first.original_answer.as_str(),
            &first.answer
        ),
        ("What is 1+1?", "old plain", &answer)
    );
}

#[test]
fn the_funnel_says_where_every_row_went() {
    let bench = Bench::new();
    let rows = bench.folder.path().join("rows.jsonl");
    std::fs::write(&rows, bytes(&rows) + "\nno row\n").unwrap();
    let config = bench.config("out", &[]);
    let funnel = run(&config).unwrap().funnel;
    let dropped = |counts: &sysgen_data::manifest::PhaseCounts| {
        counts
            .dropped
            .iter()
            .map(|(reason, rows)| (reason.clone(), *rows))
            .collect::<Vec<_>>()
    };
    let named = |reasons: &[&str]| {
        reasons
            .iter()
            .map(|reason| (reason.to_string(), 1))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (
            funnel.read.found,
            funnel.read.rows,
            funnel.kept,
            funnel.kept_percent
        ),
        (9, 8, 3, 37.5)
    );
    assert_eq!(
        dropped(&funnel.draft),
        named(&["longer than the context", "no usable phrase in any draft"])
    );
    assert_eq!(dropped(&funnel.verify), named(&["no phrase judged good"]));
    assert_eq!(
        dropped(&funnel.respond),
        named(&["empty answer", "unfinished answer"])
    );
    let table = funnel.to_string();
    assert!(
        table.contains("1  rows.jsonl:9") && table.contains("37.50 %"),
        "{table}"
    );
    let manifest: Value =
        serde_json::from_str(&bytes(&data_dir(&config).join("manifest.json"))).unwrap();
    assert_eq!(
        manifest["tags"]["Style"],
        json!({"drafted": 3, "labels": {"Good": 2, "Bad": 1}, "kept": 2})
    );
    // "Here:" of each of the six usable drafts, two untagged songs, one unclosed task.
    assert_eq!(
        manifest["rejected_pieces"],
        json!({"untagged": 8, "unclosed": 1})
    );
}

#[test]
fn the_written_verifier_removes_bad_tags_and_keeps_unread_ones() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.verify.method=generate"]);
    run(&config).unwrap();
    let lines = lines(&config);
    let greeting = lines
        .iter()
        .find(|line| line["sysgen"]["id"] == "style is bad")
        .unwrap();
    let labels: Vec<&str> = greeting["sysgen"]["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| tag["label"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["Unread", "Good", "Bad"]);
    assert!(
        !greeting["messages"][0]["content"]
            .as_str()
            .unwrap()
            .contains("Be brief.")
    );
    assert_eq!(
        greeting["sysgen"]["seeds"]["verify"],
        seed("style is bad", "verify", 0)
    );
    assert_eq!(
        ids(&lines),
        ["plain", "second attempt", "all bad", "style is bad"]
    );
}

#[test]
fn the_threshold_decides_by_the_margin() {
    let bench = Bench::new();
    let strict = bench.config("strict", &["generate.verify.threshold=0.6"]);
    let error = run(&strict).unwrap_err().to_string();
    assert!(
        error.contains("no row is left") && error.contains("verify: no phrase judged good"),
        "{error}"
    );
    let lax = bench.config("lax", &["generate.verify.threshold=-2"]);
    run(&lax).unwrap();
    assert!(ids(&lines(&lax)).contains(&"all bad"));
}

#[test]
fn variants_share_one_log_and_differ_in_shape() {
    let bench = Bench::new();
    let variant = |name: &str| bench.config("out", &[&format!("generate.variant={name}")]);
    run(&variant("sysgen")).unwrap();
    let sysgen = lines(&variant("sysgen"));
    let log = bytes(&data_dir(&variant("sysgen")).join("log.jsonl"));
    let silent = |config: &RunConfig| {
        run_with(config, &model(), || {
            panic!("this variant needs no more answers")
        })
        .unwrap()
    };

    silent(&variant("system_in_user"));
    let in_user = lines(&variant("system_in_user"));
    let joined = format!(
        "{}\n\nWhat is 1+1?",
        sysgen[0]["messages"][0]["content"].as_str().unwrap()
    );
    assert_eq!(
        in_user[0]["messages"][0],
        json!({"role": "user", "content": joined})
    );
    assert_eq!(in_user[0]["messages"][1], sysgen[0]["messages"][2]);

    silent(&variant("original_answer"));
    let original = lines(&variant("original_answer"));
    assert_eq!(
        ids(&original),
        [
            "plain",
            "second attempt",
            "empty answer",
            "unfinished answer",
            "style is bad"
        ]
    );
    assert_eq!(original[0]["messages"][0], sysgen[0]["messages"][0]);
    assert_eq!(original[0]["messages"][2]["content"], "old plain");
    assert_eq!(bytes(&data_dir(&variant("sysgen")).join("log.jsonl")), log);

    silent(&variant("no_system"));
    let none = lines(&variant("no_system"));
    assert_eq!(none.len(), 8);
    assert_eq!(
        none[2]["messages"],
        json!([{"role": "user", "content": "Sing."}, {"role": "assistant", "content": "old never tagged"}])
    );

    silent(&bench.config(
        "out",
        &[
            "generate.variant=common_system",
            "generate.common_system_message=Hi.",
        ],
    ));
    let common = lines(&variant("common_system"));
    assert_eq!(
        (common.len(), &common[7]["messages"][0]),
        (8, &json!({"role": "system", "content": "Hi."}))
    );
}

#[test]
fn original_answers_need_no_fourth_phase() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.variant=original_answer"]);
    run(&config).unwrap();
    assert!(!bytes(&data_dir(&config).join("log.jsonl")).contains("\"respond\",\"attempt\""));
}

const CONVERSATION: &str = r#"{"id":"talk","messages":[{"role":"system","content":"Be old."},{"role":"user","content":"one"},{"role":"assistant","content":"ONE"},{"role":"user","content":"two"},{"role":"assistant","content":"TWO"}]}"#;

fn talk(settings: &[&str]) -> Vec<Value> {
    let bench = Bench::new();
    std::fs::write(bench.folder.path().join("rows.jsonl"), CONVERSATION).unwrap();
    let config = bench.config("out", settings);
    run(&config).unwrap();
    lines(&config)
}

#[test]
fn earlier_turns_are_context_that_is_not_learnt() {
    let lines = talk(&[]);
    assert_eq!(ids(&lines), ["talk#1", "talk#2"]);
    let system = system_of("two", seed("talk#2", "draft", 0));
    let answer = format!(
        "[system={system}|user=one|assistant=ONE|user=two|{}]",
        seed("talk#2", "respond", 0)
    );
    assert_eq!(
        lines[1]["messages"],
        json!([
            {"role": "system", "content": system},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "ONE", "weight": 0},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": answer},
        ])
    );
}

#[test]
fn a_whole_conversation_is_answered_in_turn_on_its_new_answers() {
    let lines = talk(&["data.multi_turn=whole"]);
    assert_eq!(lines.len(), 1);
    let system = system_of("two", seed("talk", "draft", 0));
    let first = format!("[system={system}|user=one|{}]", seed("talk", "respond", 0));
    let second = format!(
        "[system={system}|user=one|assistant={first}|user=two|{}]",
        seed("talk", "respond", 1)
    );
    let contents: Vec<&str> = lines[0]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["content"].as_str().unwrap())
        .collect();
    assert_eq!(contents, [system.as_str(), "one", &first, "two", &second]);
    assert_eq!(
        lines[0]["sysgen"]["original_answers"],
        json!(["ONE", "TWO"])
    );
}

#[test]
fn a_kept_system_message_skips_to_the_answer() {
    let lines = talk(&["data.multi_turn=first", "data.existing_system=keep"]);
    assert_eq!(lines[0]["messages"][0]["content"], "Be old.");
    assert_eq!(
        lines[0]["messages"][2]["content"],
        format!("[system=Be old.|user=one|{}]", seed("talk", "respond", 0))
    );
    assert_eq!(lines[0]["sysgen"]["annotated"], Value::Null);
}

#[test]
fn a_run_is_complete_until_its_config_data_or_data_set_changes() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    let complete = |config: &RunConfig| is_complete_with(config, &model()).unwrap();
    assert!(!complete(&config));
    run(&config).unwrap();
    assert!(complete(&config));
    assert!(complete(&bench.config("out", &["generate.batch_size=3"])));
    for change in [
        "generate.variant=no_system",
        "data.limit=3",
        "generate.draft.temperature=0.6",
        "seed=6",
    ] {
        assert!(!complete(&bench.config("out", &[change])), "{change}");
    }
    let (dataset, _) = outcome(&config);
    std::fs::write(dataset_path(&config), &dataset[..dataset.len() / 2]).unwrap();
    assert!(!complete(&config));
    run(&config).unwrap();
    assert!(complete(&config));
    assert_eq!(outcome(&config).0, dataset);
}

#[test]
fn what_the_program_has_hashed_is_not_read_again() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.variant=no_system"]);
    let files = FileHashes::default();
    let path = &config.data.path[0];
    let before = bytes(path);
    files.of(path).unwrap();
    std::fs::write(path, format!("{before}\n")).unwrap();
    run_shard_with(&config, &model(), Shard::WHOLE, &files, || unreachable!()).unwrap();
    let manifest: Value = serde_json::from_str(&outcome(&config).1).unwrap();
    let known = &manifest["key"]["data.path 1 (rows.jsonl)"];
    assert_eq!(*known, hash_bytes(before.as_bytes()));
}

#[test]
fn without_retries_a_draft_has_one_attempt() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.draft.retries=0"]);
    let funnel = run(&config).unwrap().funnel;
    assert_eq!(funnel.draft.dropped["no usable phrase in any draft"], 2);
    assert_eq!(ids(&lines(&config)), ["plain", "style is bad"]);
}

/// Drafts these words, whatever the row, and finds everything good.
struct Drafter(&'static str);

impl Generator for Drafter {
    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()> {
        for (i, prompt) in prompts.iter().enumerate() {
            let asked = &prompt.messages.last().unwrap().content;
            let drafts = asked.contains("## [Conversation]");
            let reply = Reply {
                teacher: None,
                text: if drafts { self.0 } else { "Done." }.to_string(),
                finished: true,
                prompt_tokens: 1,
                reply_tokens: 1,
            };
            let _ = on_done(i, Outcome::Done(reply));
        }
        Ok(())
    }

    fn choose(&mut self, judgements: Vec<Judgement>, on_done: OnDone<'_, Judged>) -> Result<()> {
        let mut script = Script {
            at_once: 1,
            dies_after: None,
            requests: 0,
        };
        script.choose(judgements, on_done)
    }
}

#[test]
fn lenient_tags_make_a_system_message_of_what_strict_ones_drop() {
    let bench = Bench::new();
    let with = |tags: &str| {
        let set = format!("generate.tags={tags}");
        let config = bench.config(tags, &[&set, "data.limit=1"]);
        let draft = "<<role>>You are a clerk.<</Role>> <Style>Be brief.</Style>";
        let run = run_with(&config, &model(), || Ok(Box::new(Drafter(draft))));
        run.map(|_| lines(&config)[0]["messages"][0]["content"].clone())
    };
    let error = with("strict").unwrap_err().to_string();
    assert!(error.contains("no usable phrase in any draft"), "{error}");
    assert_eq!(with("lenient").unwrap(), "You are a clerk. Be brief.");
}
