//! Hub data sets, from a server that speaks the Hub's protocol.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sysgen_core::config::RunConfig;
use sysgen_data::Environment;
use sysgen_data::input::{read_records, with_local_files};

use crate::hub_server::hub;
use crate::scripted::Bench;
use crate::server::{Response, Server};

fn rows(set: &str, count: usize) -> Vec<u8> {
    (0..count)
        .map(|i| format!("{{\"question\":\"{set} {i}\",\"answer\":\"{i}\"}}\n"))
        .collect::<String>()
        .into_bytes()
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("README.md", b"x".to_vec()),
        ("main/train-00000-of-00002.jsonl", rows("train", 30)),
        ("main/train-00001-of-00002.jsonl", rows("more", 3)),
        ("main/test-00000-of-00001.jsonl", rows("test", 2)),
        ("socratic/train-00000-of-00001.jsonl", rows("socratic", 2)),
    ])
}

fn environment(url: &str, cache: &Path) -> Environment {
    Environment {
        hub_endpoint: Some(url.to_string()),
        hub_token: Some("hf_token".to_string()),
        hub_cache: Some(cache.to_path_buf()),
        ..Environment::default()
    }
}

fn questions(
    config: &RunConfig,
    environment: &Environment,
) -> Result<Vec<(String, String)>, String> {
    let local = with_local_files(config, environment).map_err(|error| format!("{error:#}"))?;
    let (records, _) = read_records(&local.data).unwrap();
    Ok(records
        .into_iter()
        .map(|record| (record.id, record.messages[0].content.clone()))
        .collect())
}

#[test]
fn a_data_set_is_downloaded_once_and_found_offline() {
    let bench = Bench::new();
    let cache = bench.folder.path().join("hub");
    let downloads = Arc::new(AtomicUsize::new(0));
    let server = hub(files(), Arc::clone(&downloads));
    let online = environment(&server.url, &cache);
    let config = bench.config("out", &["data.path=openai/gsm8k", "data.subset=main"]);
    let read = questions(&config, &online).unwrap();
    assert_eq!(read.len(), 33);
    let name = "openai/gsm8k/main/train-00000-of-00002.jsonl:30";
    assert_eq!(read[29], (name.to_string(), "train 29".to_string()));
    // Two files, and the rest of the one that broke off.
    assert_eq!(downloads.load(Ordering::SeqCst), 3);
    assert_eq!(questions(&config, &online).unwrap(), read);
    assert_eq!(downloads.load(Ordering::SeqCst), 3, "the cache is not used");

    drop(server);
    let offline = Environment {
        hub_offline: true,
        ..online.clone()
    };
    assert_eq!(questions(&config, &offline).unwrap(), read);
    let error = questions(&config, &online).unwrap_err();
    assert!(
        error.contains(
            "data.path: openai/gsm8k: no file of that name is here, and the Hub does not answer"
        ) && error.contains("HF_HUB_OFFLINE=1"),
        "{error}"
    );
    let busy = Server::start(|_| Response::new(503, "busy"));
    let error = questions(&config, &environment(&busy.url, &cache)).unwrap_err();
    assert!(error.contains("the Hub answers with status 503"), "{error}");
    let elsewhere = environment("http://127.0.0.1:1", &bench.folder.path().join("empty"));
    let empty = Environment {
        hub_offline: true,
        ..elsewhere
    };
    let error = questions(&config, &empty).unwrap_err();
    assert!(error.contains("HF_HUB_OFFLINE is set, and"), "{error}");
}

#[test]
fn splits_subsets_and_single_files_are_chosen_by_the_config() {
    let bench = Bench::new();
    let server = hub(files(), Arc::default());
    let environment = environment(&server.url, &bench.folder.path().join("hub"));
    let read = |settings: &[&str]| questions(&bench.config("out", settings), &environment);
    let test = read(&[
        "data.path=openai/gsm8k",
        "data.subset=main",
        "data.split=test",
    ])
    .unwrap();
    assert_eq!(test.len(), 2);
    let file = "data.path=hf://datasets/openai/gsm8k/socratic/train-00000-of-00001.jsonl";
    assert_eq!(read(&[file]).unwrap()[1].1, "socratic 1");
    let error = read(&["data.path=openai/gsm8k"]).unwrap_err();
    assert!(
        error.contains("has several subsets; choose one of main, socratic with data.subset"),
        "{error}"
    );
    let error = read(&["data.path=openai/other"]).unwrap_err();
    assert!(error.contains("the Hub knows no such data set"), "{error}");
    let anonymous = Environment {
        hub_token: None,
        ..environment.clone()
    };
    let error = questions(
        &bench.config("out", &["data.path=openai/gsm8k"]),
        &anonymous,
    )
    .unwrap_err();
    assert!(
        error.contains("the Hub refuses access; set HF_TOKEN"),
        "{error}"
    );
}

#[test]
fn the_environment_has_the_names_of_other_tools() {
    let set = |variables: &'static [(&str, &str)]| {
        Environment::read(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.to_string())
        })
    };
    let all = set(&[
        ("HF_HOME", "/home"),
        ("HF_ENDPOINT", "https://mirror/"),
        ("HF_TOKEN", "t"),
        ("HF_HUB_OFFLINE", "1"),
        ("OPENAI_BASE_URL", ""),
    ]);
    assert_eq!(all.hub_cache.unwrap(), Path::new("/home/hub"));
    assert_eq!(all.hub_endpoint.unwrap(), "https://mirror");
    assert_eq!(
        (
            all.hub_token.unwrap().as_str(),
            all.hub_offline,
            all.openai_base_url
        ),
        ("t", true, None)
    );
    let cache = set(&[
        ("HF_HOME", "/home"),
        ("HF_HUB_CACHE", "/cache"),
        ("HF_HUB_OFFLINE", "0"),
    ]);
    assert_eq!(
        (cache.hub_cache.unwrap().to_str(), cache.hub_offline),
        (Some("/cache"), false)
    );
}
