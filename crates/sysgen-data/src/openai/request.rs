//! One chat completion: sent, sent again when that may help, and read.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sysgen_core::config::OpenaiSection;
use sysgen_core::hash::seed_from;
use sysgen_core::message::Message;
use ureq::Agent;

use crate::environment::Environment;
use crate::generator::{Prompt, Reply};

/// Where requests go when neither config nor environment says.
const OPENAI: &str = "https://api.openai.com/v1";
/// Wait before the first retry; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait that an endpoint did not ask for itself.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait that an endpoint may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// How much of an endpoint's complaint is shown.
const SHOWN: usize = 300;

/// What came of a request, retries included.
#[derive(Debug)]
pub(super) enum Reception {
    Reply(Reply),
    /// The prompt does not fit the model.
    TooLong,
    /// The endpoint will not answer this request.
    Refused(String),
    /// No attempt succeeded; another day it may.
    Failed(String),
    /// No request can succeed: a wrong key, a wrong address.
    Fatal(String),
    /// The run was asked to stop before an answer came.
    Stopped,
}

/// What came of one attempt.
enum Attempt {
    Done(Reception),
    /// May succeed later: the reason, and how long the endpoint asks to wait.
    Again(String, Option<Duration>),
}

pub(super) struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
    settings: OpenaiSection,
    seed: u64,
    /// No request is begun before this.
    not_before: Mutex<Instant>,
}

impl Client {
    pub(super) fn new(settings: &OpenaiSection, seed: u64, environment: &Environment) -> Client {
        let base = Some(settings.base_url.as_str())
            .filter(|url| !url.is_empty())
            .or(environment.openai_base_url.as_deref())
            .unwrap_or(OPENAI);
        let seconds = |seconds: usize| Some(Duration::from_secs(seconds as u64));
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(seconds(settings.connect_timeout_seconds))
            .timeout_send_request(seconds(settings.timeout_seconds))
            .timeout_recv_response(seconds(settings.timeout_seconds))
            .timeout_recv_body(seconds(settings.timeout_seconds))
            .max_idle_connections_per_host(settings.max_parallel_requests)
            .max_idle_connections(settings.max_parallel_requests)
            .build();
        Client {
            agent: agent.into(),
            url: format!("{}/chat/completions", base.trim_end_matches('/')),
            key: environment.openai_api_key.clone(),
            settings: settings.clone(),
            seed,
            not_before: Mutex::new(Instant::now()),
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.url
    }

    /// Sends `prompt` until it is answered, refused, or tried too often.
    pub(super) fn ask(&self, prompt: &Prompt, stop: &AtomicBool) -> Reception {
        let mut tried = 0;
        loop {
            if !self.wait_for_turn(stop) {
                return Reception::Stopped;
            }
            let (reason, asked) = match self.attempt(prompt) {
                Attempt::Done(reception) => return reception,
                Attempt::Again(reason, asked) => (reason, asked),
            };
            if tried >= self.settings.max_retries {
                return Reception::Failed(format!("{reason} ({} attempts)", tried + 1));
            }
            // An endpoint may ask for no wait at all, or for a date that is past: the back-off is added to it.
            let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
            let wait = asked + self.back_off(prompt, tried);
            tried += 1;
            tracing::debug!(
                "{}: {reason}; again in {:.1} s",
                self.url,
                wait.as_secs_f64()
            );
            if !asked.is_zero() {
                // It is the endpoint that is busy, not this request that is unlucky.
                let mut not_before = self.not_before();
                *not_before = (*not_before).max(Instant::now() + asked);
            }
            if !sleep(wait, stop) {
                return Reception::Stopped;
            }
        }
    }

    fn not_before(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.not_before
            .lock()
            .unwrap_or_else(|held| held.into_inner())
    }

    /// Waits until a request may be begun; false when the run was asked to stop.
    fn wait_for_turn(&self, stop: &AtomicBool) -> bool {
        loop {
            let now = Instant::now();
            let wait = {
                let mut not_before = self.not_before();
                if *not_before <= now {
                    if self.settings.requests_per_minute > 0 {
                        let pause = 60.0 / self.settings.requests_per_minute as f64;
                        *not_before = now + Duration::from_secs_f64(pause);
                    }
                    return !stop.load(Ordering::Relaxed);
                }
                *not_before - now
            };
            if !sleep(wait, stop) {
                return false;
            }
        }
    }

    /// Twice as long each time, and half of it by chance, so that many requests do not come back at once.
    fn back_off(&self, prompt: &Prompt, tried: usize) -> Duration {
        let full = FIRST_WAIT
            .saturating_mul(1 << tried.min(16))
            .min(LONGEST_WAIT);
        let parts = [self.seed, prompt.seed, tried as u64].map(|part| part.to_string());
        let chance = seed_from(&parts.each_ref().map(String::as_str)) as f64 / u64::MAX as f64;
        full.mul_f64(0.5 + chance / 2.0)
    }

    fn attempt(&self, prompt: &Prompt) -> Attempt {
        let sampling = &prompt.sampling;
        let body = Body {
            model: &self.settings.model,
            messages: &prompt.messages,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: (sampling.top_k > 0).then_some(sampling.top_k),
            min_p: (sampling.min_p > 0.0).then_some(sampling.min_p),
            repetition_penalty: (sampling.repetition_penalty != 1.0)
                .then_some(sampling.repetition_penalty),
            max_tokens: sampling.max_tokens,
            seed: prompt.seed & SEED_BITS,
        };
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send_json(&body) {
            Ok(response) => response,
            Err(ureq::Error::BadUri(reason)) => {
                return Attempt::Done(Reception::Fatal(format!("no address: {reason}")));
            }
            Err(error) => return Attempt::Again(format!("no answer: {error}"), None),
        };
        let status = response.status().as_u16();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_string)
        };
        let asked = header("retry-after").and_then(|text| wait_asked_for(&text, SystemTime::now()));
        let text = match response.body_mut().read_to_string() {
            Ok(text) => text,
            Err(error) => return Attempt::Again(format!("the answer broke off: {error}"), None),
        };
        match status {
            200..=299 => match read(&text) {
                Ok(reply) => Attempt::Done(Reception::Reply(reply)),
                Err(reason) => Attempt::Again(reason, None),
            },
            408 | 409 | 425 | 429 | 500.. => {
                Attempt::Again(format!("status {status}: {}", complaint(&text)), asked)
            }
            400 | 413 | 422 if is_about_length(&text) => Attempt::Done(Reception::TooLong),
            // Gateways refuse a single prompt with the last three, too.
            400 | 413 | 422 | 402 | 403 | 451 => Attempt::Done(Reception::Refused(format!(
                "status {status}: {}",
                complaint(&text)
            ))),
            401 => Attempt::Done(Reception::Fatal(format!(
                "status {status}: {}; set OPENAI_API_KEY to a key that may ask this model",
                complaint(&text)
            ))),
            _ => Attempt::Done(Reception::Fatal(format!(
                "status {status}: {}; check generate.openai.base_url and generate.openai.model",
                complaint(&text)
            ))),
        }
    }
}

/// Seeds are 64-bit integers with a sign to some endpoints, 32-bit ones to others.
const SEED_BITS: u64 = 0x7fff_ffff;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: &'a [Message],
    temperature: f64,
    top_p: f64,
    /// These three are no keys of OpenAI's, but of vLLM and others; sent only when set.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f64>,
    max_tokens: usize,
    seed: u64,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Content,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    content: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

fn read(text: &str) -> Result<Reply, String> {
    let completion: Completion = serde_json::from_str(text)
        .map_err(|error| format!("the answer is no completion ({error}): {}", shortened(text)))?;
    let usage = completion.usage.unwrap_or_default();
    let Some(choice) = completion.choices.into_iter().next() else {
        return Err("the answer has no choices".to_string());
    };
    let finish = choice.finish_reason.as_deref().unwrap_or("stop");
    Ok(Reply {
        text: choice.message.content.unwrap_or_default(),
        finished: !["length", "content_filter", "abort"].contains(&finish),
        prompt_tokens: usage.prompt_tokens,
        reply_tokens: usage.completion_tokens,
        teacher: None,
    })
}

/// `Retry-After`: seconds, or a date.
fn wait_asked_for(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn is_about_length(text: &str) -> bool {
    let text = text.to_lowercase();
    [
        "context_length_exceeded",
        "maximum context length",
        "context length",
        "max_model_len",
    ]
    .iter()
    .any(|sign| text.contains(sign))
}

/// What an endpoint says of an error, in one line.
fn complaint(text: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let message = parsed.as_ref().and_then(|value| {
        ["/error/message", "/message", "/detail", "/error"]
            .iter()
            .find_map(|path| value.pointer(path)?.as_str())
    });
    shortened(message.unwrap_or(text))
}

fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.is_empty() => "no text".to_string(),
        None => line,
    }
}

/// False when the run was asked to stop.
fn sleep(time: Duration, stop: &AtomicBool) -> bool {
    const GLANCE: Duration = Duration::from_millis(20);
    let end = Instant::now() + time;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= end {
            return true;
        }
        std::thread::sleep((end - now).min(GLANCE));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |text: &str| wait_asked_for(text, now).map(|wait| wait.as_secs());
        // 784,111,777 is the example date of RFC 9110: Sun, 06 Nov 1994 08:49:37 GMT.
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:07 GMT"), Some(0));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
    }

    #[test]
    fn complaints_are_one_line() {
        assert_eq!(
            complaint("{\"error\":{\"message\":\"too\\nmany\"}}"),
            "too many"
        );
        assert_eq!(complaint("<html>\n no"), "<html> no");
        assert!(is_about_length(
            "This model's maximum context length is 8192 tokens."
        ));
    }
}
