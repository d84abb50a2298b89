//! `engine = "openai"` against a real server that fails on purpose.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sysgen_core::config::RunConfig;
use sysgen_core::hash::FileHashes;
use sysgen_data::{Environment, Shard, Summary, dataset_path, is_complete, merge, run_by_endpoint};

use crate::scripted::{Bench, bytes, data_dir};
use crate::server::{Request, Response, Server};

const ROWS: usize = 12;

/// A folder with rows, and a config that asks `server`.
fn config(bench: &Bench, server: &str, settings: &[&str]) -> RunConfig {
    let rows: Vec<String> = (0..ROWS)
        .map(|i| format!(r#"{{"id":"r{i}","question":"Question {i}?","answer":"old {i}"}}"#))
        .collect();
    std::fs::write(bench.folder.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    let url = format!("generate.openai.base_url={server}/v1");
    let mut all = vec![
        "generate.engine=openai",
        "generate.verify.method=generate",
        "generate.openai.model=some-model",
        "generate.openai.timeout_seconds=1",
        &url,
    ];
    all.extend(settings);
    bench.config("out", &all)
}

fn run(config: &RunConfig) -> anyhow::Result<Summary> {
    let environment = Environment {
        openai_api_key: Some("secret".to_string()),
        ..Environment::default()
    };
    run_by_endpoint(config, Shard::WHOLE, &environment, &FileHashes::default())
}

/// What a good model says: depends on the request alone.
fn good(request: &Request) -> Response {
    let body: Value = serde_json::from_str(&request.body).unwrap();
    let last = body["messages"].as_array().unwrap().last().unwrap();
    let text = last["content"].as_str().unwrap();
    let content = if text.contains("## [Conversation]") {
        let question = text
            .rsplit("User: ")
            .next()
            .unwrap()
            .lines()
            .next()
            .unwrap();
        format!("<<Role>>You know {question}<</Role>>")
    } else if text.contains("## [Filtered System Message]") {
        "<<Role>>: Good".to_string()
    } else {
        format!("An answer to {text}")
    };
    let answer = json!({
        "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    });
    Response::new(200, answer.to_string())
}

fn log(config: &RunConfig) -> Vec<String> {
    let log = bytes(&data_dir(config).join("log.jsonl"));
    log.lines().skip(1).map(str::to_string).collect()
}

/// Each request stands in the log once.
fn nothing_twice(config: &RunConfig) {
    let mut places: Vec<String> = log(config)
        .iter()
        .map(|line| line.split_once(",\"answer\"").unwrap().0.to_string())
        .collect();
    let all = places.len();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), all);
}

#[test]
fn requests_are_chat_completions() {
    let bench = Bench::new();
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let bodies = Arc::clone(&seen);
    let server = Server::start(move |request| {
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("POST", "/v1/chat/completions")
        );
        assert_eq!(request.header("authorization"), Some("Bearer secret"));
        bodies
            .lock()
            .unwrap()
            .push(serde_json::from_str(&request.body).unwrap());
        good(request)
    });
    let config = config(&bench, &server.url, &[]);
    let summary = run(&config).unwrap();
    assert_eq!(summary.funnel.kept, ROWS);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3 * ROWS);
    let draft = seen.iter().find(|body| body["max_tokens"] == 512).unwrap();
    assert_eq!(draft["model"], "some-model");
    assert_eq!(draft["temperature"], 0.7);
    assert!(draft.get("top_k").is_none() && draft["seed"].is_u64());
    let line: Value =
        serde_json::from_str(bytes(&dataset_path(&config)).lines().next().unwrap()).unwrap();
    assert_eq!(line["messages"][0]["content"], "You know Question 0?");
    assert_eq!(line["messages"][2]["content"], "An answer to Question 0?");
    assert_eq!(line["sysgen"]["model"], "some-model");
    assert_eq!(line["sysgen"]["tokens"]["respond_prompt"], 7);
}

#[test]
fn a_server_that_fails_now_and_then_changes_nothing() {
    let bench = Bench::new();
    let calm = Server::start(good);
    let expected = config(&bench, &calm.url, &[]);
    run(&expected).unwrap();
    let expected = bytes(&dataset_path(&expected));
    std::fs::remove_dir_all(bench.folder.path().join("out")).unwrap();

    // The first attempt of every request fails, each in its way.
    let attempts: Mutex<HashMap<String, usize>> = Mutex::default();
    let failures = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let mut attempts = attempts.lock().unwrap();
        let attempt = attempts.entry(request.body.clone()).or_default();
        *attempt += 1;
        if *attempt > 1 {
            return good(request);
        }
        drop(attempts);
        match failures.fetch_add(1, Ordering::SeqCst) % 6 {
            0 => Response::new(500, "oops"),
            1 => {
                Response::new(429, "{\"error\":{\"message\":\"slow down\"}}").with("Retry-After", 0)
            }
            2 => Response {
                cut: Some(20),
                ..good(request)
            },
            3 => Response::new(200, "{\"choices\": [{"),
            4 => Response {
                delay: Duration::from_millis(1500),
                ..good(request)
            },
            _ => Response {
                cut: Some(0),
                ..Response::new(200, "x")
            },
        }
    });
    let config = config(&bench, &server.url, &[]);
    run(&config).unwrap();
    assert_eq!(bytes(&dataset_path(&config)), expected);
    nothing_twice(&config);
}

#[test]
fn retry_after_holds_back_every_request() {
    let bench = Bench::new();
    let begun: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = Arc::clone(&begun);
    let server = Server::start(move |request| {
        let mut times = times.lock().unwrap();
        times.push(Instant::now());
        if times.len() == 1 {
            return Response::new(429, "").with("Retry-After", 1);
        }
        good(request)
    });
    let one = ["generate.openai.max_parallel_requests=1", "data.limit=2"];
    run(&config(&bench, &server.url, &one)).unwrap();
    let begun = begun.lock().unwrap();
    assert_eq!(begun.len(), 7);
    assert!(begun[1] - begun[0] >= Duration::from_millis(990));
}

#[test]
fn requests_a_minute_are_begun_no_faster() {
    let bench = Bench::new();
    let begun: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = Arc::clone(&begun);
    let server = Server::start(move |request| {
        times.lock().unwrap().push(Instant::now());
        good(request)
    });
    let slowly = ["generate.openai.requests_per_minute=1200", "data.limit=4"];
    run(&config(&bench, &server.url, &slowly)).unwrap();
    let begun = begun.lock().unwrap();
    assert_eq!(begun.len(), 12);
    // Begun 50 ms apart, they arrive in eleven such pauses all in all, whatever the network does to one of them.
    assert!(begun[11] - begun[0] >= Duration::from_millis(500));
}

#[test]
fn parallel_requests_are_bounded() {
    let bench = Bench::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = Arc::clone(&most);
    let server = Server::start(move |request| {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        now.fetch_sub(1, Ordering::SeqCst);
        good(request)
    });
    run(&config(
        &bench,
        &server.url,
        &["generate.openai.max_parallel_requests=3"],
    ))
    .unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[test]
fn a_slow_answer_holds_no_other_row_back() {
    let bench = Bench::new();
    let answers = AtomicUsize::new(0);
    let in_vain = Arc::new(AtomicUsize::new(0));
    let vain = Arc::clone(&in_vain);
    let server = Server::start(move |request| {
        let body: Value = serde_json::from_str(&request.body).unwrap();
        if body["max_tokens"] == 1024 {
            answers.fetch_add(1, Ordering::SeqCst);
        } else if request.body.contains("User: Question 0?") {
            // The first draft comes when all other rows are done with their last phase.
            let begun = Instant::now();
            while answers.load(Ordering::SeqCst) < ROWS - 1 {
                if begun.elapsed() > Duration::from_secs(20) {
                    vain.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        good(request)
    });
    let settings = [
        "generate.openai.max_parallel_requests=2",
        "generate.openai.timeout_seconds=60",
    ];
    let config = config(&bench, &server.url, &settings);
    assert_eq!(run(&config).unwrap().funnel.kept, ROWS);
    assert_eq!(in_vain.load(Ordering::SeqCst), 0);
    nothing_twice(&config);
}

#[test]
fn an_endpoint_that_is_down_stops_the_run_and_loses_nothing() {
    let bench = Bench::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = Server::start(move |request| {
        if count.fetch_add(1, Ordering::SeqCst) < 5 {
            good(request)
        } else {
            Response::new(503, "overloaded")
        }
    });
    let settings = [
        "generate.openai.max_retries=0",
        "generate.openai.max_failures=3",
        "generate.openai.max_parallel_requests=1",
    ];
    let broken = config(&bench, &server.url, &settings);
    let error = run(&broken).unwrap_err().to_string();
    assert!(
        error.contains("3 requests in a row came to nothing, the last because of: status 503: overloaded (1 attempts)"),
        "{error}"
    );
    assert!(
        asked.load(Ordering::SeqCst) <= 10,
        "the run burns through the data set"
    );
    assert_eq!(log(&broken).len(), 5);
    let well = Server::start(good);
    let config = config(&bench, &well.url, &[]);
    assert_eq!(run(&config).unwrap().funnel.kept, ROWS);
    nothing_twice(&config);
}

#[test]
fn a_row_that_gets_no_answer_is_asked_again_by_the_next_run() {
    let bench = Bench::new();
    let server = Server::start(|request| {
        if request.body.contains("Question 3?") {
            Response::new(500, "")
        } else {
            good(request)
        }
    });
    let broken = config(&bench, &server.url, &["generate.openai.max_retries=1"]);
    let error = run(&broken).unwrap_err().to_string();
    assert!(
        error.contains("1 rows were not answered, r3 because of: status 500: no text (2 attempts); all others are kept"),
        "{error}"
    );
    assert_eq!(log(&broken).len(), 3 * (ROWS - 1));
    let well = Server::start(good);
    let config = config(&bench, &well.url, &[]);
    assert_eq!(run(&config).unwrap().funnel.kept, ROWS);
    assert_eq!(log(&config).len(), 3 * ROWS);
}

#[test]
fn a_row_that_never_gets_an_answer_can_be_left_out() {
    let bench = Bench::new();
    let server = Server::start(|request| {
        if request.body.contains("Question 3?") {
            Response::new(500, "")
        } else {
            good(request)
        }
    });
    let strict = config(&bench, &server.url, &["generate.openai.max_retries=0"]);
    let error = run(&strict).unwrap_err().to_string();
    assert!(
        error.contains("--set generate.openai.skip_unanswered=true"),
        "{error}"
    );
    let merge = |config| merge(config, &Environment::default());
    let error = merge(&strict).unwrap_err().to_string();
    assert!(
        error.contains("1 of 12 rows have no answers yet")
            && error.contains("--set generate.openai.skip_unanswered=true"),
        "{error}"
    );
    let settings = [
        "generate.openai.max_retries=0",
        "generate.openai.skip_unanswered=true",
    ];
    let without = config(&bench, &server.url, &settings);
    for summary in [merge(&without).unwrap(), run(&without).unwrap()] {
        assert_eq!(summary.funnel.kept, ROWS - 1);
        let dropped = &summary.funnel.draft.dropped;
        assert_eq!(dropped["not answered by the endpoint"], 1);
    }
    assert_eq!(log(&without).len(), 3 * (ROWS - 1), "it may be asked again");
    let complete = |config| is_complete(config, &Environment::default()).unwrap();
    assert!(complete(&without) && !complete(&strict));
    let well = Server::start(good);
    let config = config(&bench, &well.url, &[]);
    assert_eq!(run(&config).unwrap().funnel.kept, ROWS);
}

#[test]
fn refusals_drop_a_row_only_where_others_are_answered() {
    let bench = Bench::new();
    let server = Server::start(|request| {
        if request.body.contains("Question 3?") {
            Response::new(400, "{\"error\":{\"message\":\"content policy\"}}")
        } else if request.body.contains("Question 4?") {
            let text = "{\"message\":\"This model's maximum context length is 9 tokens\"}";
            Response::new(400, text)
        } else {
            good(request)
        }
    });
    let refusing = config(&bench, &server.url, &[]);
    let summary = run(&refusing).unwrap();
    assert_eq!(summary.funnel.kept, ROWS - 2);
    let dropped = &summary.funnel.draft.dropped;
    assert_eq!(
        (
            dropped["refused by the model (the log says why)"],
            dropped["longer than the context"]
        ),
        (1, 1)
    );
    assert!(
        log(&refusing)
            .iter()
            .any(|line| line.contains("status 400: content policy"))
    );

    std::fs::remove_dir_all(bench.folder.path().join("out")).unwrap();
    let server =
        Server::start(|_| Response::new(400, "{\"detail\":\"max_tokens is not supported\"}"));
    let all = config(&bench, &server.url, &[]);
    let error = run(&all).unwrap_err().to_string();
    assert!(error.contains("10 requests in a row came to nothing, the last because of: status 400: max_tokens is not supported"), "{error}");
    assert_eq!(log(&all), Vec::<String>::new());
}

#[test]
fn fast_refusals_before_the_first_slow_answer_are_drops() {
    let bench = Bench::new();
    // All are under way at once, and every second one is refused long before the first answer comes.
    let statuses = [400, 402, 403, 413, 422, 451];
    let server = Server::start(move |request| {
        let number = (0..ROWS).rfind(|i| request.body.contains(&format!("Question {i}?")));
        match number {
            Some(i) if i % 2 == 1 => Response::new(statuses[i / 2], "{\"error\":\"moderated\"}"),
            _ => Response {
                delay: Duration::from_millis(300),
                ..good(request)
            },
        }
    });
    let settings = ["generate.openai.max_failures=3"];
    let config = config(&bench, &server.url, &settings);
    let summary = run(&config).unwrap();
    assert_eq!(summary.funnel.kept, ROWS / 2);
    let dropped = &summary.funnel.draft.dropped;
    assert_eq!(dropped["refused by the model (the log says why)"], ROWS / 2);
}

#[test]
fn a_wrong_key_or_address_stops_at_once() {
    let bench = Bench::new();
    for (status, expected) in [
        (401, "set OPENAI_API_KEY"),
        (
            404,
            "check generate.openai.base_url and generate.openai.model",
        ),
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let server = Server::start(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Response::new(status, "{\"error\":\"no\"}")
        });
        let config = config(
            &bench,
            &server.url,
            &["generate.openai.max_parallel_requests=2"],
        );
        let error = run(&config).unwrap_err().to_string();
        assert!(
            error.contains(&format!("status {status}: no; {expected}")),
            "{error}"
        );
        assert!(!error.contains('\n') && asked.load(Ordering::SeqCst) <= 4);
    }
}

#[test]
fn probabilities_cannot_be_asked_of_an_endpoint() {
    let bench = Bench::new();
    let settings = ["generate.engine=openai", "generate.openai.model=m"].map(str::to_string);
    bench.config("out", &[]);
    let error = RunConfig::load(&bench.folder.path().join("run.toml"), &settings).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error
            .contains("method = \"score\" in [generate.verify] cannot go with engine = \"openai\"")
            && error.contains("set method = \"generate\""),
        "{error}"
    );
}
