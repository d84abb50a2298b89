//! What a config must fulfil beyond its types, checked before anything is loaded. Each fault names the
//! place, the key, and what to write instead; all there are are found at once.

mod generate;
mod given;
mod train;

use std::cell::RefCell;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::origin::Origins;
use super::{AdapterExport, DataSection, Engine, ExistingSystem, HubDataset, MultiTurn, RunConfig};
use generate::check_generate;
use given::{Given, quoted};
use train::{check_distill, check_train};

/// A file repeated more often than this in one epoch is a slip of the pen.
const MOST_REPEATS: f64 = 100.0;

/// What is wrong with a config whose keys and types are right, a line each.
pub(super) fn faults(config: &RunConfig, origins: &Origins) -> Vec<String> {
    let given = Given {
        origins,
        faults: RefCell::default(),
    };
    check(config, &given);
    given.in_file_order()
}

fn check(config: &RunConfig, given: &Given) {
    given.required(
        &config.output_dir,
        "output_dir",
        "output_dir = \"runs/<name>\"",
    );
    given.check(
        !config.output_dir.is_file(),
        "output_dir",
        config.output_dir.display(),
        "must be a folder, and this is a file",
    );
    // An endpoint has its model: a run that only generates by it needs none here, and may name one.
    let by_endpoint = config
        .generate
        .as_ref()
        .is_some_and(|generate| generate.engine == Engine::Openai);
    let only_generates = config.train.is_none() && config.export.is_none();
    if !(by_endpoint && only_generates) {
        let path = &config.model.path;
        if given.required(path, "model.path", "the model's folder, path = \"…\"") {
            given.model(path, "model.path");
        }
    }

    if config.generate.is_none() && config.train.is_none() && config.export.is_none() {
        given.fault(
            "",
            format!(
                "{}: nothing to do; add a [generate], [train] or [export] section",
                given.origins.file()
            ),
        );
    }
    if config.generate.is_some() || config.train.is_some() {
        if config.data.path.is_empty() {
            given.required(
                Path::new(""),
                "data.path",
                "the source rows, path = \"….jsonl\"",
            );
        }
        for path in &config.data.path {
            if HubDataset::named_by(path).is_none() {
                given.file(path, "data.path");
            }
        }
        check_data(&config.data, given);
    }
    if config.generate.is_none() && config.train.is_some() {
        let data = &config.data;
        given.check(
            data.multi_turn != MultiTurn::First,
            "data.multi_turn",
            "\"first\"",
            "needs [generate]: [train] alone learns every answer of a conversation; leave it out",
        );
        given.check(
            data.existing_system != ExistingSystem::Skip,
            "data.existing_system",
            "\"skip\"",
            "needs [generate]: [train] alone keeps every system message; leave it out",
        );
    }
    check_weights(config, given);
    if let Some(generate) = &config.generate {
        check_generate(generate, given);
    }
    if let Some(train) = &config.train {
        check_train(train, given);
    }
    if let Some(distill) = &config.distill {
        check_distill(distill, config.train.as_ref(), given);
    }
    if config.export.is_some() {
        check_export_path(config, given);
    }
    if let Some(export) = &config.export
        && !export.checkpoint.as_os_str().is_empty()
    {
        given.check(
            export.checkpoint.join("trainer_state.json").is_file(),
            "export.checkpoint",
            quoted(&export.checkpoint),
            "is not a complete checkpoint; give a folder checkpoint-N of a run",
        );
    }
    if let (Some(export), Some(train)) = (&config.export, &config.train) {
        given.check(
            export.adapter == AdapterExport::Merge || train.method.has_adapter(),
            "export.adapter",
            "\"keep\"",
            "needs train.method = \"lora\" or \"qlora\": without an adapter there is none to keep",
        );
    }
}

/// An export replaces the whole folder: nothing that the run reads or writes may be in it.
fn check_export_path(config: &RunConfig, given: &Given) {
    let path = config.export_path();
    given.check(
        !path.is_file(),
        "export.path",
        path.display(),
        "must be a folder, and this is a file",
    );
    let cache = config.output_dir.join("cache");
    let data = config.generated_data_dir();
    let mut others: Vec<(&str, &Path)> = vec![
        ("model.path", &config.model.path),
        ("output_dir", &config.output_dir),
        ("the run's cache", &cache),
        ("the run's data", &data),
    ];
    others.extend(
        config
            .data
            .path
            .iter()
            .map(|path| ("data.path", path.as_path())),
    );
    if let Some(generate) = &config.generate {
        others.push(("generate.model", &generate.model));
    }
    if let Some(train) = &config.train {
        others.push(("train.lora_adapter", &train.lora_adapter));
    }
    if let Some(distill) = &config.distill {
        others.push(("distill.teacher", &distill.teacher));
    }
    let export = resolved(&path);
    for (name, other) in others {
        let inside = !other.as_os_str().is_empty() && resolved(other).starts_with(&export);
        let rule = match resolved(other) == export {
            true => format!("must not be {name}, which it would replace"),
            false => {
                format!("must not hold {name}, which it would replace with the rest of the folder")
            }
        };
        given.check(!inside, "export.path", path.display(), rule);
    }
}

/// The path without links and dots, as far as it is there already.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            part => resolved.push(part),
        }
        resolved = fs::canonicalize(&resolved).unwrap_or(resolved);
    }
    resolved
}

fn check_data(data: &DataSection, given: &Given) {
    for path in &data.decontaminate {
        given.file(path, "data.decontaminate");
    }
    given.at_least(data.decontaminate_ngram, 2, "data.decontaminate_ngram");
    given.check(
        data.minhash_threshold > 0.0 && data.minhash_threshold <= 1.0,
        "data.minhash_threshold",
        data.minhash_threshold,
        "must be above 0 and at most 1",
    );
    let columns = &data.columns;
    for (column, key, needs, other) in [
        (&columns.question, "question", "answer", &columns.answer),
        (&columns.answer, "answer", "question", &columns.question),
        (&columns.input, "input", "question", &columns.question),
    ] {
        given.check(
            column.is_empty() || !other.is_empty(),
            &format!("data.columns.{key}"),
            format_args!("{column:?}"),
            format_args!("needs {needs} = \"…\" beside it"),
        );
    }
    given.check(
        columns.messages.is_empty() || columns.question.is_empty(),
        "data.columns.messages",
        format_args!("{:?}", columns.messages),
        "cannot stand beside question and answer; leave one of both out",
    );
}

fn check_weights(config: &RunConfig, given: &Given) {
    let (weights, files) = (&config.data.weights, config.data.path.len());
    if weights.is_empty() {
        return;
    }
    let said = format!("{weights:?}");
    given.check(
        weights.len() == files,
        "data.weights",
        &said,
        format!("must have one number for each file of data.path, which names {files}"),
    );
    given.check(
        weights.iter().all(|w| w.is_finite() && *w > 0.0 && *w <= MOST_REPEATS),
        "data.weights",
        &said,
        format!("must hold numbers above 0 and at most {MOST_REPEATS}; leave a file that is not wanted out of data.path"),
    );
    given.check(
        config.generate.is_none(),
        "data.weights",
        &said,
        "mixes the rows of [train], which with [generate] come from one file; leave it out, or train in a run of its own",
    );
}
