//! `[generate]` and its phases: how system messages and answers are written.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[generate]`: present, the run generates data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateSection {
    /// Hugging Face directory of the model that writes; default empty, which is `model.path`.
    pub model: PathBuf,
    /// What runs the model; default `local`.
    pub engine: Engine,
    /// Requests decoded together; default 64.
    pub batch_size: usize,
    /// Context in tokens, prompt and answer together; default 4096, never above the model's own.
    pub max_length: usize,
    /// Which of the paper's data variants is written; default `sysgen`.
    pub variant: Variant,
    /// The one system message of `variant = "common_system"`; default "You are a helpful AI assistant".
    pub common_system_message: String,
    /// How strictly a draft's tags are read; default `strict`.
    pub tags: TagRules,
    /// Bytes of the KV cache; default 0, which is what `batch_size` texts of `max_length` need, and no more than
    /// the device has to spare. Changes the speed, never the text.
    pub kv_cache_bytes: usize,
    /// File with the draft prompt; default empty, which is the built-in one.
    pub draft_prompt: PathBuf,
    /// File with the verify prompt; default empty, which is the built-in one.
    pub verify_prompt: PathBuf,
    /// Phase 1: the system message is drafted.
    pub draft: DraftSection,
    /// Phase 3: each phrase is judged.
    pub verify: VerifySection,
    /// Phase 4: the answer is written again.
    pub respond: RespondSection,
    /// The endpoint of `engine = "openai"`.
    pub openai: OpenaiSection,
}

impl Default for GenerateSection {
    fn default() -> GenerateSection {
        GenerateSection {
            model: PathBuf::new(),
            engine: Engine::Local,
            batch_size: 64,
            max_length: 4096,
            variant: Variant::Sysgen,
            common_system_message: "You are a helpful AI assistant".to_string(),
            tags: TagRules::Strict,
            kv_cache_bytes: 0,
            draft_prompt: PathBuf::new(),
            verify_prompt: PathBuf::new(),
            draft: DraftSection::default(),
            verify: VerifySection::default(),
            respond: RespondSection::default(),
            openai: OpenaiSection::default(),
        }
    }
}

/// What runs the generating model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// This process, from safetensors.
    #[default]
    Local,
    /// An endpoint that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, a hosted one.
    Openai,
}

/// `[generate.openai]`: the endpoint of `engine = "openai"`. The key is `OPENAI_API_KEY`'s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenaiSection {
    /// The address before `/chat/completions`; default empty, which is `OPENAI_BASE_URL`, or else OpenAI's.
    pub base_url: String,
    /// The name the endpoint knows the model by; required.
    pub model: String,
    /// Requests under way at the same time; default 32.
    pub max_parallel_requests: usize,
    /// Requests begun in a minute, 0 for no limit; default 0.
    pub requests_per_minute: usize,
    /// Longest wait for a connection; default 10.
    pub connect_timeout_seconds: usize,
    /// Longest wait for an answer; default 600.
    pub timeout_seconds: usize,
    /// How often a request is sent again after status 429 or 5xx, a cut connection or an answer that is no
    /// JSON; default 6.
    pub max_retries: usize,
    /// So many requests in a row, in the order they were begun, that come to nothing, retries included, stop the
    /// run; default 10.
    pub max_failures: usize,
    /// Rows that the endpoint did not answer this time, all retries done, are left out and counted; default false,
    /// which writes no data set before they are answered.
    pub skip_unanswered: bool,
}

impl Default for OpenaiSection {
    fn default() -> OpenaiSection {
        OpenaiSection {
            base_url: String::new(),
            model: String::new(),
            max_parallel_requests: 32,
            requests_per_minute: 0,
            connect_timeout_seconds: 10,
            timeout_seconds: 600,
            max_retries: 6,
            max_failures: 10,
            skip_unanswered: false,
        }
    }
}

/// The data variants of the paper's ablations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Generated system message, question, answer written again.
    #[default]
    Sysgen,
    /// Question and original answer, no system message.
    NoSystem,
    /// The same system message for every row, original answer.
    CommonSystem,
    /// Generated system message, original answer.
    OriginalAnswer,
    /// The generated system message stands before the question in the user's turn.
    SystemInUser,
}

/// How strictly a draft's tags are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagRules {
    /// Only well-formed, matching tags of the eight names.
    #[default]
    Strict,
    /// Also near misses: other case, spaces, a wrong closing tag.
    Lenient,
}

/// `[generate.draft]`: sampling of the draft.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DraftSection {
    /// Sampling temperature, 0 for greedy; default 0.7.
    pub temperature: f64,
    /// Smallest set of tokens whose probability reaches this is drawn from, 1 for all; default 1.
    pub top_p: f64,
    /// Only this many best tokens are drawn from, 0 for all; default 0.
    pub top_k: usize,
    /// Only tokens at least this probable relative to the best one are drawn from, 0 for all; default 0.
    pub min_p: f64,
    /// Logits of tokens that prompt or draft already have are divided by this, 1 for none; default 1.
    pub repetition_penalty: f64,
    /// Longest draft, in tokens; default 512.
    pub max_tokens: usize,
    /// How often a row is drafted anew when nothing usable is left of its draft; default 1.
    pub retries: usize,
}

impl Default for DraftSection {
    fn default() -> DraftSection {
        DraftSection {
            temperature: 0.7,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: 512,
            retries: 1,
        }
    }
}

/// `[generate.verify]`: how phrases are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifySection {
    /// Whether labels are compared by probability or written out; default `score`.
    pub method: VerifyMethod,
    /// `score` only: a phrase is kept when log P(Good) - log P(best other) is at least this, in nats;
    /// default 0. After a change nothing is judged again, and only rows whose system message changes are answered anew.
    pub threshold: f64,
    /// `generate` only: sampling temperature, 0 for greedy; default 0.7.
    pub temperature: f64,
    /// `generate` only: nucleus probability, 1 for all; default 1.
    pub top_p: f64,
    /// `generate` only: number of best tokens, 0 for all; default 0.
    pub top_k: usize,
    /// `generate` only: least probability relative to the best token, 0 for all; default 0.
    pub min_p: f64,
    /// `generate` only: penalty of tokens already there, 1 for none; default 1.
    pub repetition_penalty: f64,
    /// `generate` only: longest judgement, in tokens; default 256.
    pub max_tokens: usize,
}

impl Default for VerifySection {
    fn default() -> VerifySection {
        VerifySection {
            method: VerifyMethod::Score,
            threshold: 0.0,
            temperature: 0.7,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: 256,
        }
    }
}

/// How the judge answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyMethod {
    /// The labels' log-probabilities are compared.
    #[default]
    Score,
    /// The judge writes its labels (the paper's way).
    Generate,
}

/// `[generate.respond]`: sampling of the new answer. After a change drafts and judgements stay, and all answers are new.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RespondSection {
    /// Sampling temperature, 0 for greedy; default 0.7.
    pub temperature: f64,
    /// Nucleus probability, 1 for all; default 1.
    pub top_p: f64,
    /// Number of best tokens, 0 for all; default 0.
    pub top_k: usize,
    /// Least probability relative to the best token, 0 for all; default 0.
    pub min_p: f64,
    /// Penalty of tokens already there, 1 for none; default 1.
    pub repetition_penalty: f64,
    /// How many of the model's best tokens are kept with their log-probabilities at each place of the answer, for
    /// distillation from the data set; default 0, which keeps none. About 14 bytes each.
    pub teacher_top_k: usize,
    /// Longest answer, in tokens; default 1024.
    pub max_tokens: usize,
}

impl Default for RespondSection {
    fn default() -> RespondSection {
        RespondSection {
            temperature: 0.7,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            teacher_top_k: 0,
            max_tokens: 1024,
        }
    }
}
