//! ARCHITECTURE.md's dependency rules, read back from `cargo metadata`.
//!
//! A crate is defined by what it does not know, so every rule here is an absence.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Crate, and what must not be among its normal dependencies (`burn*` stands for every Burn crate).
const MUST_NOT_DEPEND_ON: &[(&str, &[&str])] = &[
    ("sysgen-core", &["burn*", "tokenizers", "sysgen-*"]),
    (
        "sysgen-chat",
        &[
            "burn*",
            "sysgen-ops",
            "sysgen-model",
            "sysgen-infer",
            "sysgen-data",
            "sysgen-train",
        ],
    ),
    ("sysgen-ops", &["tokenizers", "sysgen-*"]),
    (
        "sysgen-model",
        &[
            "tokenizers",
            "sysgen-core",
            "sysgen-chat",
            "sysgen-infer",
            "sysgen-data",
            "sysgen-train",
        ],
    ),
    (
        "sysgen-infer",
        &[
            "tokenizers",
            "sysgen-core",
            "sysgen-chat",
            "sysgen-data",
            "sysgen-train",
        ],
    ),
    ("sysgen-data", &["sysgen-train"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".to_string()])
        .exec()
        .unwrap()
}

fn normal_dependencies(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    metadata
        .packages
        .iter()
        .map(|package| {
            let names = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal)
                .map(|dependency| dependency.name.clone())
                .collect();
            (package.name.to_string(), names)
        })
        .collect()
}

#[test]
fn crates_do_not_know_what_they_must_not() {
    let dependencies = normal_dependencies(&metadata());
    for (name, forbidden) in MUST_NOT_DEPEND_ON {
        let found = dependencies
            .get(*name)
            .unwrap_or_else(|| panic!("{name} is gone"));
        for pattern in *forbidden {
            let offender = found
                .iter()
                .find(|dependency| match pattern.strip_suffix('*') {
                    Some(prefix) => dependency.starts_with(prefix),
                    None => dependency.as_str() == *pattern,
                });
            assert!(offender.is_none(), "{name} must not depend on {offender:?}");
        }
    }
}

/// The training library and the data library meet in a JSONL file; only the program `sysgen-train`, that is
/// `main.rs` and the modules it declares, joins them.
#[test]
fn only_the_program_joins_training_and_data() {
    let source = root().join("crates/sysgen-train/src");
    let main = std::fs::read_to_string(source.join("main.rs")).unwrap();
    let mut program: BTreeSet<String> = main
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .map(|module| format!("{module}.rs"))
        .collect();
    program.insert("main.rs".to_string());
    let mut library = 0;
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            path.is_file(),
            "{name}: a folder here needs a rule of its own"
        );
        if program.contains(&name) {
            continue;
        }
        library += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        for other in ["sysgen_data", "sysgen_infer"] {
            assert!(!text.contains(other), "{name} names {other}");
        }
    }
    assert!(library > 5, "the library is gone");
}

#[test]
fn every_burn_crate_is_pinned_to_one_version() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut versions = BTreeSet::new();
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("name = \"burn") {
            let version = lines.next().unwrap();
            assert!(!name.is_empty());
            versions.insert(version.to_string());
        }
    }
    assert_eq!(versions.len(), 1, "several Burn versions: {versions:?}");
}
