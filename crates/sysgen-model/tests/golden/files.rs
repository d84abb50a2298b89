//! What is loaded can be written back byte for byte, and what is written by us can be read by others and by us.

use std::path::Path;

use safetensors::SafeTensors;
use sysgen_model::{Decoder, Device, ExportDtype, StoredDtype};

use crate::case::{cases, values};

/// The files a model directory is made of.
fn model_files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| {
        name.starts_with("model") || name == "config.json" || name == "generation_config.json"
    });
    names.sort();
    names
}

#[test]
fn golden_files_come_back_byte_for_byte() {
    for case in cases() {
        let out = tempfile::tempdir().unwrap();
        case.decoder()
            .save(out.path(), ExportDtype::Auto, Some(&case.dir))
            .unwrap();
        assert_eq!(
            model_files(out.path()),
            model_files(&case.dir),
            "{}",
            case.name
        );
        for name in model_files(&case.dir) {
            let (ours, source) = (
                std::fs::read(out.path().join(&name)).unwrap(),
                std::fs::read(case.dir.join(&name)).unwrap(),
            );
            assert!(ours == source, "{}: {name} differs", case.name);
        }
        assert_eq!(
            std::fs::read_dir(out.path()).unwrap().count(),
            model_files(&case.dir).len(),
            "{}: temporary files left",
            case.name
        );
    }
}

#[test]
fn golden_changed_values_keep_the_layout_of_the_source() {
    for case in cases() {
        let (config, mut parameters) = case.decoder().into_parameters();
        let first = parameters[0].tensor.to_vec();
        let shape = parameters[0].tensor.shape();
        let halved = sysgen_model::Weight::from_values(
            first.iter().map(|value| value * 0.5).collect(),
            &shape,
            &Device::flex(),
        );
        parameters[0].tensor = halved;
        let out = tempfile::tempdir().unwrap();
        Decoder::from_parameters(config, parameters)
            .save(out.path(), ExportDtype::Auto, Some(&case.dir))
            .unwrap();
        let again = Decoder::load(out.path(), &Device::flex())
            .unwrap()
            .parameters();
        for (after, before) in again.iter().zip(case.decoder().parameters()) {
            let factor = if after.name == before.name && after.name == "model.embed_tokens.weight" {
                0.5
            } else {
                1.0
            };
            let expected: Vec<f32> = before
                .tensor
                .to_vec()
                .iter()
                .map(|value| value * factor)
                .collect();
            assert_eq!(
                after.tensor.to_vec(),
                expected,
                "{}: {}",
                case.name,
                after.name
            );
        }
    }
}

#[test]
fn golden_a_layout_of_our_own_is_read_by_the_safetensors_library_and_by_us() {
    for case in cases() {
        let decoder = case.decoder();
        let out = tempfile::tempdir().unwrap();
        decoder
            .save(out.path(), ExportDtype::Of(StoredDtype::F32), None)
            .unwrap();
        let bytes = std::fs::read(out.path().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), decoder.parameters().len(), "{}", case.name);
        for parameter in decoder.parameters() {
            let tensor = file.tensor(&parameter.name).unwrap();
            assert_eq!(tensor.shape(), parameter.tensor.shape());
            let values: Vec<f32> = tensor
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
            assert_eq!(
                values,
                parameter.tensor.to_vec(),
                "{}: {}",
                case.name,
                parameter.name
            );
        }
        let again = Decoder::load(out.path(), &Device::flex()).unwrap();
        assert_eq!(again.config.stored_dtype, StoredDtype::F32);
        let tokens = case.tokens("a");
        assert_eq!(
            values(again.hidden(&tokens)),
            values(decoder.hidden(&tokens)),
            "{}",
            case.name
        );
    }
}
