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
