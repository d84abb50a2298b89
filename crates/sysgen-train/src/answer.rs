//! `sysgen-train answer`: one question to a model in a folder, to see whether it obeys its system message.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde_json::json;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::command_line::model_at;
use sysgen_core::message::Message;
use sysgen_core::tell;
use sysgen_infer::{Answer, Completion, Engine, Finish, Options, Refused, Request, Sampling};
use sysgen_model::{Decoder, WeightDtype, device};

#[derive(Args)]
pub(crate) struct AnswerArguments {
    /// A model in Hugging Face layout, an export for example.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The question.
    #[arg(long, value_name = "TEXT")]
    user: String,
    /// The system message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Start of the random numbers, where the temperature is above 0.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// auto, cpu, cuda or cuda:1.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Prints the ids of prompt and answer too, as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the model's answer.
pub(crate) fn answer(arguments: &AnswerArguments) -> Result<()> {
    model_at(&arguments.model, "--model")?;
    ensure!(
        arguments.temperature.is_finite() && arguments.temperature >= 0.0,
        "--temperature {} must be 0 (greedy) or more, and finite",
        arguments.temperature
    );
    ensure!(arguments.max_tokens > 0, "--max-tokens must be at least 1");
    let device = device(&arguments.device)?;
    let chat = Chat::load(&arguments.model, ChatOptions::default())?;
    let mut messages: Vec<Message> = arguments.system.iter().map(Message::system).collect();
    messages.push(Message::user(&arguments.user));
    let prompt = chat.prompt(&messages)?;
    let decoder = Decoder::load_as(&arguments.model, &device, WeightDtype::Auto)?.pack();
    let sampling = Sampling {
        temperature: arguments.temperature,
        seed: arguments.seed,
        ..Sampling::greedy(arguments.max_tokens)
    };
    let options = Options {
        max_num_seqs: 1,
        max_length: prompt.len().saturating_add(arguments.max_tokens),
        ..Options::default()
    };
    let request = Request::new(prompt.clone(), sampling, chat.stop_ids().to_vec());
    let mut result: Option<Result<Completion, Refused>> = None;
    Engine::new(&decoder, options).generate(vec![request], &mut |_, answer| {
        result = Some(answer.map(Answer::into_first));
        ControlFlow::Continue(())
    });
    let completion = result
        .context("the engine gave no answer")?
        .map_err(|refused| anyhow!("{refused}"))?;
    let text = chat.decode(&completion.ids);
    if arguments.json {
        let finish = match completion.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        let line =
            json!({"prompt_ids": prompt, "ids": completion.ids, "text": text, "finish": finish});
        tell(line);
    } else {
        ensure!(
            !text.trim().is_empty(),
            "the model ended its turn without a word"
        );
        tell(text.trim());
    }
    Ok(())
}
