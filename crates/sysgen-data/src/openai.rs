//! The generator that asks an endpoint which speaks OpenAI's chat completions. Requests go out in parallel;
//! what happens to a single one is in `request`.

mod request;
mod streak;

use std::collections::VecDeque;
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

    /// Starts the threads that send `prompts`; they end when there is nothing left to send, or on `stop`.
    fn send(&self, prompts: Vec<Prompt>, stop: &Arc<AtomicBool>) -> Receiver<(usize, Reception)> {
        let threads = self.settings.max_parallel_requests.min(prompts.len());
        let waiting = Arc::new(Mutex::new(
            prompts.into_iter().enumerate().collect::<VecDeque<_>>(),
        ));
        let (sender, receiver): (Sender<(usize, Reception)>, _) = channel();
        for _ in 0..threads {
            let (waiting, sender) = (Arc::clone(&waiting), sender.clone());
            let (client, stop) = (Arc::clone(&self.client), Arc::clone(stop));
            // Not scoped: after Ctrl-C nobody waits ten minutes for an endpoint that is silent.
            std::thread::spawn(move || {
                let next = || {
                    let mut waiting = waiting.lock().unwrap_or_else(|held| held.into_inner());
                    waiting.pop_front()
                };
                while !stop.load(Ordering::Relaxed) {
                    let Some((i, prompt)) = next() else {
                        return;
                    };
                    if sender.send((i, client.ask(&prompt, &stop))).is_err() {
                        return;
                    }
                }
            });
        }
        receiver
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
    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let _stop_on_return = StopOnDrop(Arc::clone(&stop));
        let receiver = self.send(prompts, &stop);
        self.streak.begin();
        // A refusal is the row's fault only if the endpoint answers others: it is held back until a request that was
        // begun later is answered.
        let mut refused: Vec<(usize, String)> = Vec::new();
        let mut stopping: Option<Instant> = None;
        loop {
            if interrupt::requested() && stopping.is_none() {
                stop.store(true, Ordering::Relaxed);
                stopping = Some(Instant::now());
            }
            if stopping.is_some_and(|since| since.elapsed() > GRACE) {
                return Ok(());
            }
            let (i, reception) = match receiver.recv_timeout(GLANCE) {
                Ok(received) => received,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let flow = match reception {
                Reception::Reply(reply) => {
                    self.streak.answered(i);
                    self.has_answered = true;
                    for (i, reason) in refused.extract_if(.., |(earlier, _)| *earlier < i) {
                        let _ = on_done(i, Outcome::Refused(reason));
                    }
                    on_done(i, Outcome::Done(reply))
                }
                Reception::TooLong => {
                    self.streak.set_aside(i);
                    on_done(i, Outcome::TooLong(0))
                }
                Reception::Refused(reason) => {
                    self.failed(i, &reason)?;
                    refused.push((i, reason));
                    continue;
                }
                Reception::Failed(reason) => {
                    self.failed(i, &reason)?;
                    on_done(i, Outcome::Failed(reason))
                }
                Reception::Fatal(reason) => bail!("{}: {reason}", self.client.address()),
                Reception::Stopped => continue,
            };
            if flow.is_break() && !interrupt::requested() {
                return Ok(());
            }
        }
        for (i, reason) in refused {
            let outcome = if self.has_answered {
                Outcome::Refused(reason)
            } else {
                Outcome::Failed(reason)
            };
            if on_done(i, outcome).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn choose(&mut self, _: Vec<Judgement>, _: OnDone<'_, Judged>) -> Result<()> {
        bail!(
            "generate.verify.method = \"score\" cannot go with engine = \"openai\"; set method = \"generate\""
        )
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
