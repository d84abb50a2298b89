//! What the environment says to a run, under the names that other tools use, too. Only the programs read
//! it; the library is told.

use std::fmt;
use std::path::PathBuf;

/// The variables a run may need.
#[derive(Clone, Default)]
pub struct Environment {
    /// `OPENAI_BASE_URL`.
    pub openai_base_url: Option<String>,
    /// `OPENAI_API_KEY`.
    pub openai_api_key: Option<String>,
    /// `HF_ENDPOINT`.
    pub hub_endpoint: Option<String>,
    /// `HF_TOKEN`; without it the token that a login left in the Hub's folder.
    pub hub_token: Option<String>,
    /// `HF_HUB_CACHE`, else the folder `hub` in `HF_HOME`; without both the Hub's own default.
    pub hub_cache: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`: only what is in the cache.
    pub hub_offline: bool,
}

impl Environment {
    /// Reads the variables through `variable`; an empty one counts as not set.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Environment {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let hub_home = get("HF_HOME").map(|home| PathBuf::from(home).join("hub"));
        Environment {
            openai_base_url: get("OPENAI_BASE_URL"),
            openai_api_key: get("OPENAI_API_KEY"),
            hub_endpoint: get("HF_ENDPOINT").map(|url| url.trim_end_matches('/').to_string()),
            hub_token: get("HF_TOKEN"),
            hub_cache: get("HF_HUB_CACHE").map(PathBuf::from).or(hub_home),
            hub_offline: get("HF_HUB_OFFLINE").is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
            }),
        }
    }

    /// This process's.
    pub fn of_process() -> Environment {
        Environment::read(|name| std::env::var(name).ok())
    }
}

/// Without the secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("openai_base_url", &self.openai_base_url)
            .field("hub_endpoint", &self.hub_endpoint)
            .field("hub_cache", &self.hub_cache)
            .field("hub_offline", &self.hub_offline)
            .finish_non_exhaustive()
    }
}
