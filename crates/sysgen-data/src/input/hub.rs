//! Data sets of the Hugging Face Hub: the files of a subset and a split, downloaded into the Hub's own cache
//! or found there. What is in them is left to `container`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sysgen_core::config::{DataSection, HubDataset, RunConfig};

use crate::environment::Environment;

/// Endings of the files that hold rows, the one that is taken first when a data set comes in several.
const ENDINGS: [&str; 8] = [
    ".parquet",
    ".jsonl",
    ".jsonl.gz",
    ".json",
    ".json.gz",
    ".csv",
    ".csv.gz",
    ".tsv",
];
/// Files with such endings that describe a data set instead.
const DESCRIPTIONS: [&str; 4] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
];
/// Names of splits, as files and folders have them.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// `data` with every Hub data set replaced by its files in the cache.
///
/// # Errors
/// A data set that is not there or needs a token, several subsets to choose from, no such split, no network.
pub fn with_local_files(config: &RunConfig, environment: &Environment) -> Result<RunConfig> {
    let data = &config.data;
    let mut local = config.clone();
    local.data.path.clear();
    for path in &data.path {
        match HubDataset::named_by(path) {
            Some(dataset) => {
                let files = download(&dataset, data, environment)
                    .with_context(|| format!("data.path: {}", path.display()))?;
                local.data.path.extend(files);
            }
            None => local.data.path.push(path.clone()),
        }
    }
    Ok(local)
}

/// The config as a reader elsewhere needs it: with the commit, where the files of a Hub data set lie in the cache
/// under one, in place of the branch that may move on.
pub(crate) fn with_commit(config: &RunConfig, files: &[PathBuf]) -> RunConfig {
    let mut config = config.clone();
    let commits: BTreeSet<&str> = files
        .iter()
        .filter_map(|path| in_cache(path))
        .map(|(_, commit, _)| commit)
        .collect();
    let is_hub = config
        .data
        .path
        .iter()
        .any(|path| HubDataset::named_by(path).is_some());
    if let (true, [commit]) = (is_hub, commits.into_iter().collect::<Vec<_>>().as_slice()) {
        config.data.revision = (*commit).to_string();
    }
    config
}

/// The data set's folder name without `datasets--`, the commit and the file of a path in the Hub's cache.
fn in_cache(path: &Path) -> Option<(&str, &str, &str)> {
    let (_, rest) = path.to_str()?.rsplit_once("/datasets--")?;
    let (id, rest) = rest.split_once("/snapshots/")?;
    let (commit, file) = rest.split_once('/')?;
    Some((id, commit, file))
}

/// The name of a file in provenance and row ids: in the Hub's cache it is data set and path, so that it does
/// not depend on where the cache is, and else the file's own.
pub(crate) fn source_name(path: &Path) -> String {
    if let Some((id, _, file)) = in_cache(path) {
        return format!("{}/{file}", id.replacen("--", "/", 1));
    }
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn download(
    dataset: &HubDataset,
    data: &DataSection,
    environment: &Environment,
) -> Result<Vec<PathBuf>> {
    let cache = environment
        .hub_cache
        .clone()
        .map_or_else(Cache::default, Cache::new);
    let repo_at = |revision: &str| {
        Repo::with_revision(dataset.id.clone(), RepoType::Dataset, revision.to_string())
    };
    let cached = cache.repo(repo_at(&data.revision));
    if environment.hub_offline {
        let folder = snapshot(&cache, &repo_at(&data.revision), &data.revision)?;
        let names = files_below(&folder)?;
        let wanted = wanted(&names, dataset, data)?;
        return Ok(wanted.iter().map(|name| folder.join(name)).collect());
    }
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(3);
    if let Some(endpoint) = &environment.hub_endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(token) = &environment.hub_token {
        builder = builder.with_token(Some(token.clone()));
    }
    let api = builder.build().map_err(|error| explain(error, data))?;
    let info = api
        .repo(repo_at(&data.revision))
        .info()
        .map_err(|error| explain(error, data))?;
    let names: Vec<String> = info
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .collect();
    // By the commit and not the branch: all files are of one state, and a cached one is never an old one.
    let repo = api.repo(repo_at(&info.sha));
    let mut files = Vec::new();
    for name in wanted(&names, dataset, data)? {
        let file = repo
            .get(&name)
            .map_err(|error| explain(error, data))
            .with_context(|| name.clone())?;
        files.push(file);
    }
    cached
        .create_ref(&info.sha)
        .with_context(|| format!("writing {}", cache.path().display()))?;
    Ok(files)
}

/// The cached state of a revision.
fn snapshot(cache: &Cache, repo: &Repo, revision: &str) -> Result<PathBuf> {
    let folder = cache.path().join(repo.folder_name());
    let commit = std::fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_string(), |commit| commit.trim().to_string());
    let snapshot = folder.join("snapshots").join(commit);
    if !snapshot.is_dir() {
        bail!(
            "HF_HUB_OFFLINE is set, and {} has no revision {revision} of it; unset HF_HUB_OFFLINE to download it",
            cache.path().display()
        );
    }
    Ok(snapshot)
}

fn files_below(folder: &Path) -> Result<Vec<String>> {
    fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                walk(&path, &format!("{prefix}{name}/"), names)?;
            } else {
                names.push(format!("{prefix}{name}"));
            }
        }
        Ok(())
    }
    let mut names = Vec::new();
    walk(folder, "", &mut names).with_context(|| format!("reading {}", folder.display()))?;
    Ok(names)
}

/// The files of the subset and the split among all `names` of a data set, in ascending order.
fn wanted(names: &[String], dataset: &HubDataset, data: &DataSection) -> Result<Vec<String>> {
    if let Some(file) = &dataset.file {
        if names.contains(file) {
            return Ok(vec![file.clone()]);
        }
        bail!("has no file {file}; it has {}", list(&rows_of(names)));
    }
    let mut files = rows_of(names);
    if files.is_empty() {
        bail!("has no file of rows ({})", ENDINGS.join(", "));
    }
    if !data.subset.is_empty() {
        let all = files.clone();
        files.retain(|name| folders(name).any(|folder| folder == data.subset));
        if files.is_empty() {
            bail!(
                "has no subset {:?} in its files {}",
                data.subset,
                list(&all)
            );
        }
    }
    let split = |name: &str| {
        let known = known_split(name);
        match named_split(name) {
            // `train_sft-00000-of-00003` is not `train`. In `train/part-00000-of-00003` it is the folder that says it.
            Some(split) if known.is_none() || known_split(split).is_some() => split.to_string(),
            _ => match known {
                Some(split) => split.to_string(),
                None if words(name).any(|word| word == data.split) => data.split.clone(),
                // What names no split is for training, as the Hub has it.
                None => "train".to_string(),
            },
        }
    };
    let splits: BTreeSet<String> = files.iter().map(|name| split(name)).collect();
    files.retain(|name| split(name) == data.split);
    if files.is_empty() {
        let splits: Vec<String> = splits.into_iter().collect();
        bail!(
            "has no split {:?}; data.split may be {}",
            data.split,
            list(&splits)
        );
    }
    // The same rows in another shape are no further rows.
    let ending = ENDINGS
        .iter()
        .find(|ending| files.iter().any(|name| name.ends_with(**ending)))
        .expect("only files with these endings are left");
    files.retain(|name| name.ends_with(ending));
    let mut subsets: BTreeMap<String, usize> = BTreeMap::new();
    for name in &files {
        let folder = folders(name).collect::<Vec<_>>().join("/");
        *subsets.entry(folder).or_default() += 1;
    }
    if data.subset.is_empty() && subsets.len() > 1 {
        let names: Vec<String> = subsets
            .into_keys()
            .filter(|name| !name.is_empty())
            .collect();
        bail!(
            "has several subsets; choose one of {} with data.subset",
            list(&names)
        );
    }
    Ok(files)
}

/// The split in a file name of the form `<split>-NNNNN-of-NNNNN…`, which the Hub's own tools write.
fn named_split(name: &str) -> Option<&str> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let of = file.find("-of-")?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (split, number) = file[..of].rsplit_once('-')?;
    let count = file.get(of + 4..of + 9)?;
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let holds = is_number(number) && is_number(count) && split.chars().all(is_name);
    (holds && !split.is_empty()).then_some(split)
}

/// The split that a word of `name` stands for.
fn known_split(name: &str) -> Option<&'static str> {
    let known = SPLITS.iter().find(|(_, spellings)| {
        let is_one = |word: String| spellings.contains(&word.as_str());
        words(name).any(is_one)
    });
    known.map(|(split, _)| *split)
}

fn words(name: &str) -> impl Iterator<Item = String> {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .map(str::to_ascii_lowercase)
}

/// The files with rows, in ascending order.
fn rows_of(names: &[String]) -> Vec<String> {
    let mut rows: Vec<String> = names
        .iter()
        .filter(|name| {
            let file = name.rsplit('/').next().unwrap_or(name);
            ENDINGS.iter().any(|ending| file.ends_with(ending))
                && !file.starts_with('.')
                && !DESCRIPTIONS.contains(&file)
        })
        .cloned()
        .collect();
    rows.sort();
    rows
}

/// The folders of a file, but for `data`, which says nothing.
fn folders(name: &str) -> impl Iterator<Item = &str> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    folder
        .split('/')
        .filter(|folder| !folder.is_empty() && *folder != "data")
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    format!("{}{more}", shown.join(", "))
}

fn explain(error: ApiError, data: &DataSection) -> anyhow::Error {
    let status = match &error {
        ApiError::RequestError(request) => match request.as_ref() {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        _ => None,
    };
    match status {
        Some(401 | 403) => anyhow!(
            "the Hub refuses access; set HF_TOKEN to a token that may read it (and accept its conditions on its page)"
        ),
        Some(404) => anyhow!(
            "no file of that name is here, and the Hub knows no such data set, or no revision {:?} of it; a private one needs HF_TOKEN",
            data.revision
        ),
        Some(status) => {
            anyhow!("the Hub answers with status {status}; run the same command again later")
        }
        None => anyhow!(
            "no file of that name is here, and the Hub does not answer ({error}); check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use the cache"
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], subset: &str, split: &str) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let data = DataSection {
            subset: subset.to_string(),
            split: split.to_string(),
            ..DataSection::default()
        };
        let dataset = HubDataset::named_by(Path::new("a/b")).unwrap();
        wanted(&names, &dataset, &data).map_err(|error| error.to_string())
    }

    #[test]
    fn subset_and_split_choose_the_files() {
        let gsm8k = [
            "README.md",
            "main/test-00000-of-00001.parquet",
            "main/train-00000-of-00001.parquet",
            "socratic/test-00000-of-00001.parquet",
            "socratic/train-00000-of-00001.parquet",
        ];
        assert_eq!(
            chosen(&gsm8k, "main", "train").unwrap(),
            ["main/train-00000-of-00001.parquet"]
        );
        assert_eq!(
            chosen(&gsm8k, "socratic", "test").unwrap(),
            ["socratic/test-00000-of-00001.parquet"]
        );
        let error = chosen(&gsm8k, "", "train").unwrap_err();
        assert_eq!(
            error,
            "has several subsets; choose one of main, socratic with data.subset"
        );
        let error = chosen(&gsm8k, "main", "dev").unwrap_err();
        assert_eq!(error, "has no split \"dev\"; data.split may be test, train");
        assert!(
            chosen(&gsm8k, "x", "train")
                .unwrap_err()
                .contains("has no subset \"x\"")
        );
    }

    #[test]
    fn files_of_one_table_are_all_taken_and_other_shapes_of_it_are_not() {
        let names = [
            "data/train-1.parquet",
            "data/train-0.parquet",
            "rows.json",
            "dataset_infos.json",
        ];
        assert_eq!(
            chosen(&names, "", "train").unwrap(),
            ["data/train-0.parquet", "data/train-1.parquet"]
        );
        assert_eq!(
            chosen(&["MetaMathQA-395K.json"], "", "train").unwrap(),
            ["MetaMathQA-395K.json"]
        );
        assert!(
            chosen(&["README.md"], "", "train")
                .unwrap_err()
                .contains("no file of rows")
        );
    }

    #[test]
    fn numbered_files_have_exactly_the_split_that_they_name() {
        let ultrachat = [
            "data/test_gen-00000-of-00001-3d4cd8309148a71f.parquet",
            "data/test_sft-00000-of-00001-f7dfac4afe5b93f4.parquet",
            "data/train_gen-00000-of-00001-a6c9fb894be3e50b.parquet",
            "data/train_sft-00000-of-00002-a3ecf92756993583.parquet",
            "data/train_sft-00001-of-00002-0a1804bcb6ae68c6.parquet",
        ];
        assert_eq!(
            chosen(&ultrachat, "", "train_sft").unwrap(),
            ultrachat[3..5]
        );
        assert_eq!(
            chosen(&ultrachat, "", "train").unwrap_err(),
            "has no split \"train\"; data.split may be test_gen, test_sft, train_gen, train_sft"
        );
        let preferences = [
            "prefs-00000-of-00001.parquet",
            "train-00000-of-00001.parquet",
        ];
        assert_eq!(chosen(&preferences, "", "train").unwrap(), preferences[1..]);
        assert_eq!(chosen(&preferences, "", "prefs").unwrap(), preferences[..1]);
        let folders = [
            "test/part-00000-of-00001.json",
            "train/part-00000-of-00001.json",
        ];
        assert_eq!(chosen(&folders, "train", "train").unwrap(), folders[1..]);
    }

    #[test]
    fn names_do_not_depend_on_where_the_cache_is() {
        let path = "/x/hub/datasets--openai--gsm8k/snapshots/abc/main/train.parquet";
        assert_eq!(
            source_name(Path::new(path)),
            "openai/gsm8k/main/train.parquet"
        );
        assert_eq!(source_name(Path::new("data/rows.jsonl")), "rows.jsonl");
    }

    #[test]
    fn what_looks_like_a_file_is_none_of_the_hub() {
        let named = |text: &str| HubDataset::named_by(Path::new(text));
        for text in [
            "rows.jsonl",
            "data/rows.jsonl",
            "a/b/c",
            "/a/b",
            "./a/b",
            "../b",
            "src/input.rs/x",
        ] {
            assert_eq!(named(text), None, "{text}");
        }
        assert_eq!(named("openai/gsm8k").unwrap().id, "openai/gsm8k");
        let file = named("hf://datasets/jondurbin/airoboros-3.1/conversations.json").unwrap();
        assert_eq!(
            (file.id.as_str(), file.file.as_deref()),
            ("jondurbin/airoboros-3.1", Some("conversations.json"))
        );
    }
}
