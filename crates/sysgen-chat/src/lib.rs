//! A conversation becomes token ids and the mask of what is learnt, by the model's own tokenizer and chat template.
//! Encoders, which read plain text, have [`EncoderTokenizer`]. How conversations are made, packed or trained on is left to the other crates.

mod chat;
mod encoder_tokenizer;
mod jinja;
mod known_words;
mod markup;
mod policy;
mod render;
mod template;
mod tokenizer;

pub use chat::Chat;
pub use encoder_tokenizer::{EncodedText, EncoderTokenizer};
pub use policy::ChatOptions;
pub use render::Rendered;
pub use template::{SpecialTokens, Template, TemplateError};
pub use tokenizer::Tokenizer;
