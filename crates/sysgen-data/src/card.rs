//! What lies beside a finished data set so that it explains itself: `README.md`, a card as the Hugging
//! Face Hub shows it, `config.toml`, and the prompts. All of it follows from the config and the
//! manifest: no times, no licence or language that nobody stated, the same bytes for the same run.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use sysgen_core::RunConfig;
use sysgen_core::config::{GenerateSection, HubDataset, Variant, VerifyMethod};
use sysgen_core::files::write_atomically;

use crate::manifest::{Funnel, Manifest};
use crate::steps::Plan;
use crate::tag::Tag;
use crate::verify::Label;

/// Writes the files into `directory`. `model` names what wrote the texts.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(
    directory: &Path,
    config: &RunConfig,
    generate: &GenerateSection,
    plan: &Plan,
    model: &str,
    manifest: &Manifest,
) -> Result<()> {
    let write = |name: &str, text: &str| {
        write_atomically(&directory.join(name), |file| {
            file.write_all(text.as_bytes())
        })
    };
    write("config.toml", &config.to_toml())?;
    if has_system_messages(generate.variant) {
        for (name, text) in plan.prompt_texts() {
            write(&format!("prompts/{name}.txt"), text)?;
        }
    }
    write("README.md", &card(config, generate, model, manifest))
}

/// Whether system messages are drafted and verified.
fn has_system_messages(variant: Variant) -> bool {
    !matches!(variant, Variant::NoSystem | Variant::CommonSystem)
}

fn card(
    config: &RunConfig,
    generate: &GenerateSection,
    model: &str,
    manifest: &Manifest,
) -> String {
    let funnel = &manifest.funnel;
    let drafted = has_system_messages(generate.variant);
    let mut card = format!(
        "---\n\
         pretty_name: SysGen data\n\
         task_categories:\n- text-generation\n\
         size_categories:\n- {}\n\
         tags:\n- sysgen\n- system-message\n{}\
         configs:\n- config_name: default\n  data_files: dataset.jsonl\n\
         # license and language: SysGen does not know them; they follow from the source data and the model.\n\
         ---\n\n# SysGen data\n\n",
        size_category(funnel.kept),
        if drafted { "- synthetic\n" } else { "" },
    );
    let sources: Vec<String> = config.data.path.iter().map(|path| source(path)).collect();
    let rows = funnel.kept;
    let mut say = |text: String| card.push_str(&text);
    say(match generate.variant {
        Variant::Sysgen => format!(
            "{rows} conversations from {}, each with a system message and with answers that `{model}` wrote under it.",
            list(&sources)
        ),
        Variant::SystemInUser => format!(
            "{rows} conversations from {}, each with a system message that stands before the question in the user's turn, and with answers that `{model}` wrote.",
            list(&sources)
        ),
        Variant::OriginalAnswer => format!(
            "{rows} conversations from {}, each with a system message that `{model}` wrote, and with the original answers.",
            list(&sources)
        ),
        Variant::NoSystem => format!(
            "{rows} conversations from {} as they are, for comparison: nothing was generated.",
            list(&sources)
        ),
        Variant::CommonSystem => format!(
            "{rows} conversations from {}, all with the system message \"{}\", for comparison: nothing was generated.",
            list(&sources),
            generate.common_system_message
        ),
    });
    say(format!(
        "\n\nVariant `{}` of the method of *System Message Generation for User Preferences using Open-Source Models* (arXiv 2502.11330).\n",
        serde_json::to_value(generate.variant)
            .ok()
            .and_then(|name| name.as_str().map(str::to_string))
            .unwrap_or_default()
    ));
    if drafted {
        say(method(generate, model));
    }
    say(rows_table(funnel));
    if !manifest.tags.is_empty() {
        say(tags_table(manifest));
    }
    say(fields(drafted));
    say(made_with(manifest, drafted));
    if drafted {
        say("\n## Limits\n\nThe system messages and the new answers are a model's: no person has checked them, facts may be wrong, and the verifier is the same model.\n".to_string());
    }
    card
}

/// How a reply was drawn, in the words of the config.
fn drawn(temperature: f64, top_p: f64, top_k: usize, max_tokens: usize) -> String {
    let mut said = format!("temperature {temperature}");
    if top_p < 1.0 {
        let _ = write!(said, ", top p {top_p}");
    }
    if top_k > 0 {
        let _ = write!(said, ", top k {top_k}");
    }
    said + &format!(", at most {max_tokens} tokens")
}

fn method(generate: &GenerateSection, model: &str) -> String {
    let GenerateSection {
        draft,
        verify,
        respond,
        ..
    } = generate;
    let verified = match verify.method {
        VerifyMethod::Score => format!(
            "by the probabilities of Good, Bad and None; kept from a margin of {} nats",
            verify.threshold
        ),
        VerifyMethod::Generate => format!(
            "in writing: {}",
            drawn(
                verify.temperature,
                verify.top_p,
                verify.top_k,
                verify.max_tokens
            )
        ),
    };
    let mut text = format!(
        "\n## Method\n\n`{model}` wrote everything, in four phases:\n\n\
         1. **draft**: a system message for the question and answer, every phrase in one of eight tags; {}, {}. Prompt: `prompts/draft.txt`.\n\
         2. **filter**: only well-formed phrases stay, in the order Role, Content, Task, Action, Style, Background, Tool, Format.\n\
         3. **verify**: every tag is judged {verified}. Prompt: `prompts/verify.txt`.\n",
        drawn(
            draft.temperature,
            draft.top_p,
            draft.top_k,
            draft.max_tokens
        ),
        match draft.retries {
            0 => "once".to_string(),
            1 => "and once more where nothing usable came out".to_string(),
            more => format!("and up to {more} times more where nothing usable came out"),
        }
    );
    if generate.variant == Variant::OriginalAnswer {
        text.push_str("4. **respond** was left out: the answers are the original ones.\n");
    } else {
        let _ = writeln!(
            text,
            "4. **respond**: the question is answered again under the system message; {}.",
            drawn(
                respond.temperature,
                respond.top_p,
                respond.top_k,
                respond.max_tokens
            )
        );
    }
    text
}

/// The funnel as a table; reasons are indented under the step that they belong to.
fn rows_table(funnel: &Funnel) -> String {
    let mut text = "\n## Rows\n\n| | rows |\n|---|---:|\n".to_string();
    let mut line = |name: &str, rows: usize| {
        let _ = writeln!(text, "| {} | {rows} |", name.replace('|', "\\|"));
    };
    line("in the source files", funnel.read.found);
    for (reason, places) in &funnel.read.unreadable {
        line(&format!("– {reason}"), places.count);
    }
    for (name, rows) in [
        ("– has a system message", funnel.read.with_system),
        (
            "– shares a word sequence with a benchmark",
            funnel.read.contaminated.count,
        ),
        (
            "– has the text of an earlier row",
            funnel.read.duplicates.count,
        ),
        (
            "– has nearly the words of an earlier row",
            funnel.read.near_duplicates.count,
        ),
        ("– beyond the limit", funnel.read.beyond_limit),
    ] {
        if rows > 0 {
            line(name, rows);
        }
    }
    line("for the phases", funnel.read.rows);
    for (name, phase) in [
        ("draft, filter", &funnel.draft),
        ("verify", &funnel.verify),
        ("respond", &funnel.respond),
    ] {
        for (reason, rows) in &phase.dropped {
            line(&format!("– {name}: {reason}"), *rows);
        }
    }
    line(
        &format!("**kept** ({:.2} %)", funnel.kept_percent),
        funnel.kept,
    );
    text
}

fn tags_table(manifest: &Manifest) -> String {
    let mut text = "\n## Tags\n\nRows that have a tag, and the verifier's word on it (Unread: it wrote none that can be read, and the phrases stay).\n\n\
                    | tag | drafted | Good | Bad | None | Unread | kept |\n|---|---:|---:|---:|---:|---:|---:|\n"
        .to_string();
    for tag in Tag::CANONICAL {
        let Some(counts) = manifest.tags.get(&tag) else {
            continue;
        };
        let of = |label| counts.labels.get(&label).copied().unwrap_or(0);
        let labels = [Label::Good, Label::Bad, Label::None, Label::Unread];
        let [good, bad, none, unread] = labels.map(of);
        let _ = writeln!(
            text,
            "| {tag} | {} | {good} | {bad} | {none} | {unread} | {} |",
            counts.drafted, counts.kept
        );
    }
    text
}

fn fields(drafted: bool) -> String {
    let mut text = "\n## Fields\n\n\
        - `messages`: `role` and `content` of each turn. `\"weight\": 0` marks an answer that is context and not to be learnt.\n\
        - `sysgen.id`, `sysgen.source`, `sysgen.line`: the row of the source data.\n\
        - `sysgen.original_answer`: the answer it came with.\n"
        .to_string();
    if drafted {
        text.push_str(
            "- `sysgen.annotated`: the draft with its tags; `sysgen.tags`: each tag with its label, the margin in nats, and whether it was kept.\n\
             - `sysgen.model`, `sysgen.seeds`, `sysgen.prompt_hash`, `sysgen.tokens`: what wrote it, and what it cost.\n",
        );
    }
    text.push_str(
        "\n```python\nfrom datasets import load_dataset\n\nrows = load_dataset(\"json\", data_files=\"dataset.jsonl\", split=\"train\")\nprint(rows[0][\"messages\"])\n```\n",
    );
    text
}

fn made_with(manifest: &Manifest, drafted: bool) -> String {
    let mut text = format!(
        "\n## Made with\n\nsysgen-data {}, with the config in `config.toml`, whose paths are relative to the folder the run was started in. The same \
         config, data and model give the same bytes on the same machine.\n\n\
         `manifest.json` counts every row that was left out",
        env!("CARGO_PKG_VERSION")
    );
    text.push_str(if drafted {
        " and has the hashes (BLAKE3) of the source files, the model's files and the prompts.\n"
    } else {
        " and has the hashes (BLAKE3) of the source files.\n"
    });
    let _ = writeln!(
        text,
        "\nBLAKE3 of `dataset.jsonl`: `{}`",
        manifest.dataset_hash
    );
    text
}

/// The Hub's names of sizes.
fn size_category(rows: usize) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        _ => "10M<n<100M",
    }
}

fn list(names: &[String]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The name of a Hub data set, or of a file.
fn source(path: &Path) -> String {
    if let Some(HubDataset { id, .. }) = HubDataset::named_by(path) {
        return id;
    }
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
