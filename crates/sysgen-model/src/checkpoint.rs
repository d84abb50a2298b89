//! The safetensors files of a model directory, opened and checked: memory-mapped, sharded or single.
//! Everything that can be wrong with them is found here, from the headers, before a tensor is made. Writing is `save.rs`.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use half::{bf16, f16};
use serde_json::Value;

use crate::config::{ModelConfig, StoredDtype};
use crate::mapped::Mapped;
use crate::names::{EMBEDDING, HEAD, entries, harmless};
use crate::parameter::{Weight, WeightDtype};

/// Where a single-file checkpoint is.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Lists the tensors of a sharded one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Weights as PyTorch pickles them, which are not read.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// An opened checkpoint.
pub(crate) struct Checkpoint {
    pub(crate) shards: Vec<Shard>,
    /// Tensor name -> (shard, tensor in it).
    places: HashMap<String, (usize, usize)>,
    /// The file that should list a missing tensor.
    listing: PathBuf,
}

/// One safetensors file.
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    bytes: Mapped,
    /// Length of the file's head: the size field and the JSON header.
    head: usize,
    /// In the order of their bytes.
    pub(crate) tensors: Vec<Stored>,
}

/// The number format of a model's matrices by the heads of its safetensors files, whatever `config.json` says: that of most
/// of their numbers. `None` where none of the files are there; of a sharded model those that are there are looked at.
///
/// # Errors
/// A file is truncated or not a safetensors file.
pub fn stored_dtype(dir: &Path) -> Result<Option<StoredDtype>> {
    let files = match (dir.join(SINGLE).exists(), dir.join(INDEX).exists()) {
        (true, _) => vec![SINGLE.to_owned()],
        (false, true) => {
            let mut files: Vec<String> = weight_map(&dir.join(INDEX))?
                .into_iter()
                .map(|(_, file)| file)
                .collect();
            files.sort();
            files.dedup();
            files
        }
        (false, false) => Vec::new(),
    };
    let mut numbers: Vec<(StoredDtype, usize)> = Vec::new();
    for path in files
        .iter()
        .map(|file| dir.join(file))
        .filter(|path| path.exists())
    {
        for tensor in Shard::open(path)?.tensors {
            let (Some(dtype), 2) = (tensor.dtype, tensor.shape.len()) else {
                continue;
            };
            let count: usize = tensor.shape.iter().product();
            match numbers.iter_mut().find(|(known, _)| *known == dtype) {
                Some((_, sum)) => *sum += count,
                None => numbers.push((dtype, count)),
            }
        }
    }
    let most = numbers.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.map(|(dtype, _)| dtype))
}

/// A tensor in a file.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype_name: String,
    /// `None` for formats that no weight of ours may have.
    pub(crate) dtype: Option<StoredDtype>,
    pub(crate) shape: Vec<usize>,
    /// Bytes, counted from the start of the file.
    range: Range<usize>,
}

impl Checkpoint {
    /// Whether the directory holds safetensors weights.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join(SINGLE).exists() || dir.join(INDEX).exists()
    }

    /// Whether the directory holds weights at all, in whatever format.
    pub(crate) fn stored(dir: &Path) -> bool {
        Self::exists(dir) || PICKLED.iter().any(|file| dir.join(file).exists())
    }

    /// Opens the files of `dir` and reads their headers. As in `transformers`, a single file wins over an index.
    pub(crate) fn open(dir: &Path) -> Result<Checkpoint> {
        let (listing, weight_map) = if dir.join(SINGLE).exists() {
            (dir.join(SINGLE), None)
        } else if dir.join(INDEX).exists() {
            (dir.join(INDEX), Some(weight_map(&dir.join(INDEX))?))
        } else if PICKLED.iter().any(|file| dir.join(file).exists()) {
            bail!(
                "{} holds its weights as pytorch_model.bin; only safetensors are read, use a revision that has {SINGLE}",
                dir.display()
            );
        } else {
            bail!("{} holds neither {SINGLE} nor {INDEX}", dir.display());
        };
        let mut files: Vec<String> = match &weight_map {
            None => vec![SINGLE.to_owned()],
            Some(map) => map.iter().map(|(_, file)| file.clone()).collect(),
        };
        files.sort();
        files.dedup();
        let shards = files
            .iter()
            .map(|file| Shard::open(dir.join(file)))
            .collect::<Result<Vec<_>>>()?;

        let mut places: HashMap<String, (usize, usize)> = HashMap::new();
        for (s, shard) in shards.iter().enumerate() {
            for (t, tensor) in shard.tensors.iter().enumerate() {
                if let Some((other, _)) = places.insert(tensor.name.clone(), (s, t)) {
                    bail!(
                        "tensor `{}` is in both {} and {}",
                        tensor.name,
                        shards[other].path.display(),
                        shard.path.display()
                    );
                }
            }
        }
        for (name, file) in weight_map.iter().flatten() {
            let found = places.get(name).is_some_and(|&(s, _)| files[s] == *file);
            ensure!(
                found,
                "tensor `{name}` is missing from {}, where {INDEX} says it is",
                dir.join(file).display()
            );
        }
        Ok(Checkpoint {
            shards,
            places,
            listing,
        })
    }

    /// Compares the tensors with those the configuration asks for.
    ///
    /// # Errors
    /// Names the first tensor that is missing, has another shape or an unsupported number format, or is not part of
    /// the model, with its file; then how many more there are.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        let mut problems = Vec::new();
        let expected = entries(config);
        for entry in &expected {
            let Some((shard, tensor)) = self.find(&entry.name) else {
                problems.push(format!(
                    "tensor `{}` is missing from {}",
                    entry.name,
                    self.listing.display()
                ));
                continue;
            };
            let file = shard.path.display();
            if tensor.shape != entry.shape {
                problems.push(format!(
                    "tensor `{}` in {file} has shape {:?}, config.json asks for {:?}",
                    entry.name, tensor.shape, entry.shape
                ));
            } else if tensor.dtype.is_none() {
                problems.push(format!(
                    "tensor `{}` in {file} is stored as {}; supported: F32, F16, BF16",
                    entry.name, tensor.dtype_name
                ));
            }
        }
        let known: std::collections::HashSet<&str> =
            expected.iter().map(|entry| entry.name.as_str()).collect();
        for shard in &self.shards {
            for tensor in shard
                .tensors
                .iter()
                .filter(|tensor| !known.contains(tensor.name.as_str()) && !harmless(&tensor.name))
            {
                let file = shard.path.display();
                if tensor.name == HEAD {
                    // Not in `known`, so the head is tied: a stored copy must be one.
                    if self.find(EMBEDDING).is_some_and(|(other, embedding)| {
                        other.bytes_of(embedding) != shard.bytes_of(tensor)
                    }) {
                        problems.push(format!("tensor `{HEAD}` in {file} differs from `{EMBEDDING}` although config.json ties them (`tie_word_embeddings`)"));
                    }
                } else {
                    problems.push(format!(
                        "tensor `{}` in {file} is not part of the model that config.json describes",
                        tensor.name
                    ));
                }
            }
        }
        match problems.len() {
            0 => Ok(()),
            1 => bail!("{}", problems[0]),
            count => bail!("{} (and {} more such problems)", problems[0], count - 1),
        }
    }

    /// A tensor of the model on `device`, matrices in the format that `dtype` asks for.
    pub(crate) fn weight(
        &self,
        name: &str,
        shape: &[usize],
        dtype: WeightDtype,
        device: &Device,
    ) -> Weight {
        let (shard, tensor) = self
            .find(name)
            .expect("`check` has seen every tensor of the model");
        let stored = tensor
            .dtype
            .expect("`check` has seen the number format of every tensor of the model");
        let bytes = shard.bytes_of(tensor);
        if let ([_, _], StoredDtype::Bf16, true) = (shape, stored, dtype != WeightDtype::F32) {
            let values = halves(bytes).map(bf16::from_bits).collect();
            shard.forget(tensor);
            return Weight::from_bf16(values, shape, device);
        }
        let weight = Weight::from_values(decode(bytes, stored), shape, device);
        shard.forget(tensor);
        match dtype {
            WeightDtype::Bf16 => weight.in_bf16(),
            _ => weight,
        }
    }

    /// The one number format of the model's tensors, if it is one.
    pub(crate) fn common_dtype(&self) -> Option<StoredDtype> {
        let mut weights = self
            .shards
            .iter()
            .flat_map(|shard| &shard.tensors)
            .filter(|tensor| !harmless(&tensor.name))
            .map(|tensor| tensor.dtype);
        let first = weights.next()??;
        weights.all(|dtype| dtype == Some(first)).then_some(first)
    }

    /// A tensor and the file it is in.
    pub(crate) fn find(&self, name: &str) -> Option<(&Shard, &Stored)> {
        let &(s, t) = self.places.get(name)?;
        Some((&self.shards[s], &self.shards[s].tensors[t]))
    }
}

impl Shard {
    pub(crate) fn open(path: PathBuf) -> Result<Shard> {
        let bytes = Mapped::open(&path)?;
        let (head, tensors) = parse(&bytes).with_context(|| {
            format!("{} is truncated or not a safetensors file", path.display())
        })?;
        Ok(Shard {
            path,
            bytes,
            head,
            tensors,
        })
    }

    pub(crate) fn bytes_of(&self, tensor: &Stored) -> &[u8] {
        &self.bytes[tensor.range.clone()]
    }

    /// Gives the memory of a tensor's bytes back.
    pub(crate) fn forget(&self, tensor: &Stored) {
        self.bytes.forget(self.bytes_of(tensor));
    }

    /// The size field and the JSON header, as they are in the file.
    pub(crate) fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }
}

/// Format: a little-endian u64 with the length of the JSON header, the header, the tensors' bytes without gaps.
fn parse(bytes: &[u8]) -> Result<(usize, Vec<Stored>)> {
    let field = bytes
        .first_chunk::<8>()
        .context("it has fewer than 8 bytes")?;
    let head = usize::try_from(u64::from_le_bytes(*field))
        .ok()
        .and_then(|length| length.checked_add(8));
    let head = head
        .filter(|&head| head <= bytes.len())
        .with_context(|| format!("its header does not fit into its {} bytes", bytes.len()))?;
    let header: Value =
        serde_json::from_slice(&bytes[8..head]).context("its header is not JSON")?;
    let header = header
        .as_object()
        .context("its header is not a JSON object")?;

    let mut tensors = Vec::with_capacity(header.len());
    for (name, info) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let sizes = |key: &str| -> Option<Vec<usize>> {
            info.get(key)?
                .as_array()?
                .iter()
                .map(|size| usize::try_from(size.as_u64()?).ok())
                .collect()
        };
        let stored = || -> Option<Stored> {
            let dtype_name = info.get("dtype")?.as_str()?.to_owned();
            let shape = sizes("shape")?;
            let [from, to] = sizes("data_offsets")?.try_into().ok()?;
            let (width, dtype) = dtype_of(&dtype_name)?;
            let length = shape
                .iter()
                .try_fold(width, |product, size| product.checked_mul(*size))?;
            let range = head.checked_add(from)?..head.checked_add(to)?;
            (range.len() == length && from <= to).then_some(Stored {
                name: name.clone(),
                dtype_name,
                dtype,
                shape,
                range,
            })
        };
        let stored =
            stored().with_context(|| format!("the entry of tensor `{name}` is damaged: {info}"))?;
        ensure!(
            stored.range.end <= bytes.len(),
            "tensor `{name}` ends at byte {}, the file has {}",
            stored.range.end,
            bytes.len()
        );
        tensors.push(stored);
    }
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut end = head;
    for tensor in &tensors {
        ensure!(
            tensor.range.start == end,
            "tensor `{}` starts at byte {}, expected {end}",
            tensor.name,
            tensor.range.start
        );
        end = tensor.range.end;
    }
    ensure!(
        end == bytes.len(),
        "its tensors end at byte {end}, the file has {}",
        bytes.len()
    );
    Ok((head, tensors))
}

/// Bytes per value, and the format if weights may have it.
fn dtype_of(name: &str) -> Option<(usize, Option<StoredDtype>)> {
    Some(match name {
        "F32" => (4, Some(StoredDtype::F32)),
        "F16" => (2, Some(StoredDtype::F16)),
        "BF16" => (2, Some(StoredDtype::Bf16)),
        "F64" | "I64" | "U64" => (8, None),
        "I32" | "U32" => (4, None),
        "I16" | "U16" => (2, None),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => (1, None),
        _ => return None,
    })
}

pub(crate) fn decode(bytes: &[u8], dtype: StoredDtype) -> Vec<f32> {
    match dtype {
        StoredDtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect(),
        StoredDtype::F16 => halves(bytes)
            .map(|bits| f16::from_bits(bits).to_f32())
            .collect(),
        StoredDtype::Bf16 => halves(bytes)
            .map(|bits| bf16::from_bits(bits).to_f32())
            .collect(),
    }
}

/// Numbers of two bytes as bits.
fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    pairs.map(|pair| u16::from_le_bytes(*pair))
}

/// `weight_map` of the index: (tensor, file), in the file's order.
fn weight_map(path: &Path) -> Result<Vec<(String, String)>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not valid JSON", path.display()))?;
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .with_context(|| format!("{} has no `weight_map`", path.display()))?;
    map.iter()
        .map(|(name, file)| {
            let file = file.as_str().with_context(|| {
                format!(
                    "`weight_map` of {} gives no file for tensor `{name}`",
                    path.display()
                )
            })?;
            // A path here could lead out of the directory.
            ensure!(
                Path::new(file).file_name().is_some_and(|only| only == file),
                "`weight_map` of {} names `{file}`, which is not a plain file name",
                path.display()
            );
            Ok((name.clone(), file.to_owned()))
        })
        .collect()
}
