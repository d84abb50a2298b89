//! Token ids that another program wrote into a safetensors file, so that both can be measured on the same work.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::checkpoint::Shard;

/// A tensor of token ids on the host, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// The ids.
    pub ids: Vec<u32>,
}

/// Reads the tensor `name` (I64 or I32) of a safetensors file.
///
/// # Errors
/// The file cannot be read, has no such tensor, or the tensor holds something else than token ids; the message names the
/// file, the tensor, and the tensors that are there.
pub fn read_ids(path: &Path, name: &str) -> Result<Ids> {
    let file = Shard::open(path.to_path_buf())?;
    let Some(tensor) = file.tensors.iter().find(|tensor| tensor.name == name) else {
        let names: Vec<&str> = file.tensors.iter().map(|t| t.name.as_str()).collect();
        bail!(
            "{} has no tensor `{name}`; it has {}",
            path.display(),
            names.join(", ")
        );
    };
    let bytes = file.bytes_of(tensor);
    let numbers: Vec<i64> = match tensor.dtype_name.as_str() {
        "I64" => {
            let words = bytes.as_chunks::<8>().0.iter();
            words.map(|word| i64::from_le_bytes(*word)).collect()
        }
        "I32" => {
            let words = bytes.as_chunks::<4>().0.iter();
            words
                .map(|word| i64::from(i32::from_le_bytes(*word)))
                .collect()
        }
        other => bail!(
            "tensor `{name}` in {} is stored as {other}; token ids are I64 or I32",
            path.display()
        ),
    };
    let ids = numbers
        .into_iter()
        .map(u32::try_from)
        .collect::<Result<_, _>>();
    Ok(Ids {
        shape: tensor.shape.clone(),
        ids: ids.with_context(|| {
            format!(
                "tensor `{name}` in {} holds numbers that are no token ids",
                path.display()
            )
        })?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_everything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inputs.safetensors");
        let header = r#"{"ids":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]},
            "low":{"dtype":"I32","shape":[1],"data_offsets":[16,20]},
            "x":{"dtype":"F32","shape":[1],"data_offsets":[20,24]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        for id in [3_i64, 31999] {
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes.extend_from_slice(&(-1_i32).to_le_bytes());
        bytes.extend_from_slice(&1_f32.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();

        let ids = read_ids(&path, "ids").unwrap();
        assert_eq!((ids.shape, ids.ids), (vec![1, 2], vec![3, 31999]));
        for (name, expected) in [
            ("low", "no token ids"),
            ("x", "F32"),
            ("y", "it has ids, low, x"),
        ] {
            let message = format!("{:#}", read_ids(&path, name).unwrap_err());
            assert!(
                message.contains(expected) && message.contains("inputs.safetensors"),
                "{message}"
            );
        }
    }
}
