//! The program itself, from the command line, on the embedded model: what a person types and what is left on disk.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// The quickstart's data in `folder`, of a few rows, with further arguments.
fn generate(folder: &Path, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-data"));
    command.current_dir(root).env("NO_COLOR", "1");
    command.args(arguments);
    command.args([
        "--config",
        "configs/quickstart.toml",
        "--set",
        "data.limit=6",
    ]);
    let output_dir = format!("output_dir={}", folder.display());
    command.args(["--set", &output_dir]).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy);
    text.join("\n")
}

#[test]
fn one_run_and_shards_with_a_merge_write_the_same_bytes() {
    let (whole, parts) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = |folder: &TempDir| std::fs::read(folder.path().join("data/dataset.jsonl"));
    let run = generate(whole.path(), &[]);
    assert!(run.status.success(), "{}", said(&run));
    assert!(said(&run).contains("rows for the phases"), "{}", said(&run));

    let merge = generate(parts.path(), &["merge"]);
    assert!(said(&merge).contains("no answers yet"), "{}", said(&merge));
    for shard in ["2/2", "1/2"] {
        assert!(dataset(&parts).is_err());
        let run = generate(parts.path(), &["--shard", shard]);
        assert!(run.status.success(), "{}", said(&run));
    }
    assert_eq!(dataset(&parts).unwrap(), dataset(&whole).unwrap());
    std::fs::remove_file(parts.path().join("data/manifest.json")).unwrap();
    let merge = generate(parts.path(), &["merge"]);
    assert!(merge.status.success(), "{}", said(&merge));
    assert_eq!(dataset(&parts).unwrap(), dataset(&whole).unwrap());
}

#[test]
fn quiet_says_nothing_and_a_dry_run_writes_nothing() {
    let folder = TempDir::new().unwrap();
    let dry = generate(folder.path(), &["--dry-run"]);
    assert!(dry.status.success() && said(&dry).contains("batch_size = 64"));
    let short = generate(
        folder.path(),
        &["--dry-run", "--limit", "3", "--shuffle", "--strict"],
    );
    for line in ["limit = 3", "shuffle = true", "strict = true"] {
        assert!(said(&short).contains(line), "{}", said(&short));
    }
    let early = said(&generate(folder.path(), &["stats"]));
    assert!(
        early.contains("data/dataset.jsonl is not there yet"),
        "{early}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let quiet = generate(folder.path(), &["-q"]);
    assert!(quiet.status.success());
    assert_eq!(said(&quiet).trim(), "");
}

/// The embedded model with another chat template.
fn nano_with(folder: &Path, template: &str) -> String {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/sysgen-nano");
    std::fs::create_dir(folder).unwrap();
    for entry in std::fs::read_dir(nano).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let own = std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
    std::fs::write(
        folder.join("chat_template.jinja"),
        template.replace("OWN", &own),
    )
    .unwrap();
    format!("generate.model={}", folder.display())
}

#[test]
fn a_row_that_the_template_refuses_is_dropped_and_the_others_are_written() {
    let folder = TempDir::new().unwrap();
    let refuses = "{% for m in messages %}{% if 'FIRST' in m['content'] %}{{ raise_exception('not this one') }}{% endif %}{% endfor %}OWN";
    let model = nano_with(&folder.path().join("nano"), refuses);
    let rows =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/quickstart/instructions.jsonl");
    let rows = std::fs::read_to_string(rows).unwrap();
    let mut rows: Vec<String> = rows.lines().take(4).map(str::to_owned).collect();
    let mut first: serde_json::Value = serde_json::from_str(&rows[0]).unwrap();
    first["question"] = "FIRST".into();
    rows[0] = first.to_string();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.join("\n")).unwrap();
    let data = format!("data.path={}", path.display());
    let out = folder.path().join("out");
    let run = generate(&out, &["--set", &model, "--set", &data]);
    assert!(run.status.success(), "{}", said(&run));
    let written = std::fs::read_to_string(out.join("data/dataset.jsonl")).unwrap();
    assert_eq!(written.lines().count(), 3, "{}", said(&run));
    let log = std::fs::read_to_string(out.join("data/log.jsonl")).unwrap();
    assert!(log.contains("not this one"), "{log}");
    assert!(
        said(&run).contains("refused by the model"),
        "{}",
        said(&run)
    );
}

#[test]
fn a_template_without_a_place_for_system_messages_is_told_before_the_first_draft() {
    let folder = TempDir::new().unwrap();
    let drops = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}OWN";
    let model = nano_with(&folder.path().join("nano"), drops);
    let out = folder.path().join("out");
    let run = generate(&out, &["--set", &model]);
    assert!(!run.status.success());
    assert!(said(&run).contains("model.system_role"), "{}", said(&run));
    let log = std::fs::read_to_string(out.join("data/log.jsonl")).unwrap_or_default();
    assert!(log.lines().count() <= 1, "more than its head: {log}");
}

#[test]
fn a_hub_data_set_is_named_and_not_the_cache_that_it_lies_in() {
    let folder = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let cached = folder.path().join("hub/datasets--someone--sums");
    let rows = cached.join("snapshots").join(commit).join("data");
    std::fs::create_dir_all(&rows).unwrap();
    std::fs::create_dir(cached.join("refs")).unwrap();
    std::fs::write(cached.join("refs/main"), commit).unwrap();
    let row = r#"{"question":"1 + 1?","answer":"2"}"#;
    std::fs::write(rows.join("train-00000-of-00001.jsonl"), row).unwrap();
    let data = folder.path().join("out/data");
    let run = |arguments: &[&str]| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-data"));
        command.current_dir(root.unwrap()).env("NO_COLOR", "1");
        command.env("HF_HUB_CACHE", folder.path().join("hub"));
        let command = command.env("HF_HUB_OFFLINE", "1").args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let output_dir = format!("output_dir={}", folder.path().join("out").display());
    let settings = [
        "--config",
        "configs/quickstart.toml",
        "--set",
        "data.path=someone/sums",
        "--set",
        "generate.variant=no_system",
        "--set",
        &output_dir,
    ];
    run(&settings);
    let read = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
    assert!(read("README.md").contains("1 conversations from `someone/sums` as they are"));
    let config = read("config.toml");
    assert!(
        config.contains("path = \"someone/sums\"")
            && config.contains(&format!("revision = \"{commit}\""))
            && !config.contains("datasets--"),
        "{config}"
    );
    let source = "someone/sums/data/train-00000-of-00001.jsonl";
    let stats = run(&[&["stats"], &settings[..]].concat());
    assert!(stats.contains(source), "{stats}");
    // The config beside the data gives it again.
    let beside = data.join("config.toml").display().to_string();
    run(&["stats", "--config", &beside]);
}
