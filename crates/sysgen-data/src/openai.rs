//! The generator that asks an endpoint which speaks OpenAI's chat completions. Requests go out in parallel;
//! what happens to a single one is in `request`.

mod request;
mod streak;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sysgen_core::config::{OpenaiSection, RunConfig};
use sysgen_core::hash::FileHashes;
use sysgen_core::interrupt;

use crate::environment::Environment;
use crate::generator::{Generator, Judged, Judgement, OnDone, Outcome, Prompt, Reply};
use crate::input::with_local_files;
use crate::openai::request::{Client, Reception};
use crate::openai::streak::Streak;
use crate::pipeline::{self, ModelIdentity, needs_model};
use crate::shard::Shard;
use crate::summary::Summary;

/// How long answers that are under way are waited for after Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);
/// How often the main thread looks whether it was asked to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// Generates the data of `[generate]` into `<output_dir>/data/` by the endpoint of the config.
///
/// # Errors
/// Everything that `run_with` names, and an endpoint that refuses or stays silent.
pub fn run_by_endpoint(
    config: &RunConfig,
    shard: Shard,
    environment: &Environment,
    files: &FileHashes,
) -> Result<Summary> {
    let data = &with_local_files(config, environment)?.data;
    let open =
        || -> Result<Box<dyn Generator>> { Ok(Box::new(Endpoint::new(config, environment)?)) };
    pipeline::run(config, data, &identity(config)?, shard, files, Some(open))
}

/// The same model may be served in many places: its name is what the texts depend on, not the address.
pub(crate) fn identity(config: &RunConfig) -> Result<ModelIdentity> {
    let generate = config
        .generate
        .as_ref()
        .context("the config has no [generate] section")?;
    let mut identity = ModelIdentity {
        name: generate.openai.model.clone(),
        ..ModelIdentity::default()
    };
    if needs_model(generate.variant) {
        identity
            .key
            .insert("generate.openai.model".to_string(), identity.name.clone());
    }
    Ok(identity)
}

struct Endpoint {
    client: Arc<Client>,
    settings: OpenaiSection,
    streak: Streak,
    /// The endpoint has answered something.
    has_answered: bool,
}

impl Endpoint {
    fn new(config: &RunConfig, environment: &Environment) -> Result<Endpoint> {
        let generate = config
            .generate
            .as_ref()
            .context("the config has no [generate] section")?;
        let client = Client::new(&generate.openai, config.seed, environment);
        tracing::info!("asking {} at {}", generate.openai.model, client.address());
        Ok(Endpoint {
            client: Arc::new(client),
            settings: generate.openai.clone(),
            streak: Streak::new(
                generate.openai.max_failures,
                generate.openai.max_parallel_requests,
            ),
            has_answered: false,
        })
    }

    /// Starts `threads` that send what they are given, one prompt after the other, until nothing more can come, or on `stop`.
    fn start(&self, threads: usize, stop: &Arc<AtomicBool>) -> (Sender<Asked>, Receiver<Received>) {
        let (queue, waiting) = channel::<Asked>();
        let waiting = Arc::new(Mutex::new(waiting));
        let (sender, receiver) = channel();
        for _ in 0..threads {
            let (waiting, sender) = (Arc::clone(&waiting), sender.clone());
            let (client, stop) = (Arc::clone(&self.client), Arc::clone(stop));
            // Not scoped: after Ctrl-C nobody waits ten minutes for an endpoint that is silent.
            std::thread::spawn(move || {
                let next = || {
                    let waiting = waiting.lock().unwrap_or_else(|held| held.into_inner());
                    waiting.recv()
                };
                while !stop.load(Ordering::Relaxed) {
                    let Ok((i, prompt)) = next() else {
                        return;
                    };
                    if sender.send((i, client.ask(&prompt, &stop))).is_err() {
                        return;
                    }
                }
            });
        }
        (queue, receiver)
    }

    /// Counts that request `i` came to nothing; the error that ends the run when it was too much in a row.
    fn failed(&mut self, i: usize, reason: &str) -> Result<()> {
        let Some(in_a_row) = self.streak.failed(i) else {
            return Ok(());
        };
        let what_to_do = if self.has_answered {
            "run the same command again once the endpoint is well"
        } else {
            "it has answered nothing at all, check OPENAI_API_KEY, generate.openai.base_url and generate.openai.model, then run the same command again"
        };
        bail!(
            "{}: {in_a_row} requests in a row came to nothing, the last because of: {reason}; nothing is lost, {what_to_do}",
            self.client.address(),
        );
    }
}

impl Generator for Endpoint {
    /// Twice as many as are under way, so that a thread finds a prompt while outcomes are written down.
    fn takes_more(&self) -> Option<usize> {
        Some(self.settings.max_parallel_requests.saturating_mul(2))
    }

    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let _stop_on_return = StopOnDrop(Arc::clone(&stop));
        let threads = self.settings.max_parallel_requests.min(prompts.len());
        let (queue, receiver) = self.start(threads, &stop);
        let mut requests = Requests {
            queue: Some(queue),
            asked: 0,
            under_way: 0,
            on_done,
        };
        for prompt in prompts {
            requests.ask(prompt);
        }
        self.streak.begin();
        // A refusal is the row's fault only if the endpoint answers others: it is held back until a request that was
        // begun later is answered.
        let mut refused: Vec<(usize, String)> = Vec::new();
        let mut stopping: Option<Instant> = None;
        loop {
            if requests.under_way == 0 || requests.queue.is_none() {
                // No later one is to come.
                for (i, reason) in std::mem::take(&mut refused) {
                    let outcome = match self.has_answered {
                        true => Outcome::Refused(reason),
                        false => Outcome::Failed(reason),
                    };
                    if requests.done(i, outcome).is_break() && !interrupt::requested() {
                        return Ok(());
                    }
                }
                if requests.under_way == 0 {
                    return Ok(());
                }
            }
            if interrupt::requested() && stopping.is_none() {
                stop.store(true, Ordering::Relaxed);
                // Threads that wait for a prompt end.
                requests.queue = None;
                stopping = Some(Instant::now());
            }
            if stopping.is_some_and(|since| since.elapsed() > GRACE) {
                return Ok(());
            }
            let (i, reception) = match receiver.recv_timeout(GLANCE) {
                Ok(received) => received,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            requests.under_way -= 1;
            let flow = match reception {
                Reception::Reply(reply) => {
                    self.streak.answered(i);
                    self.has_answered = true;
                    for (i, reason) in refused.extract_if(.., |(earlier, _)| *earlier < i) {
                        let _ = requests.done(i, Outcome::Refused(reason));
                    }
                    requests.done(i, Outcome::Done(reply))
                }
                Reception::TooLong => {
                    self.streak.set_aside(i);
                    requests.done(i, Outcome::TooLong(0))
                }
                Reception::Refused(reason) => {
                    self.failed(i, &reason)?;
                    refused.push((i, reason));
                    continue;
                }
                Reception::Failed(reason) => {
                    self.failed(i, &reason)?;
                    requests.done(i, Outcome::Failed(reason))
                }
                Reception::Fatal(reason) => bail!("{}: {reason}", self.client.address()),
                Reception::Stopped => continue,
            };
            if flow.is_break() && !interrupt::requested() {
                return Ok(());
            }
        }
    }

    fn choose(&mut self, _: Vec<Judgement>, _: OnDone<'_, Judged>) -> Result<()> {
        bail!(
            "generate.verify.method = \"score\" cannot go with engine = \"openai\"; set method = \"generate\""
        )
    }
}

/// A prompt with its number.
type Asked = (usize, Prompt);
/// What came of the request of that number.
type Received = (usize, Reception);

/// The requests of one call: they are begun in the order of their numbers.
struct Requests<'a> {
    /// Where the threads take their prompts from; none once nothing more is to be begun.
    queue: Option<Sender<Asked>>,
    /// How many there were so far.
    asked: usize,
    /// Without an outcome.
    under_way: usize,
    on_done: OnDone<'a, Reply>,
}

impl Requests<'_> {
    fn ask(&mut self, prompt: Prompt) {
        if let Some(queue) = &self.queue
            && queue.send((self.asked, prompt)).is_ok()
        {
            self.asked += 1;
            self.under_way += 1;
        }
    }

    /// Tells the outcome of request `i`, and asks what follows from it.
    fn done(&mut self, i: usize, outcome: Outcome<Reply>) -> ControlFlow<()> {
        let more = (self.on_done)(i, outcome)?;
        if let Some(prompt) = more {
            self.ask(prompt);
        }
        ControlFlow::Continue(())
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
