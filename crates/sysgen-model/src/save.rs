//! Writes a model directory: `model*.safetensors`, index, `config.json`, `generation_config.json`.
//! Beside a source directory of the same layout the result is byte for byte the source where no value has changed:
//! the source's file heads are used as they are, and only tensor bytes are made anew. Tokenizer files are not ours.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, INDEX, SINGLE, Shard};
use crate::config::{ModelConfig, StoredDtype};
use crate::names::{EMBEDDING, HEAD, harmless};
use crate::parameter::Parameter;

/// The largest shard, in bytes of tensors: `transformers`' default of 5 GB.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The number format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDtype {
    /// As the source stores each tensor; without a source as `config.json` says.
    Auto,
    /// Every tensor in this format.
    Of(StoredDtype),
    /// Every tensor as it is kept in memory: what is loaded again is the same to the bit.
    Kept,
}

impl ExportDtype {
    /// From the word a configuration uses.
    ///
    /// # Errors
    /// Any word but `auto`, `f32`, `f16`, `bf16`.
    pub fn parse(word: &str) -> Result<ExportDtype> {
        Ok(match word {
            "auto" => ExportDtype::Auto,
            "f32" => ExportDtype::Of(StoredDtype::F32),
            "f16" => ExportDtype::Of(StoredDtype::F16),
            "bf16" => ExportDtype::Of(StoredDtype::Bf16),
            other => bail!("dtype = \"{other}\" is not known; use auto, f32, f16 or bf16"),
        })
    }
}

/// A parameter to be written: its values are made on the host when its turn comes, and given up again.
pub(crate) struct Content<'a> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// What it is kept in.
    pub(crate) kept: StoredDtype,
    pub(crate) values: Box<dyn Fn() -> Result<Vec<f32>> + 'a>,
}

impl<'a> Content<'a> {
    pub(crate) fn of(parameter: &'a Parameter) -> Content<'a> {
        Content {
            name: parameter.name.clone(),
            shape: parameter.tensor.shape(),
            kept: match parameter.tensor.is_bf16() {
                true => StoredDtype::Bf16,
                false => StoredDtype::F32,
            },
            values: Box::new(|| Ok(parameter.tensor.to_vec())),
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn encode(&self, dtype: StoredDtype, out: &mut dyn Write) -> io::Result<()> {
        let values = (self.values)().map_err(io::Error::other)?;
        encode(&self.name, &values, dtype, out)
    }
}

/// Writes `parameters` to `dir`, which is created if need be and must hold no other weight files.
pub(crate) fn save(
    config: &ModelConfig,
    parameters: &[Parameter],
    dir: &Path,
    dtype: ExportDtype,
    like: Option<&Path>,
) -> Result<()> {
    let contents: Vec<Content> = parameters.iter().map(Content::of).collect();
    save_contents(config, &contents, dir, dtype, like)
}

/// As [`save`], of parameters that are made one at a time.
pub(crate) fn save_contents(
    config: &ModelConfig,
    parameters: &[Content],
    dir: &Path,
    dtype: ExportDtype,
    like: Option<&Path>,
) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let source = match like {
        Some(source) if Checkpoint::exists(source) => Some(Checkpoint::open(source)?),
        _ => None,
    };
    let common = source.as_ref().and_then(Checkpoint::common_dtype);
    match (&source, dtype) {
        (Some(source), ExportDtype::Auto) => {
            source
                .check(config)
                .context("the directory to export like does not fit this model")?;
            write_like(source, parameters, dir, like)?;
        }
        (Some(source), ExportDtype::Of(wanted)) if common == Some(wanted) => {
            source
                .check(config)
                .context("the directory to export like does not fit this model")?;
            write_like(source, parameters, dir, like)?;
        }
        (_, ExportDtype::Of(wanted)) => {
            write_fresh(parameters, dir, Some(wanted), MAX_SHARD_BYTES)?
        }
        (_, ExportDtype::Kept) => write_fresh(parameters, dir, None, MAX_SHARD_BYTES)?,
        (None, ExportDtype::Auto) => {
            write_fresh(parameters, dir, Some(config.stored_dtype), MAX_SHARD_BYTES)?;
        }
    }
    let stored = match dtype {
        ExportDtype::Auto => common.unwrap_or(config.stored_dtype),
        ExportDtype::Of(wanted) => wanted,
        ExportDtype::Kept => match parameters.iter().any(|p| p.kept == StoredDtype::Bf16) {
            true => StoredDtype::Bf16,
            false => StoredDtype::F32,
        },
    };
    write_config(config, dir, stored, like)
}

/// Same files, names, order, number formats and metadata as `source`.
fn write_like(
    source: &Checkpoint,
    parameters: &[Content],
    dir: &Path,
    like: Option<&Path>,
) -> Result<()> {
    let files: Vec<String> = source.shards.iter().map(file_name).collect();
    let index = like
        .map(|like| like.join(INDEX))
        .filter(|path| files != [SINGLE] && path.exists());
    ensure_empty(dir, &files, index.is_some())?;
    for (shard, file) in source.shards.iter().zip(&files) {
        write_file(&dir.join(file), |out| {
            out.write_all(shard.head())?;
            for tensor in &shard.tensors {
                let name = if tensor.name == HEAD && find(parameters, HEAD).is_none() {
                    EMBEDDING
                } else {
                    &tensor.name
                };
                match (find(parameters, name), tensor.dtype) {
                    (Some(parameter), Some(dtype)) => parameter.encode(dtype, out)?,
                    _ => {
                        debug_assert!(harmless(&tensor.name));
                        out.write_all(shard.bytes_of(tensor))?;
                    }
                }
            }
            Ok(())
        })?;
    }
    if let Some(index) = index {
        copy(&index, &dir.join(INDEX))?;
    }
    Ok(())
}

/// A layout of our own: tensors of a format in alphabetical order, as many shards as needed; without a format, each in its own.
fn write_fresh(
    parameters: &[Content],
    dir: &Path,
    dtype: Option<StoredDtype>,
    shard_bytes: u64,
) -> Result<()> {
    let mut sorted: Vec<&Content> = parameters.iter().collect();
    // Wider numbers first, as safetensors itself does it, so that all are aligned.
    let order = |p: &Content| std::cmp::Reverse(width(stored_dtype(p, dtype)));
    sorted.sort_by(|a, b| (order(a), &a.name).cmp(&(order(b), &b.name)));
    let shards = split(&sorted, shard_bytes, |p| stored_bytes(p, dtype));
    let files: Vec<String> = match shards.len() {
        1 => vec![SINGLE.to_owned()],
        count => (1..=count)
            .map(|i| format!("model-{i:05}-of-{count:05}.safetensors"))
            .collect(),
    };
    ensure_empty(dir, &files, files.len() > 1)?;
    for (shard, file) in shards.iter().zip(&files) {
        write_shard(&dir.join(file), shard, dtype)?;
    }
    if files.len() > 1 {
        let count: usize = parameters.iter().map(Content::len).sum();
        let bytes: u64 = parameters.iter().map(|p| stored_bytes(p, dtype)).sum();
        let mut map = Map::new();
        for (shard, file) in shards.iter().zip(&files) {
            map.extend(
                shard
                    .iter()
                    .map(|parameter| (parameter.name.clone(), json!(file))),
            );
        }
        map.sort_keys();
        let index = json!({ "metadata": { "total_parameters": count, "total_size": bytes }, "weight_map": map });
        write_json(&dir.join(INDEX), &index)?;
    }
    Ok(())
}

/// Writes one file with these tensors in alphabetical order.
pub(crate) fn write_tensors(
    path: &Path,
    parameters: &[Parameter],
    dtype: StoredDtype,
) -> Result<()> {
    let contents: Vec<Content> = parameters.iter().map(Content::of).collect();
    let mut sorted: Vec<&Content> = contents.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    write_shard(path, &sorted, Some(dtype))
}

/// The format a tensor is written in.
fn stored_dtype(parameter: &Content, dtype: Option<StoredDtype>) -> StoredDtype {
    dtype.unwrap_or(parameter.kept)
}

fn stored_bytes(parameter: &Content, dtype: Option<StoredDtype>) -> u64 {
    parameter.len() as u64 * width(stored_dtype(parameter, dtype))
}

fn write_shard(path: &Path, parameters: &[&Content], dtype: Option<StoredDtype>) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for parameter in parameters {
        let end = at + stored_bytes(parameter, dtype);
        let dtype = dtype_name(stored_dtype(parameter, dtype));
        header.insert(
            parameter.name.clone(),
            json!({ "dtype": dtype, "shape": parameter.shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    // Readers map the file and want the tensors aligned.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    write_file(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        parameters
            .iter()
            .try_for_each(|parameter| parameter.encode(stored_dtype(parameter, dtype), out))
    })
}

/// Consecutive groups of at most `limit` bytes; a larger tensor is alone.
fn split<'a, 'b>(
    parameters: &[&'a Content<'b>],
    limit: u64,
    bytes: impl Fn(&Content) -> u64,
) -> Vec<Vec<&'a Content<'b>>> {
    let mut shards: Vec<Vec<&Content>> = vec![Vec::new()];
    let mut held = 0;
    for &parameter in parameters {
        let size = bytes(parameter);
        if held > 0 && held + size > limit {
            shards.push(Vec::new());
            held = 0;
        }
        held += size;
        if let Some(shard) = shards.last_mut() {
            shard.push(parameter);
        }
    }
    shards
}

/// Weight files left from something else would be read instead of, or together with, the ones written now.
fn ensure_empty(dir: &Path, files: &[String], index: bool) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let name = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let weights =
            name.ends_with(".safetensors") && name.starts_with("model") && !files.contains(&name);
        ensure!(
            !weights && (index || name != INDEX),
            "{} already holds {name}, which this model would not replace; choose an empty directory",
            dir.display()
        );
    }
    Ok(())
}

/// `config.json` and `generation_config.json`: the source's own bytes, or the config as it was read; only the number
/// format is brought up to date.
fn write_config(
    config: &ModelConfig,
    dir: &Path,
    stored: StoredDtype,
    like: Option<&Path>,
) -> Result<()> {
    let source = like
        .map(|like| like.join("config.json"))
        .filter(|path| path.exists());
    let target = dir.join("config.json");
    match source {
        Some(source) if config.stored_dtype == stored => copy(&source, &target)?,
        _ => {
            let mut json = config.json.clone();
            if let Some(object) = json.as_object_mut() {
                let word = stored.to_string();
                let key = if object.contains_key("dtype") {
                    "dtype"
                } else {
                    "torch_dtype"
                };
                object.insert(key.to_owned(), json!(word));
            }
            write_json(&target, &json)?;
        }
    }
    let target = dir.join("generation_config.json");
    match like
        .map(|like| like.join("generation_config.json"))
        .filter(|path| path.exists())
    {
        Some(source) => copy(&source, &target),
        None => {
            let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
            let ids: Map<String, Value> = keys
                .iter()
                .filter_map(|key| Some(((*key).to_owned(), config.json.get(*key)?.clone())))
                .filter(|(_, id)| !id.is_null())
                .collect();
            write_json(&target, &Value::Object(ids))
        }
    }
}

/// Rounds to nearest even, as PyTorch does.
fn encode(name: &str, values: &[f32], dtype: StoredDtype, out: &mut dyn Write) -> io::Result<()> {
    const CHUNK: usize = 1 << 16;
    let mut bytes = Vec::with_capacity(CHUNK * 4);
    for chunk in values.chunks(CHUNK) {
        bytes.clear();
        match dtype {
            StoredDtype::F32 => bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes())),
            StoredDtype::Bf16 => bytes.extend(
                chunk
                    .iter()
                    .flat_map(|value| bf16::from_f32(*value).to_le_bytes()),
            ),
            StoredDtype::F16 => {
                for value in chunk {
                    let half = f16::from_f32(*value);
                    if half.is_infinite() && value.is_finite() {
                        return Err(io::Error::other(format!(
                            "tensor `{name}` holds {value}, too large for f16; export as bf16 or f32"
                        )));
                    }
                    bytes.extend(half.to_le_bytes());
                }
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn find<'a, 'b>(parameters: &'a [Content<'b>], name: &str) -> Option<&'a Content<'b>> {
    parameters.iter().find(|parameter| parameter.name == name)
}

fn file_name(shard: &Shard) -> String {
    shard
        .path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn width(dtype: StoredDtype) -> u64 {
    if dtype == StoredDtype::F32 { 4 } else { 2 }
}

fn dtype_name(dtype: StoredDtype) -> &'static str {
    match dtype {
        StoredDtype::F32 => "F32",
        StoredDtype::F16 => "F16",
        StoredDtype::Bf16 => "BF16",
    }
}

pub(crate) fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json)
        .with_context(|| format!("cannot write {}", path.display()))?;
    write_file(path, |out| writeln!(out, "{text}"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write_file(to, |out| out.write_all(&bytes))
}

/// Writes a sibling and renames it, so that a file under its final name is always whole.
fn write_file(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let written = || -> io::Result<()> {
        let mut out = BufWriter::new(File::create(temporary)?);
        content(&mut out)?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        std::fs::rename(temporary, path)
    };
    // What went in before an error stays: who wants all or nothing gives a folder that is thrown away, and how much there was
    // room for is worth knowing.
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::decoder::Decoder;

    #[test]
    fn shards_hold_whole_tensors_up_to_the_limit() {
        let sizes = [3, 4, 3, 20, 1, 1];
        let parameters: Vec<Content> = sizes
            .iter()
            .map(|&size| Content {
                name: size.to_string(),
                shape: vec![size],
                kept: StoredDtype::F32,
                values: Box::new(move || Ok(vec![0.0; size])),
            })
            .collect();
        let all: Vec<&Content> = parameters.iter().collect();
        let lengths = |limit| -> Vec<Vec<usize>> {
            let shards = split(&all, limit, |p| p.len() as u64);
            let lengths = |shard: &Vec<&Content>| shard.iter().map(|p| p.len()).collect();
            shards.iter().map(lengths).collect()
        };
        assert_eq!(lengths(7), [vec![3, 4], vec![3], vec![20], vec![1, 1]]);
        assert_eq!(lengths(1000), [sizes.to_vec()]);
    }

    #[test]
    fn a_model_in_several_shards_and_their_index_is_the_model() {
        let json = json!({
            "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
            "tie_word_embeddings": false, "torch_dtype": "float32"
        });
        let config = ModelConfig::from_json(&json).unwrap();
        let decoder = Decoder::random(config.clone(), 1, &Device::flex());
        let (folder, parameters) = (tempfile::tempdir().unwrap(), decoder.parameters());
        let contents: Vec<Content> = parameters.iter().map(Content::of).collect();
        write_fresh(&contents, folder.path(), None, 4_000).unwrap();
        write_json(&folder.path().join("config.json"), &json).unwrap();
        let index = std::fs::read(folder.path().join(INDEX)).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let files: std::collections::BTreeSet<&str> = index["weight_map"]
            .as_object()
            .unwrap()
            .values()
            .map(|file| file.as_str().unwrap())
            .collect();
        let count = files.len();
        assert!(count > 3, "{files:?}");
        let first = format!("model-00001-of-{count:05}.safetensors");
        assert_eq!(*files.first().unwrap(), first);
        let numbers: usize = contents.iter().map(Content::len).sum();
        assert_eq!(index["metadata"]["total_size"], 4 * numbers);
        let again = Decoder::load(folder.path(), &Device::flex()).unwrap();
        for (was, is) in parameters.iter().zip(again.parameters()) {
            assert_eq!(was.name, is.name);
            assert_eq!(was.tensor.to_vec(), is.tensor.to_vec(), "{}", was.name);
        }
    }
}
