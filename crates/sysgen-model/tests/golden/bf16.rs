//! A model whose files are in bf16 can keep its matrices so: half the memory, the bits of its f32 copy. One that only
//! answers can have them packed: the same bits again.

use sysgen_model::{
    Decoder, Device, ExportDtype, KvCache, Lora, Pass, Run, StoredDtype, Weight, WeightDtype,
};

use crate::case::{Case, cases, values};

/// The case's model, stored in bf16 and loaded in both formats.
fn both(case: &Case) -> [Decoder; 2] {
    let dir = tempfile::tempdir().unwrap();
    let stored = ExportDtype::Of(StoredDtype::Bf16);
    case.decoder().save(dir.path(), stored, None).unwrap();
    [WeightDtype::F32, WeightDtype::Auto]
        .map(|dtype| Decoder::load_as(dir.path(), &Device::flex(), dtype).unwrap())
}

fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differing = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differing.count(), 0, "{what}");
}

/// Loss and gradients of a packed row.
fn pass(case: &Case, decoder: &Decoder) -> Vec<Vec<f32>> {
    let softcap = decoder.config.final_softcap;
    let settings = Pass {
        gradient_checkpointing: true,
        dropout_seed: 5,
    };
    let mut all = vec![Vec::new()];
    let loss = decoder.backward(
        &case.tokens("packed"),
        settings,
        |hidden, head| case.losses("packed", hidden, head, softcap).sum(),
        |_, gradient: Weight| {
            assert!(!gradient.is_bf16());
            all.push(gradient.to_vec());
        },
    );
    all[0] = values(loss);
    all
}

#[test]
fn golden_models_kept_in_bf16_have_the_bits_of_their_f32_copies() {
    for case in cases() {
        let [wide, kept] = both(case);
        for (wide, kept) in wide.parameters().iter().zip(kept.parameters()) {
            let matrix = kept.tensor.shape().len() == 2;
            assert_eq!(
                kept.tensor.is_bf16(),
                matrix,
                "{}: {}",
                case.name,
                kept.name
            );
            assert_same_bits(&kept.name, &wide.tensor.to_vec(), &kept.tensor.to_vec());
        }
        let ids = case.ids("a.input_ids");
        let logits = |decoder: &Decoder| {
            let whole = decoder.logits(decoder.hidden(&case.tokens("a")));
            let blocks: Vec<u32> = (0..ids.len().div_ceil(16) as u32).collect();
            let mut cache = KvCache::new(decoder, blocks.len(), 16);
            let runs = [Run {
                blocks: &blocks,
                start: 0,
                ids: &ids,
            }];
            let cached = decoder.logits(decoder.forward_cached_all(&runs, &mut cache));
            [values(whole), values(cached)].concat()
        };
        assert_same_bits(&case.name, &logits(&wide), &logits(&kept));
        for decoder in [&wide, &kept] {
            let packed = decoder.clone().pack();
            assert_same_bits(&case.name, &logits(decoder), &logits(&packed));
            for (plain, packed) in decoder.parameters().iter().zip(packed.parameters()) {
                assert_eq!(plain.name, packed.name);
                assert_same_bits(&plain.name, &plain.tensor.to_vec(), &packed.tensor.to_vec());
            }
        }
        // Trained themselves, their gradients are those of the f32 copy, too.
        let gradients = |decoder: &Decoder| pass(case, decoder).concat();
        assert_same_bits(&case.name, &gradients(&wide), &gradients(&kept));
    }
}

#[test]
fn golden_adapters_beside_a_base_kept_in_bf16_have_the_bits_of_one_in_f32() {
    for case in cases() {
        let [wide, kept] = both(case);
        for (dora, dropout) in [(false, 0.0), (false, 0.3), (true, 0.0)] {
            let with = |decoder: &Decoder| {
                let lora = Lora {
                    rank: 4,
                    alpha: 8.0,
                    dropout,
                    target_modules: Vec::new(),
                    rslora: false,
                    dora,
                };
                let (frozen, mut parameters) = decoder.clone().with_lora(lora, 3).unwrap().split();
                for parameter in &mut parameters {
                    // B is zero before the first step, and then A has no gradient.
                    let shape = parameter.tensor.shape();
                    let values = (0..parameter.tensor.len()).map(|i| (i % 7) as f32 / 50.0 + 0.1);
                    parameter.tensor =
                        Weight::from_values(values.collect(), &shape, &Device::flex());
                }
                let decoder = frozen.join(parameters);
                let merged = decoder.clone().merged().parameters();
                let merged = merged.iter().flat_map(|p| p.tensor.to_vec()).collect();
                [pass(case, &decoder), vec![merged]].concat().concat()
            };
            let what = format!("{}: dora {dora}, dropout {dropout}", case.name);
            assert_same_bits(&what, &with(&wide), &with(&kept));
        }
    }
}

#[test]
fn rounding_to_bf16_takes_the_nearest() {
    for case in cases() {
        let [wide, _] = both(case);
        let rounded = case.decoder().in_bf16();
        for (a, b) in wide.parameters().iter().zip(rounded.parameters()) {
            if b.tensor.shape().len() == 2 {
                assert!(b.tensor.is_bf16());
                assert_same_bits(&a.name, &a.tensor.to_vec(), &b.tensor.to_vec());
            }
        }
    }
}
