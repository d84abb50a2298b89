//! One turn of a conversation, in the shape every chat data set and chat template uses.
//! How turns become text and token ids is left to `sysgen-chat`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who speaks. Written in lower case, as chat templates expect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that hold for the whole conversation. Newer data sets call it `developer`.
    #[serde(alias = "developer")]
    System,
    /// The person who asks.
    User,
    /// The model that answers.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The lower-case name that templates and data sets use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One turn: who speaks, and the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text, verbatim.
    pub content: String,
}

impl Message {
    /// A system message.
    pub fn system(content: impl Into<String>) -> Message {
        Message {
            role: Role::System,
            content: content.into(),
        }
    }

    /// A user's turn.
    pub fn user(content: impl Into<String>) -> Message {
        Message {
            role: Role::User,
            content: content.into(),
        }
    }

    /// An assistant's turn.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message {
            role: Role::Assistant,
            content: content.into(),
        }
    }

    /// The result of a tool call.
    pub fn tool(content: impl Into<String>) -> Message {
        Message {
            role: Role::Tool,
            content: content.into(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn developer_is_read_as_system_and_written_as_system() {
        let message: Message =
            serde_json::from_str(r#"{"role":"developer","content":"Be brief."}"#).unwrap();
        assert_eq!(message, Message::system("Be brief."));
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"role":"system","content":"Be brief."}"#
        );
    }

    #[test]
    fn every_role_is_written_as_it_is_displayed() {
        for role in [Role::System, Role::User, Role::Assistant, Role::Tool] {
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
    }
}
