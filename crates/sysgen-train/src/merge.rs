//! `sysgen-train merge`: a model and an adapter in PEFT's format become one model.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::command_line::model_at;
use sysgen_core::config::{AdapterExport, ExportDtype};
use sysgen_core::message::Message;
use sysgen_core::tell;
use sysgen_model::{Decoder, WeightDtype, device, doing};
use sysgen_train::export::{Export, refuse_foreign_folder};

#[derive(Args)]
pub(crate) struct MergeArguments {
    /// The model the adapter was trained beside, in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The adapter, in PEFT's format. Tokenizer and chat template are taken from here if they are here.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Number format of the weights: auto (as the model's), f32, bf16 or f16.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    dtype: ExportDtype,
}

fn dtype(word: &str) -> Result<ExportDtype, String> {
    serde_json::from_value(json!(word)).map_err(|_| "use auto, f32, bf16 or f16".to_string())
}

/// Writes the merged model and says where.
pub(crate) fn merge(arguments: &MergeArguments) -> Result<()> {
    model_at(&arguments.model, "--model")?;
    refuse_foreign_folder(&arguments.output).context("--output")?;
    let texts = match arguments.adapter.join("tokenizer.json").exists() {
        true => &arguments.adapter,
        false => &arguments.model,
    };
    let chat = Chat::load(texts, ChatOptions::default())?;
    doing("merging the adapter");
    // Projection by projection on the host: a GPU has nothing to do here.
    let base = Decoder::load_as(&arguments.model, &device("cpu")?, WeightDtype::Auto)?;
    let decoder = base.with_adapter(&arguments.adapter)?;
    let conversation = vec![
        Message::user("Hello"),
        Message::assistant("Hello, how can I help?"),
    ];
    let about = json!({
        "program": format!("sysgen-train {}", env!("CARGO_PKG_VERSION")),
        "base model": arguments.model.display().to_string(),
        "adapter": arguments.adapter.display().to_string(),
    });
    let path = Export {
        decoder: &decoder,
        chat: &chat,
        path: &arguments.output,
        dtype: arguments.dtype,
        adapter: AdapterExport::Merge,
        like: Some(&arguments.model),
        conversations: &[conversation],
        about: &about,
    }
    .write()?;
    tell(format_args!("merged to {}", path.display()));
    Ok(())
}
