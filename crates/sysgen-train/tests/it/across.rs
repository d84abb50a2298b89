//! Distillation from a teacher of another tokenizer: vocabularies compared, two tokenizations of a text cut into common
//! spans, and their distance against TRL's `ULDLoss` (`kd/spans.*` of the golden numbers, by `make/gen_kd_spans.py`).

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sysgen_core::Message;
use sysgen_core::config::{CrossTokenizer, DistillSection};
use sysgen_model::{Decoder, Device, Tokens};
use sysgen_ops::{Distillation, Divergence, Teacher, linear_distillation};
use sysgen_train::align::{Aligned, align, common_spans};
use sysgen_train::distill::{Vocabularies, compare};
use sysgen_train::rows::Row;

use crate::fixture;
use crate::golden::{close, root};
use crate::taught::{World, save, trainer};

/// Absolute, on the sum of a text's distances and on its gradient by a logit.
const SPANS: f64 = 1e-6;

/// What TRL makes of some texts; `None` where it is absent.
fn golden() -> Option<(Value, Vec<u8>)> {
    let folder = root().join("kd");
    let (Ok(json), Ok(bytes)) = (
        std::fs::read(folder.join("spans.json")),
        std::fs::read(folder.join("spans.safetensors")),
    ) else {
        eprintln!("SKIPPED: {} has no spans", folder.display());
        return None;
    };
    Some((serde_json::from_slice(&json).unwrap(), bytes))
}

fn numbers(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The common spans of a text of the golden file.
fn spans_of(text: &Value) -> Vec<(Range<usize>, Range<usize>)> {
    let ends =
        |side: &str| -> Vec<Option<usize>> { numbers(&text[side]).into_iter().map(Some).collect() };
    common_spans(&ends("student_ends"), &ends("teacher_ends"))
}

#[test]
fn golden_texts_fall_into_the_spans_of_trl() {
    let Some((json, _)) = golden() else { return };
    for text in json["texts"].as_array().unwrap() {
        let found = spans_of(text);
        let expected = |side: &str| -> Vec<Vec<usize>> {
            text[side].as_array().unwrap().iter().map(numbers).collect()
        };
        let (student, teacher) = (expected("student_spans"), expected("teacher_spans"));
        let ours: Vec<Vec<usize>> = found.iter().map(|s| s.0.clone().collect()).collect();
        let theirs: Vec<Vec<usize>> = found.iter().map(|s| s.1.clone().collect()).collect();
        assert_eq!((ours, theirs), (student, teacher));
    }
}

#[test]
fn golden_spans_have_the_distance_and_the_gradient_of_trl() {
    let Some((json, bytes)) = golden() else {
        return;
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let device = Device::flex();
    let matrix = |name: &str| -> Tensor<2> {
        let view = file.tensor(name).unwrap();
        let (values, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &device)
    };
    // With a head that changes nothing, the hidden states are the logits.
    let head = |logits: &Tensor<2>| Tensor::<2>::eye(logits.dims()[1], &device);
    for (number, text) in json["texts"].as_array().unwrap().iter().enumerate() {
        for expected in text["losses"].as_array().unwrap() {
            let temperature = expected["temperature"].as_f64().unwrap() as f32;
            let theirs = matrix(&format!("{number}.teacher_logits"));
            let teacher = Teacher::Spans {
                head: head(&theirs),
                hidden: theirs,
                softcap: None,
                targets: ids(&text["teacher_ids"]),
                spans: Arc::new(spans_of(text)),
            };
            let settings = Distillation {
                divergence: Divergence::Uld,
                temperature,
                weight: 1.0,
                cross_entropy_weight: 0.0,
                softcap: None,
            };
            let ours = matrix(&format!("{number}.student_logits"));
            let head = head(&ours).autodiff();
            let ours = ours.autodiff().require_grad();
            let targets = ids(&text["student_ids"]);
            let losses = linear_distillation(ours.clone(), head, &targets, &teacher, settings);
            let gradients = losses.clone().sum().backward();
            let sum: f64 = losses
                .try_into_vec_as::<f32>()
                .unwrap()
                .iter()
                .map(|&x| f64::from(x))
                .sum();
            let difference = sum - expected["sum"].as_f64().unwrap();
            let name = format!("text {number}, temperature {temperature}");
            assert!(difference.abs() <= SPANS, "{name}: {difference:e}");
            let gradient = ours.grad(&gradients).unwrap();
            let stored = matrix(&format!("{number}.T{temperature}.grad_student_logits"));
            let [gradient, stored] =
                [gradient, stored].map(|x| x.try_into_vec_as::<f32>().unwrap());
            let difference = f64::from(close(&gradient, &stored));
            assert!(difference <= SPANS, "{name}: gradient {difference:e}");
        }
    }
}

/// Changes the fixture's tokenizer.
fn change_tokenizer(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}

/// A folder with more tokens than the fixture's, each of two that it has.
pub(crate) fn folder_with_merges(folder: &Path, merges: &[[&str; 2]]) {
    fixture::model_folder_with(folder, fixture::TEMPLATE, fixture::VOCAB + merges.len());
    change_tokenizer(folder, |json| {
        for (number, pair) in merges.iter().enumerate() {
            json["model"]["vocab"][pair.concat()] = json!(fixture::VOCAB + number);
        }
        json["model"]["merges"] = json!(merges);
    });
}

#[test]
fn the_vocabularies_are_compared_by_what_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, rows: usize| {
        let path = dir.path().join(name);
        fixture::model_folder_with(&path, fixture::TEMPLATE, rows);
        path
    };
    let one = fixture::chat(&folder("one", fixture::VOCAB));
    let foreign = dir.path().join("foreign");
    folder_with_merges(&foreign, &[["r", "e"]]);
    let foreign = fixture::chat(&foreign);
    let sizes = [fixture::VOCAB; 2];
    assert_eq!(compare(&one, &one, sizes, ["text"]), Vocabularies::Same);
    let padded = compare(&one, &one, [fixture::VOCAB, fixture::VOCAB + 12], ["text"]);
    assert!(matches!(padded, Vocabularies::Padded { .. }));
    let different = compare(&one, &foreign, sizes, ["text"]);
    assert!(
        matches!(different, Vocabularies::Different { .. }),
        "{different}"
    );
}

/// How many tokens each span has on either side, by the row's id; the last one is the stop token's.
fn shapes(aligned: &HashMap<String, Aligned>, id: &str) -> Vec<(usize, usize)> {
    let spans = aligned[id].spans.iter();
    spans
        .map(|span| (span.learnt.len(), span.teacher.len()))
        .collect()
}

#[test]
fn an_answer_falls_into_spans_that_are_whole_tokens_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let (student, teacher) = (dir.path().join("student"), dir.path().join("teacher"));
    folder_with_merges(&student, &[["e", "e"], ["a", "n"]]);
    // The bytes of `é` as the vocabulary spells them.
    folder_with_merges(&teacher, &[["r", "e"], ["e", "n"], ["\u{c3}", "\u{a9}"]]);
    let (student, teacher) = (fixture::chat(&student), fixture::chat(&teacher));
    for (answer, expected) in [
        // g|r|ee|n beside g|re|en
        ("green", vec![(1, 1), (3, 2), (1, 1)]),
        // r|e|d beside re|d, twice
        ("redred", vec![(2, 1), (1, 1), (2, 1), (1, 1), (1, 1)]),
        ("a", vec![(1, 1), (1, 1)]),
        // Two bytes beside one token; between the four bytes of an emoji nothing can be cut.
        ("é🙂", vec![(2, 1), (4, 4), (1, 1)]),
    ] {
        let messages = vec![Message::user("Say it."), Message::assistant(answer)];
        let rows = [Row::new("row", messages)];
        let examples = fixture::examples(&student, &rows);
        let aligned = align(&student, &teacher, &rows, &examples).unwrap();
        assert_eq!(shapes(&aligned, "row"), expected, "{answer}");
        assert_eq!(aligned["row"].count(), examples[0].supervised());
    }
}

#[test]
fn text_that_a_tokenizer_changes_is_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (student, teacher) = (dir.path().join("student"), dir.path().join("teacher"));
    fixture::model_folder(&student);
    folder_with_merges(&teacher, &[["r", "e"]]);
    change_tokenizer(&teacher, |json| {
        json["normalizer"] = json!({"type": "Lowercase"})
    });
    let (student, teacher) = (fixture::chat(&student), fixture::chat(&teacher));
    let messages = vec![Message::user("Say it."), Message::assistant("RED red")];
    let rows = [Row::new("row", messages)];
    let examples = fixture::examples(&student, &rows);
    let aligned = align(&student, &teacher, &rows, &examples).unwrap();
    // The space, `red` and the stop token.
    assert_eq!(shapes(&aligned, "row"), [(1, 1), (2, 1), (1, 1), (1, 1)]);
}

/// Tokens that the words of the rows have.
pub(crate) const MERGES: [[&str; 2]; 2] = [["r", "e"], ["e", "n"]];

/// A world whose teacher has another tokenizer, and settings that learn from it alone.
fn foreign_world(merges: &[[&str; 2]]) -> (World, DistillSection) {
    let world = World::new();
    let teacher = world.dir.path().join("teacher");
    std::fs::remove_dir_all(&teacher).unwrap();
    folder_with_merges(&teacher, merges);
    save(&teacher, 2);
    let distill = DistillSection {
        teacher,
        alpha: 1.0,
        cross_tokenizer: CrossTokenizer::Uld,
        temperature: 1.5,
        ..DistillSection::default()
    };
    (world, distill)
}

#[test]
fn a_teacher_of_another_tokenizer_is_refused_unless_asked_for() {
    let (world, uld) = foreign_world(&MERGES);
    let refused = DistillSection {
        cross_tokenizer: CrossTokenizer::Refuse,
        ..uld.clone()
    };
    let said = format!("{:#}", world.distiller(&refused).err().unwrap());
    assert!(said.contains("cross_tokenizer = \"uld\""), "{said}");
    assert!(world.distiller(&uld).is_ok());
}

#[test]
fn the_teachers_tokenizer_is_read_once() {
    let (world, uld) = foreign_world(&MERGES);
    let teacher = world.teacher(&uld);
    assert!(matches!(
        teacher.vocabularies,
        Vocabularies::Different { .. }
    ));
    std::fs::remove_file(uld.teacher.join("tokenizer.json")).unwrap();
    assert!(world.distiller_of(&uld, &teacher).is_ok());
}

#[test]
fn a_student_comes_nearer_to_a_teacher_of_another_tokenizer() {
    // Of tokens the rows do not have, every span is one token on both sides: their distributions can become the same. Where
    // a side has more tokens, what it could have written instead of the first ones is not in its distribution.
    for (merges, share) in [(vec![["z", "z"]], 0.7), (MERGES.to_vec(), 1.0)] {
        let (world, uld) = foreign_world(&merges);
        let uld = DistillSection {
            temperature: 1.0,
            ..uld
        };
        let distiller = world.distiller(&uld).unwrap();
        let mut trainer = trainer(world.decoder("student"), Some(distiller));
        let losses: Vec<f64> = (0..30)
            .map(|_| trainer.step(&[world.batch()], 5e-3).loss)
            .collect();
        assert!(losses[29] < share * losses[0], "{merges:?}: {losses:?}");
    }
}

/// The softmax of the logits at every position of a text, in f64.
fn probabilities(decoder: &Decoder, ids: &[u32], temperature: f64) -> Vec<Vec<f64>> {
    let logits = decoder.logits(decoder.hidden(&Tokens::padded(&[ids], 0)));
    let vocab = decoder.config.vocab_size;
    let logits = logits.try_into_vec_as::<f32>().unwrap();
    let rows = logits.chunks_exact(vocab).map(|row| {
        let all: Vec<f64> = row
            .iter()
            .map(|&x| (f64::from(x) / temperature).exp())
            .collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(|x| x / sum).collect()
    });
    rows.collect()
}

#[test]
fn the_loss_of_packed_rows_is_the_mean_over_learnt_tokens_of_their_spans_distances() {
    let (world, uld) = foreign_world(&MERGES);
    let foreign = fixture::chat(&uld.teacher);
    let aligned = align(&world.chat, &foreign, &world.rows, &world.examples).unwrap();
    let (student, teacher) = (world.decoder("student"), world.decoder("teacher"));
    let (mut sum, mut learnt, mut of_several) = (0.0, 0, 0);
    for example in &world.examples {
        let row = &aligned[&example.id];
        let ours = probabilities(&student, &example.ids, uld.temperature);
        let theirs = probabilities(&teacher, &row.ids, uld.temperature);
        let learnt_at: Vec<usize> = (1..example.ids.len())
            .filter(|&at| example.learn[at])
            .collect();
        learnt += learnt_at.len();
        let merged = |rows: &[Vec<f64>], ids: &[u32], tokens: &[usize]| -> Vec<f64> {
            let (last, before) = tokens.split_last().unwrap();
            let before: f64 = before
                .iter()
                .map(|&at| rows[at - 1][ids[at] as usize])
                .product();
            let mut all: Vec<f64> = rows[last - 1].iter().map(|p| before * p).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            all.resize(fixture::VOCAB + 2, 0.0);
            all
        };
        for span in &row.spans {
            let q = merged(&ours, &example.ids, &learnt_at[span.learnt.clone()]);
            let p = merged(&theirs, &row.ids, &span.teacher.clone().collect::<Vec<_>>());
            sum += q.iter().zip(&p).map(|(q, p)| (q - p).abs()).sum::<f64>();
            of_several += usize::from(span.learnt.len() > 1 || span.teacher.len() > 1);
        }
    }
    assert!(of_several >= 4, "{of_several} spans of several tokens");
    let report = world.step(world.distiller(&uld).unwrap());
    let expected = sum / learnt as f64;
    assert!(
        (report.loss - expected).abs() < 1e-5,
        "{} {expected}",
        report.loss
    );
}

#[test]
fn rows_that_the_teacher_cannot_read_are_learnt_from_the_data_alone() {
    let (world, uld) = foreign_world(&MERGES);
    let refuse = "{% for message in messages %}{% if 'Say ' in message['content'] %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
    change_template(&uld.teacher, &format!("{refuse}{}", fixture::TEMPLATE));
    let uld = DistillSection { alpha: 0.25, ..uld };
    let report = world.step(world.distiller(&uld).unwrap());
    let plain = trainer(world.decoder("student"), None).step(&[world.batch()], 1e-3);
    assert!(
        (report.loss - 0.75 * plain.loss).abs() < 1e-6,
        "{report:?} {plain:?}"
    );
}

fn change_template(folder: &Path, template: &str) {
    let path = folder.join("tokenizer_config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["chat_template"] = json!(template);
    std::fs::write(&path, json.to_string()).unwrap();
}
