//! Rotary tables: of the cases, and for the published settings of the full-size models.

use serde_json::Value;
use sysgen_model::{ModelConfig, Rope};

use crate::case::{assert_close, assert_relative, cases, root};

/// Inverse frequencies against f64, relative.
const FREQUENCY: f64 = 1e-12;
/// Inverse frequencies against f32, relative.
const FREQUENCY_F32: f64 = 2e-6;
/// cos and sin of the cases, computed by the reference from f32 angles at small positions.
const TABLE: f32 = 1e-5;
/// cos at positions up to 100 000, against f64.
const COS: f64 = 1e-9;

#[test]
fn golden_rope_tables_of_the_cases() {
    for case in cases() {
        let rope = ModelConfig::from_directory(&case.dir).unwrap().rope;
        for (ours, reference) in rope
            .inverse_frequencies
            .iter()
            .zip(case.floats("rope.inv_freq"))
        {
            assert_relative(&case.name, *ours, f64::from(reference), FREQUENCY_F32);
        }
        let (cos, sin) = (case.floats("rope.cos"), case.floats("rope.sin"));
        let length = case.ids("a.input_ids").len();
        let half = rope.rotary_dim / 2;
        assert_eq!(cos.len(), length * 2 * half, "{}", case.name);
        for position in 0..length {
            let angles: Vec<f64> = rope
                .frequencies_for(length)
                .iter()
                .map(|f| position as f64 * f)
                .collect();
            let ours = |f: fn(f64) -> f64| -> Vec<f32> {
                angles
                    .iter()
                    .map(|angle| (f(*angle) * rope.attention_factor) as f32)
                    .collect()
            };
            // Both halves of a row are equal in the reference.
            for from in [2 * position * half, (2 * position + 1) * half] {
                assert_close(
                    &format!("{}: cos", case.name),
                    &ours(f64::cos),
                    &cos[from..from + half],
                    TABLE,
                );
                assert_close(
                    &format!("{}: sin", case.name),
                    &ours(f64::sin),
                    &sin[from..from + half],
                    TABLE,
                );
            }
        }
    }
}

#[test]
fn golden_rope_of_the_published_models() {
    let path = root().join("rope/rope.json");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {} is not there", path.display());
        return;
    };
    let json: Value = serde_json::from_slice(&bytes).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|number| number.as_f64().unwrap())
            .collect()
    };
    for (name, model) in json["models"].as_object().unwrap() {
        let config = &model["config"];
        let head_dim = model["head_dim"].as_u64().unwrap() as usize;
        let longest = config["max_position_embeddings"].as_u64().unwrap() as usize;
        let rope = Rope::from_json(config, head_dim, longest).unwrap();
        let exact = numbers(&model["inv_freq_f64"]);
        assert_eq!(rope.inverse_frequencies.len(), exact.len(), "{name}");
        for (ours, reference) in rope.inverse_frequencies.iter().zip(&exact) {
            assert_relative(name, *ours, *reference, FREQUENCY);
        }
        for (ours, reference) in rope
            .inverse_frequencies
            .iter()
            .zip(numbers(&model["inv_freq_f32"]))
        {
            assert_relative(name, *ours, reference, FREQUENCY_F32);
        }
        let columns = numbers(&model["cos_columns"]);
        for (position, cosines) in model["cos_f64_first_last_mid"].as_object().unwrap() {
            let position: f64 = position.parse().unwrap();
            for (column, reference) in columns.iter().zip(numbers(cosines)) {
                let ours = (position * rope.inverse_frequencies[*column as usize]).cos();
                assert!(
                    (ours - reference).abs() < COS,
                    "{name}: position {position}, column {column}: {ours}, reference {reference}"
                );
            }
        }
    }
}
