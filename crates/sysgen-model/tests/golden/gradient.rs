//! Gradients of the mean loss, through the same path that training takes.

use std::collections::BTreeMap;

use sysgen_model::Pass;

use crate::case::{Case, GRADIENT, GRADIENT_NORM, assert_close, assert_relative, cases};

fn gradients(case: &Case, batch: &str, gradient_checkpointing: bool) -> BTreeMap<String, Vec<f32>> {
    let decoder = case.decoder();
    let count = case.supervised(batch).1.len();
    let softcap = decoder.config.final_softcap;
    let mut all = BTreeMap::new();
    let names = decoder.parameters();
    decoder.backward(
        &case.tokens(batch),
        Pass {
            gradient_checkpointing,
            ..Pass::default()
        },
        |hidden, head| {
            let losses = case.losses(batch, hidden, head, softcap);
            losses.sum().div_scalar(count as f64)
        },
        |place, gradient| {
            let before = all.insert(names[place].name.clone(), gradient.to_vec());
            assert!(before.is_none(), "{}: two gradients", names[place].name);
        },
    );
    all
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn golden_gradients_of_padded_and_packed_rows() {
    for case in cases() {
        for batch in ["batch_right", "packed"] {
            let ours = gradients(case, batch, false);
            let norms = case
                .json
                .pointer("/batch_right/grad_norm_per_param")
                .unwrap()
                .as_object()
                .unwrap();
            let names: Vec<&String> = ours.keys().collect();
            let mut expected: Vec<&String> = norms.keys().collect();
            expected.sort();
            assert_eq!(names, expected, "{}: names", case.name);
            for (name, reference) in norms {
                assert_relative(
                    &format!("{}: {batch}: {name}", case.name),
                    norm(&ours[name]),
                    reference.as_f64().unwrap(),
                    GRADIENT_NORM,
                );
            }
            let global = ours
                .values()
                .map(|values| norm(values).powi(2))
                .sum::<f64>()
                .sqrt();
            assert_relative(
                &format!("{}: {batch}: global norm", case.name),
                global,
                case.number("/batch_right/grad_norm"),
                GRADIENT_NORM,
            );
            for name in case
                .json
                .pointer("/batch_right/grads_saved")
                .unwrap()
                .as_array()
                .unwrap()
            {
                let name = name.as_str().unwrap();
                assert_close(
                    &format!("{}: {batch}: {name}", case.name),
                    &ours[name],
                    &case.floats(&format!("grad.{name}")),
                    GRADIENT,
                );
            }
        }
    }
}

#[test]
fn golden_packed_gradients_equal_those_of_separate_rows() {
    for case in cases() {
        let (packed, padded) = (
            gradients(case, "packed", false),
            gradients(case, "batch_right", false),
        );
        for (name, values) in &packed {
            assert_close(
                &format!("{}: {name}", case.name),
                values,
                &padded[name],
                GRADIENT,
            );
        }
    }
}

#[test]
fn golden_recomputed_gradients_are_the_same_bits() {
    for case in cases() {
        for batch in ["batch_right", "packed"] {
            let (kept, computed_again) =
                (gradients(case, batch, false), gradients(case, batch, true));
            assert!(kept == computed_again, "{}: {batch}", case.name);
        }
    }
}
