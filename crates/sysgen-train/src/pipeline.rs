//! The whole run, in the order things happen.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sysgen_core::config::{AdapterExport, ModelInit, TrainMethod, TrainSection, Variant};
use sysgen_core::files::write_atomically;
use sysgen_core::hash::FileHashes;
use sysgen_core::message::Message;
use sysgen_core::{RunConfig, lock_output, note_start, tell};
use sysgen_model::{Decoder, Device, allow_tf32, device, device_name, doing};
use sysgen_train::check_page::{self, table};
use sysgen_train::checkpoint::{self, Progress};
use sysgen_train::export::{Export, refuse_foreign_folder};
use sysgen_train::identity::identity;
use sysgen_train::method;
use sysgen_train::resume::{checkpoint_to_export, checkpoint_to_resume, refuse_other_model};
use sysgen_train::rows::Row;
use sysgen_train::run::{Observed, Outcome, Run, held_out_batches};

use crate::data::{self, Data};
use crate::probe;
use crate::samples;
use crate::student;
use crate::summary::{self, Summary};

/// Rows that `check` shows.
const SHOWN_ROWS: usize = 3;
/// Rows that its page shows.
const SHOWN_ON_PAGE: usize = 50;
/// Conversations that are rendered again from an export.
const EXPORT_CONVERSATIONS: usize = 32;

/// Everything the config enables.
pub(crate) fn run(config: &RunConfig) -> Result<()> {
    let _lock = lock_output(&config.output_dir)?;
    note_start(&config.output_dir)?;
    let files = FileHashes::default();
    let inputs = summary::inputs(config, &files)?;
    if let Some(done) = summary::finished(config, &inputs) {
        tell(format_args!(
            "{} is complete; nothing was done again.\n\n{}",
            config.output_dir.display(),
            done.to_text()
        ));
        return Ok(());
    }
    if config.export.is_some() {
        refuse_foreign_folder(&config.export_path()).context("export.path")?;
    }
    if config.train.as_ref().is_some_and(|train| train.tf32) {
        allow_tf32();
    }
    let device = device(&config.device.to_string())?;
    let devices = method::devices(config)?;
    let mut summary = Summary::new(config, inputs);
    if let Some(generate) = &config.generate {
        if let Some(train) = &config.train {
            // Hours of writing would end in rows that this template cannot show to the student.
            let without = [Variant::NoSystem, Variant::SystemInUser];
            if !without.contains(&generate.variant) && !without.contains(&train.variant) {
                let chat = data::load_chat(config)?;
                chat.takes_system_messages().with_context(|| {
                    format!("the chat template of {}", config.model.path.display())
                })?;
            }
        }
        // The teacher is gone when this returns: the student never shares the device with it.
        doing("generating");
        let environment = sysgen_data::Environment::of_process();
        let generated = sysgen_data::run(config, &device, &environment, &files)?;
        if generated.interrupted {
            tell(format_args!(
                "stopped; every finished row is kept. Run the same command again to go on from there."
            ));
            return Ok(());
        }
        summary.data = Some(serde_json::to_value(&generated.funnel)?);
        summary.funnel = Some(generated.to_string());
    }
    if let Some(train) = &config.train {
        let cache = config.output_dir.join("cache");
        let data = data::load(config, train, Some(&cache))?;
        data::pass(&data.check(config, train)?)?;
        let Some(decoder) = self::train(config, train, &data, &devices, &mut summary)? else {
            return Ok(());
        };
        if config.export.is_some() {
            let conversations = data
                .rows
                .train
                .iter()
                .map(|row| row.messages.clone())
                .take(EXPORT_CONVERSATIONS)
                .collect::<Vec<_>>();
            summary.export = Some(write_export(
                config,
                &decoder,
                &data.chat,
                &conversations,
                &summary,
            )?);
        }
    } else if config.export.is_some() {
        summary.export = Some(export_model(config)?);
    }
    write_config(config)?;
    if config.train.is_some() {
        summary.report(config)?;
    }
    summary.save(config)?;
    tell(summary.to_text());
    Ok(())
}

/// `sysgen-train check`: the gates as a table, some rows, and all of it as a page where one is asked for.
pub(crate) fn check(config: &RunConfig, html: Option<&Path>) -> Result<()> {
    let train = config
        .train
        .as_ref()
        .context("check needs a [train] section")?;
    let data = data::load(config, train, None)?;
    let findings = data.check(config, train)?;
    let colour = data::colour(std::io::stdout().is_terminal());
    tell(format_args!(
        "{}\n{}",
        data.preview(SHOWN_ROWS, std::io::stdout().is_terminal()),
        table(&findings, colour)
    ));
    if let Some(path) = html {
        let shown: Vec<_> = data.train.examples.iter().take(SHOWN_ON_PAGE).collect();
        let about = format!(
            "{} rows, {} of them held out; model {}",
            data.train.examples.len() + data.held_out.examples.len(),
            data.held_out.examples.len(),
            config.model.path.display()
        );
        let page = check_page::html(&findings, &data.chat, &shown, &about);
        write_atomically(path, |file| file.write_all(page.as_bytes()))?;
        tell(format_args!("The page: {}", path.display()));
    }
    data::pass(&findings)?;
    tell(format_args!(
        "No problem found in {} rows.",
        data.train.examples.len() + data.held_out.examples.len()
    ));
    Ok(())
}

/// `sysgen-train export`.
pub(crate) fn export(config: &RunConfig) -> Result<()> {
    let _lock = lock_output(&config.output_dir)?;
    refuse_foreign_folder(&config.export_path()).context("export.path")?;
    let path = export_model(config)?;
    tell(format_args!("exported to {}", path.display()));
    Ok(())
}

/// Trains to the end. None when a signal stopped it.
fn train(
    config: &RunConfig,
    train: &TrainSection,
    data: &Data,
    devices: &[Device],
    summary: &mut Summary,
) -> Result<Option<Decoder>> {
    let device = &devices[0];
    let identity = identity(
        config,
        &data.chat,
        &data.train.examples,
        &data.held_out.examples,
        data.stored.as_deref(),
    )?;
    let held_out = held_out_batches(&data.held_out.examples, train, data.chat.pad_id());
    let asked = &data.rows.held_out[..train.samples.min(data.rows.held_out.len())];
    let observe =
        |decoder: &Decoder, step: usize| observe(config, train, data, asked, decoder, step);
    let distill = config.distill.as_ref();
    let distill = distill.filter(|distill| distill.on_policy > 0.0);
    let write = distill.map(|distill| student::writes(&data.chat, distill));
    let run = Run {
        config,
        train,
        chat: &data.chat,
        examples: &data.train.examples,
        held_out: &held_out,
        identity: &identity,
        observe: Some(&observe),
        write: write
            .as_ref()
            .map(|write| write as sysgen_train::on_policy::Write),
    };
    let mut order = run.order();
    let (total_steps, packed) = (order.total_steps(), order.utilisation());
    tracing::info!(
        "{total_steps} steps: {} epochs of {} rows of at most {} tokens, {:.1} % full, {} rows a step",
        order.epoch_after(total_steps),
        packed.rows,
        train.max_length,
        100.0 * packed.share,
        train.per_device_train_batch_size * train.micro_batches()
    );
    let resumed = checkpoint_to_resume(&config.output_dir, &identity)?;
    method::check_device(train, device)?;
    write_config(config)?;
    data.show_one_row();
    let distiller = data.distiller(config, device)?;
    let mut untrained = None;
    let mut samples = samples::before(&config.output_dir, &identity, &data.chat, asked, || {
        let decoder = load_model(config, train, device)?;
        untrained = Some(decoder.clone());
        Ok(decoder)
    })?;
    let (mut trainer, progress) = match &resumed {
        Some(checkpoint) => {
            tracing::info!("going on from {}", checkpoint.path.display());
            untrained = None;
            (
                run.resume(checkpoint, device)?,
                checkpoint.state.progress.clone(),
            )
        }
        None => {
            let decoder = match untrained.take() {
                Some(decoder) => decoder,
                None => load_model(config, train, device)?,
            };
            (run.start(decoder), Progress::default())
        }
    };
    drop(untrained);
    trainer.distiller = distiller;
    if devices.len() > 1 {
        let names: Vec<String> = devices.iter().map(device_name).collect();
        tracing::info!("training together: {}", names.join(", "));
    }
    trainer.use_devices(devices);
    doing("training");
    match run.train(trainer, progress, None)? {
        Outcome::Finished(finished) => {
            summary.add_training(&finished, &data.train);
            doing("answering the samples");
            samples::after(&mut samples, &finished.decoder, &data.chat, asked);
            summary.samples = samples;
            Ok(Some(finished.decoder))
        }
        Outcome::Interrupted(checkpoint) => {
            tell(format_args!(
                "stopped; saved {}. Run the same command again to go on from there.",
                checkpoint.display()
            ));
            Ok(None)
        }
    }
}

/// The model with what is trained beside it.
fn load_model(config: &RunConfig, train: &TrainSection, device: &Device) -> Result<Decoder> {
    doing("loading the model");
    let base = method::load_base(config, device)?;
    method::with_adapters(base, train, config.seed)
}

/// What an evaluation looks at besides the loss: the fixed system messages, and what the samples' answers are by now.
fn observe(
    config: &RunConfig,
    train: &TrainSection,
    data: &Data,
    asked: &[Row],
    decoder: &Decoder,
    step: usize,
) -> Result<Observed> {
    // The answers before and after are part of the summary already.
    if step > 0 && train.eval_steps > 0 && step.is_multiple_of(train.eval_steps) {
        samples::append(&config.output_dir, step, decoder, &data.chat, asked)?;
    }
    let obedience = train
        .obedience_probe
        .then(|| probe::obedience(decoder, &data.chat));
    Ok(Observed {
        obedience: obedience.transpose()?,
    })
}

/// The checkpoint of the run, or the model itself where nothing was trained. All of it happens on the host: there is nothing
/// to compute but the sums of an adapter's merge.
fn export_model(config: &RunConfig) -> Result<PathBuf> {
    let chat = data::load_chat(config)?;
    let export = config.export.clone().unwrap_or_default();
    let checkpoint = match export.checkpoint.as_os_str().is_empty() {
        true => checkpoint_to_export(config)?,
        false => Some(checkpoint::open(&export.checkpoint)?),
    };
    let host = device("cpu")?;
    let untrained = || {
        let base = config.clone();
        let base = RunConfig {
            train: None,
            ..base
        };
        method::load_base(&base, &host)
    };
    // It is not saved: nothing asks what it was made of.
    let mut summary = Summary::new(config, String::new());
    let decoder = match &checkpoint {
        Some(checkpoint) => {
            refuse_other_model(checkpoint, config, &chat)?;
            tracing::info!("exporting {}", checkpoint.path.display());
            summary.add_checkpoint(checkpoint)?;
            let method = config.train.as_ref().map(|train| train.method);
            // Four bits would be made only to be replaced by what they come from.
            let whole =
                method == Some(TrainMethod::Qlora) && export.adapter == AdapterExport::Merge;
            checkpoint::load_decoder(checkpoint, &host, || match whole {
                true => untrained(),
                false => method::load_base(config, &host),
            })?
        }
        None => untrained()?,
    };
    let conversation = vec![
        Message::user("Hello"),
        Message::assistant("Hello, how can I help?"),
    ];
    write_export(config, &decoder, &chat, &[conversation], &summary)
}

fn write_export(
    config: &RunConfig,
    decoder: &Decoder,
    chat: &sysgen_chat::Chat,
    conversations: &[Vec<Message>],
    summary: &Summary,
) -> Result<PathBuf> {
    doing("exporting");
    let path = config.export_path();
    let pretrained = config.model.init == ModelInit::Pretrained;
    let like: Option<&Path> = pretrained.then_some(config.model.path.as_path());
    let about = json!({
        "program": format!("sysgen-train {}", env!("CARGO_PKG_VERSION")),
        "base model": config.model.path.display().to_string(),
        "trained by": provenance(config),
        "training rows": training_rows(config),
        "steps": summary.best_step.unwrap_or(summary.steps),
        "chosen as": summary.best_step.map(|_| format!("the best evaluation of {} steps", summary.steps)),
        "held-out loss before": summary.held_out_loss_before,
        "held-out loss after": summary.held_out_loss_after,
    });
    let export = config.export.clone().unwrap_or_default();
    Export {
        decoder,
        chat,
        path: &path,
        dtype: export.dtype,
        adapter: export.adapter,
        like,
        conversations,
        about: &about,
    }
    .write()
}

/// How the weights came to be, in a few words for the card.
fn provenance(config: &RunConfig) -> String {
    let Some(train) = &config.train else {
        return "nothing: the base model as it is".to_string();
    };
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let mut said = word(json!(train.method));
    if train.method.has_adapter() {
        let (rank, alpha) = (train.lora_r, train.lora_alpha);
        said += &match train.lora_adapter.as_os_str().is_empty() {
            true => format!(
                " (rank {rank}, alpha {alpha}, rsLoRA {}, DoRA {})",
                train.use_rslora, train.use_dora
            ),
            false => format!(" (going on from {})", train.lora_adapter.display()),
        };
    }
    if let Some(distill) = &config.distill {
        let teacher = match distill.teacher.as_os_str().is_empty() {
            true => "stored probabilities".to_string(),
            false => distill.teacher.display().to_string(),
        };
        said += &format!(", {} from {teacher}", word(json!(distill.divergence)));
        if distill.on_policy > 0.0 {
            said += &format!(", on its own words in {} of the steps", distill.on_policy);
        }
    }
    said + &format!(
        ", learning rate {:e}, seed {}",
        train.learning_rate, config.seed
    )
}

/// The files of the training rows.
fn training_rows(config: &RunConfig) -> String {
    let paths = match config.generate {
        Some(_) => vec![config.generated_data_dir().join("dataset.jsonl")],
        None => config.data.path.clone(),
    };
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

fn write_config(config: &RunConfig) -> Result<()> {
    write_atomically(&config.output_dir.join("config.toml"), |file| {
        file.write_all(config.to_toml().as_bytes())
    })
}
