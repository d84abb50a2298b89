//! A server that speaks the Hub's protocol, for one data set.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::server::{Request, Response, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The Hub: repository information, and files by range, with commit and hash in their headers. The first
/// whole download breaks off in the middle.
pub(crate) fn hub(files: BTreeMap<&'static str, Vec<u8>>, downloads: Arc<AtomicUsize>) -> Server {
    let cut = AtomicBool::new(true);
    Server::start(move |request: &Request| {
        if request.header("authorization") != Some("Bearer hf_token") {
            return Response::new(401, "{}");
        }
        if request.path == "/api/datasets/openai/gsm8k/revision/main" {
            let siblings: Vec<_> = files
                .keys()
                .map(|name| json!({"rfilename": name}))
                .collect();
            return Response::new(
                200,
                json!({"sha": COMMIT, "siblings": siblings}).to_string(),
            );
        }
        let start = format!("/datasets/openai/gsm8k/resolve/{COMMIT}/");
        let Some(file) = request
            .path
            .strip_prefix(&start)
            .and_then(|name| files.get_key_value(name))
        else {
            return Response::new(404, "{}");
        };
        let (name, content) = file;
        let range = request
            .header("range")
            .unwrap()
            .strip_prefix("bytes=")
            .unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(content.len(), |to: usize| to + 1);
        let mut response = Response::new(206, &content[from..to])
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", format!("\"{}\"", name.replace('/', "-")))
            .with(
                "Content-Range",
                format!("bytes {from}-{}/{}", to - 1, content.len()),
            );
        if to == content.len() {
            downloads.fetch_add(1, Ordering::SeqCst);
            if cut.swap(false, Ordering::SeqCst) {
                response.cut = Some((to - from) / 2);
            }
        }
        response
    })
}
