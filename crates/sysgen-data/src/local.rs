//! The generator that runs a Hugging Face directory in this process: text becomes ids by the model's own
//! chat template, the engine decodes them. The library's only file that knows of tensors.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rayon::prelude::*;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::config::{DataSection, GenerateSection, ModelInit, RunConfig, Variant};
use sysgen_core::hash::{FileHashes, hash_file};
use sysgen_core::interrupt;
use sysgen_core::message::Message;
use sysgen_core::note_start;
use sysgen_infer::{
    ChoiceRequest, ChoiceStep, Engine, Finish, Options, Refused, Request, TokenLogProbability,
};
use sysgen_model::{Decoder, Device, ModelConfig, WeightDtype};

use crate::generator::{
    Generator, Judged, Judgement, LabelStep, OnDone, Outcome, Prompt, Reply, Scores, Teacher,
};
use crate::pipeline::{self, ModelIdentity, needs_model};
use crate::shard::Shard;
use crate::summary::Summary;

/// Generates the data of `[generate]` into `<output_dir>/data/` with the config's model on `device`, from the local files
/// of `data`. The model is loaded only when a row still needs it, and is gone when this returns.
pub(crate) fn run_by_model(
    config: &RunConfig,
    data: &DataSection,
    device: &Device,
    shard: Shard,
    files: &FileHashes,
) -> Result<Summary> {
    // Before the template is looked at, which may write the date.
    note_start(&config.output_dir)?;
    let open = || -> Result<Box<dyn Generator>> { Ok(Box::new(Local::load(config, device)?)) };
    pipeline::run(config, data, &identity(config)?, shard, files, Some(open))
}

pub(crate) fn identity(config: &RunConfig) -> Result<ModelIdentity> {
    let Some(generate) = &config.generate else {
        return Ok(ModelIdentity::default());
    };
    let directory = config.generate_model();
    let mut identity = ModelIdentity {
        name: directory.display().to_string(),
        ..ModelIdentity::default()
    };
    if !needs_model(generate.variant) {
        return Ok(identity);
    }
    identity.key.insert(
        "chat template and tokenizer".to_string(),
        load_chat(config)?.fingerprint(),
    );
    // Whole files: a sample would not see every change. The shards of a large model are read side by side.
    let files = model_files(directory, starts_at_random(config, generate))?;
    let hashes: Vec<String> = files
        .par_iter()
        .map(|path| hash_file(path))
        .collect::<Result<_>>()?;
    for (path, hash) in files.iter().zip(hashes) {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let name = format!("model file {}", name.to_string_lossy());
        identity.key.insert(name, hash);
    }
    if starts_at_random(config, generate) {
        identity.key.insert(
            "model.init".to_string(),
            format!("random from seed {}", config.seed),
        );
    }
    Ok(identity)
}

/// `model.init = "random"` is about `model.path`, not about a model that `[generate]` names.
fn starts_at_random(config: &RunConfig, generate: &GenerateSection) -> bool {
    config.model.init == ModelInit::Random && generate.model.as_os_str().is_empty()
}

/// `config.json` and the weights, by name.
fn model_files(directory: &Path, random: bool) -> Result<Vec<PathBuf>> {
    let reading = || format!("generate.model: reading {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let weights = path
            .extension()
            .is_some_and(|extension| extension == "safetensors");
        if path.file_name().is_some_and(|name| name == "config.json") || (weights && !random) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_chat(config: &RunConfig) -> Result<Chat> {
    Chat::load(config.generate_model(), ChatOptions::of(config))
}

struct Local {
    chat: Chat,
    /// Keeps what one phase computed for the next: their prompts begin alike.
    engine: Engine,
}

impl Local {
    fn load(config: &RunConfig, device: &Device) -> Result<Local> {
        let generate = config
            .generate
            .as_ref()
            .context("the config has no [generate] section")?;
        let directory = config.generate_model();
        tracing::info!("loading {}", directory.display());
        let chat = load_chat(config)?;
        if generate.variant != Variant::OriginalAnswer {
            // Answers are written under system messages; what the template makes of one is known before the first draft.
            let exchange = [Message::system("Be brief."), Message::user("Hello")];
            chat.prompt(&exchange)
                .with_context(|| format!("generate.model: {}", directory.display()))?;
        }
        let model = ModelConfig::from_directory(directory)?;
        chat.padding_rows(model.vocab_size)
            .with_context(|| directory.display().to_string())?;
        let decoder = if starts_at_random(config, generate) {
            Decoder::random(model, config.seed, device)
        } else {
            Decoder::load_as(directory, device, WeightDtype::Auto)?
        };
        let options = Options {
            max_num_seqs: generate.batch_size.max(1),
            max_length: generate.max_length,
            kv_cache_bytes: generate.kv_cache_bytes,
            ..Options::default()
        };
        let engine = Engine::new(&decoder.pack(), options).until(interrupt::requested);
        Ok(Local { chat, engine })
    }
}

/// A step as ids.
fn choice_step(chat: &Chat, step: &LabelStep) -> Result<ChoiceStep> {
    let mut forced = chat.encode_continuation(&step.forced);
    let mut labels: Vec<Vec<u32>> = step
        .labels
        .iter()
        .map(|label| chat.encode_continuation(label))
        .collect();
    // Some tokenizers write the space before a word as a token of its own: what all labels begin
    // with tells none apart and is forced as well.
    while let Some(first) = common_first(&labels) {
        forced.push(first);
        for label in &mut labels {
            label.remove(0);
        }
    }
    let firsts: Vec<Option<&u32>> = labels.iter().map(|label| label.first()).collect();
    let told_apart = firsts
        .iter()
        .enumerate()
        .all(|(i, first)| first.is_some() && !firsts[..i].contains(first));
    if !told_apart {
        bail!(
            "generate.verify.method = \"score\": this tokenizer does not tell {} apart by their first tokens; use \"generate\"",
            step.labels.join(", ")
        );
    }
    Ok(ChoiceStep { forced, labels })
}

fn common_first(labels: &[Vec<u32>]) -> Option<u32> {
    let first = *labels.first()?.first()?;
    labels
        .iter()
        .all(|label| label.first() == Some(&first))
        .then_some(first)
}

impl Generator for Local {
    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()> {
        let chat = &self.chat;
        let made: Vec<Result<Request>> = prompts
            .par_iter()
            .map(|prompt| {
                let sampling = sysgen_infer::Sampling {
                    temperature: prompt.sampling.temperature as f32,
                    top_k: prompt.sampling.top_k,
                    top_p: prompt.sampling.top_p as f32,
                    min_p: prompt.sampling.min_p as f32,
                    repetition_penalty: prompt.sampling.repetition_penalty as f32,
                    seed: prompt.seed,
                    ..sysgen_infer::Sampling::greedy(prompt.sampling.max_tokens)
                };
                let ids = chat.prompt(&prompt.messages)?;
                Ok(Request {
                    logprobs: (prompt.teacher_top_k > 0).then_some(prompt.teacher_top_k),
                    ..Request::new(ids, sampling, chat.stop_ids().to_vec())
                })
            })
            .collect();
        let Some((places, requests)) = renderable(made, on_done) else {
            return Ok(());
        };
        let lengths: Vec<usize> = requests
            .iter()
            .map(|request| request.prompt.len())
            .collect();
        let mut failure = None;
        self.engine.generate(requests, &mut |i, result| {
            let reply = result.map(|answer| {
                let completion = answer.into_first();
                Reply {
                    text: chat.decode(&completion.ids),
                    finished: completion.finish == Finish::Stop,
                    prompt_tokens: lengths[i],
                    reply_tokens: completion.ids.len(),
                    teacher: teacher(&completion.log_probabilities),
                }
            });
            hand_on(places[i], reply, on_done, &mut failure)
        });
        failure.map_or(Ok(()), Err)
    }

    fn choose(&mut self, judgements: Vec<Judgement>, on_done: OnDone<'_, Judged>) -> Result<()> {
        let chat = &self.chat;
        // All judgements have the same few steps: their ids are made once.
        let mut known: Vec<(&LabelStep, ChoiceStep)> = Vec::new();
        for step in judgements.iter().flat_map(|judgement| &judgement.steps) {
            if !known.iter().any(|(seen, _)| *seen == step) {
                known.push((step, choice_step(chat, step)?));
            }
        }
        let ids_of = |step: &LabelStep| {
            let found = known.iter().find(|(seen, _)| *seen == step);
            found.expect("every step was made").1.clone()
        };
        let made: Vec<Result<ChoiceRequest>> = judgements
            .par_iter()
            .map(|judgement| {
                Ok(ChoiceRequest {
                    prompt: chat.prompt(&judgement.messages)?,
                    steps: judgement.steps.iter().map(ids_of).collect(),
                })
            })
            .collect();
        let Some((places, requests)) = renderable(made, on_done) else {
            return Ok(());
        };
        let forced = |request: &ChoiceRequest| {
            request
                .steps
                .iter()
                .map(|step| step.forced.len())
                .sum::<usize>()
        };
        let lengths: Vec<usize> = requests
            .iter()
            .map(|request| request.prompt.len() + forced(request))
            .collect();
        let mut failure = None;
        self.engine.choose(requests, &mut |i, result| {
            let judged = result.map(|choices| Judged {
                scores: choices
                    .into_iter()
                    .map(|choice| Scores {
                        best: choice.best,
                        log_probabilities: choice.log_probabilities,
                    })
                    .collect(),
                prompt_tokens: lengths[i],
            });
            hand_on(places[i], judged, on_done, &mut failure)
        });
        failure.map_or(Ok(()), Err)
    }
}

/// What the model thought at each place; nothing if it was not asked.
fn teacher(places: &[TokenLogProbability]) -> Option<Teacher> {
    let top_k = places.first()?.top.len();
    let mut teacher = Teacher {
        top_k,
        ..Teacher::default()
    };
    for place in places {
        teacher.answer_ids.push(place.id);
        let (ids, log_probabilities): (Vec<u32>, Vec<f32>) = place.top.iter().copied().unzip();
        teacher.ids.push(ids);
        let four_decimals = |number: f32| (f64::from(number) * 1e4).round() / 1e4;
        let log_probabilities = log_probabilities.into_iter().map(four_decimals);
        teacher.log_probabilities.push(log_probabilities.collect());
    }
    Some(teacher)
}

/// The requests that could be made, with their places. A conversation that the chat template refuses (turns that do not
/// alternate, say) is its row's fault and an outcome; that the template takes system messages at all was tried at loading.
/// `None` when nothing more is wanted.
fn renderable<R, T>(made: Vec<Result<R>>, on_done: OnDone<'_, T>) -> Option<(Vec<usize>, Vec<R>)> {
    let (mut places, mut requests) = (Vec::new(), Vec::new());
    for (place, request) in made.into_iter().enumerate() {
        match request {
            Ok(request) => {
                places.push(place);
                requests.push(request);
            }
            Err(error) => {
                if on_done(place, Outcome::Refused(format!("{error:#}"))).is_break() {
                    return None;
                }
            }
        }
    }
    Some((places, requests))
}

/// A prompt that does not fit is the row's fault and an outcome; any other refusal is the model's and
/// ends the run.
fn hand_on<T>(
    i: usize,
    result: Result<T, Refused>,
    on_done: OnDone<'_, T>,
    failure: &mut Option<anyhow::Error>,
) -> ControlFlow<()> {
    match result {
        Ok(value) => on_done(i, Outcome::Done(value)).map_continue(|_| ()),
        Err(Refused::TooLong { tokens, .. }) => {
            on_done(i, Outcome::TooLong(tokens)).map_continue(|_| ())
        }
        Err(refused) => {
            *failure = Some(anyhow!(refused).context("generating"));
            ControlFlow::Break(())
        }
    }
}
