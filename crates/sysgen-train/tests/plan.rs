//! What `plan` says a step needs, beside what the process was seen to hold: a series of small models, methods and settings.
//! `BENCHMARKS.md` has the table. Memory of a process is its own and depends on no other's load.
#![allow(clippy::unwrap_used)]

#[path = "it/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use sysgen_core::config::Optim;
use sysgen_model::{Decoder, Device, ExportDtype, Lora, ModelConfig, StoredDtype};
use sysgen_ops::AdamW;
use sysgen_train::batch::Batch;
use sysgen_train::method::check_merge;
use sysgen_train::optim::Optimizer;
use sysgen_train::parameters::parameters;
use sysgen_train::plan::export;
use sysgen_train::trainer::Trainer;
use tempfile::TempDir;

/// Counts the bytes that are held, to the byte, where a process's own count has what the allocator keeps.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
/// Counting is for one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Measured by planned, at least and at most.
const BAND: (f64, f64) = (0.84, 1.18);

/// The shape of a model of about 34 million parameters.
fn shape(changes: Value, stored: StoredDtype) -> ModelConfig {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16384, "hidden_size": 512,
        "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2
    });
    let word = match stored {
        StoredDtype::Bf16 => "bfloat16",
        _ => "float32",
    };
    config["torch_dtype"] = json!(word);
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    ModelConfig::from_json(&config).unwrap()
}

/// A model of that shape in a number format.
fn model(dir: &Path, changes: Value, stored: StoredDtype) -> PathBuf {
    fixture::model_folder(dir);
    let random = Decoder::random(shape(changes, stored), 1, &Device::flex());
    random.save(dir, ExportDtype::Of(stored), None).unwrap();
    dir.to_path_buf()
}

/// `plan --measure` on a model, with settings; bytes as planned and as measured.
fn plan(dir: &Path, model: &Path, sets: &[&str]) -> (u64, u64) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    // Every thread has its own buffers: two of them on any machine.
    program.env("RAYON_NUM_THREADS", "2");
    program.args(["plan", "--measure", "--json", "--config"]);
    program.arg(dir.join("plan.toml"));
    program.args(["--set", &format!("model.path={}", model.display())]);
    for set in sets {
        program.args(["--set", set]);
    }
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sets:?}: {said}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = |key: &str| {
        json[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key}: {json}"))
    };
    (bytes("total_bytes"), bytes("measured_bytes"))
}

fn world() -> TempDir {
    let dir = TempDir::new().unwrap();
    let rows: String = (0..96)
        .map(|n| {
            let messages = json!([
                {"role": "system", "content": "Answer with care."},
                {"role": "user", "content": format!("Say {n}.")},
                {"role": "assistant", "content": format!("{n} and again ").repeat(14)},
            ]);
            format!(
                "{}\n",
                json!({"id": format!("row-{n}"), "messages": messages})
            )
        })
        .collect();
    std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let config = format!(
        "output_dir = \"{0}/run\"\ndevice = \"cpu\"\n[model]\npath = \"\"\n[data]\npath = \"{0}/rows.jsonl\"\n\
         existing_system = \"keep\"\n[train]\nmax_length = 256\nper_device_train_batch_size = 2\n\
         gradient_accumulation_steps = 1\nmax_grad_norm = 0.0\neval_fraction = 0.0\nsamples = 0\nmax_steps = 8\n",
        dir.path().display()
    );
    std::fs::write(dir.path().join("plan.toml"), config).unwrap();
    dir
}

#[test]
#[cfg(target_os = "linux")]
fn the_plan_is_what_a_step_is_seen_to_need() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = world();
    let of = |name: &str, changes: Value, stored| model(&dir.path().join(name), changes, stored);
    let wide = of("f32", json!({}), StoredDtype::F32);
    let half = of("bf16", json!({}), StoredDtype::Bf16);
    let tied = of(
        "tied",
        json!({"tie_word_embeddings": true}),
        StoredDtype::F32,
    );
    let fused = of("fused", json!({"model_type": "phi3"}), StoredDtype::Bf16);
    let teacher = format!("distill.teacher={}", half.display());

    let (back, again) = (
        "train.optimizer_in_backward=true",
        "train.gradient_checkpointing=true",
    );
    let (eight, bf16) = ("train.optim=adamw_8bit", "train.dtype=bf16");
    let (lora, qlora) = ("train.method=lora", "train.method=qlora");
    let rows = "train.per_device_train_batch_size=8";
    let series: [(&str, &Path, &[&str]); 15] = [
        ("full", &wide, &[]),
        ("full, 8 rows", &wide, &[rows]),
        (
            "full, two micro-batches",
            &wide,
            &["train.gradient_accumulation_steps=2"],
        ),
        ("full, recomputation", &wide, &[again]),
        (
            "full, recomputation, optimizer in backward",
            &wide,
            &[again, back],
        ),
        ("full, 8-bit moments", &wide, &[eight]),
        ("full, bf16", &half, &[bf16]),
        ("full, all of these", &half, &[bf16, eight, back, again]),
        ("full, tied", &tied, &[]),
        ("full, fused projections", &fused, &[]),
        ("LoRA, base in f32", &wide, &[lora]),
        ("LoRA, base in bf16", &half, &[lora]),
        ("LoRA, recomputation, 8 rows", &half, &[lora, again, rows]),
        ("QLoRA", &half, &[qlora]),
        (
            "LoRA with a teacher",
            &half,
            &[lora, "distill.temperature=1", &teacher],
        ),
    ];
    let mut seen = std::collections::HashMap::new();
    let mut beyond = Vec::new();
    for (name, model, sets) in series {
        let (planned, measured) = plan(dir.path(), model, sets);
        let ratio = measured as f64 / planned as f64;
        println!(
            "| {name} | {} | {} | {ratio:.2} |",
            planned >> 20,
            measured >> 20
        );
        if !(BAND.0..=BAND.1).contains(&ratio) {
            beyond.push(format!("{name}: {ratio:.2}"));
        }
        seen.insert(name, measured as f64);
    }
    assert!(beyond.is_empty(), "{beyond:?}");
    // What is there to save memory is seen to save it: of 257 MiB of moments three quarters, of 129 MiB of weights half. Some
    // of it is left to the allocator, which keeps freed memory for a while.
    let saved = |more: &str, less: &str| (seen[more] - seen[less]) / f64::from(1 << 20);
    assert!(saved("full", "full, 8-bit moments") > 0.8 * 192.0);
    assert!(saved("LoRA, base in f32", "LoRA, base in bf16") > 0.7 * 64.0);
    assert!(saved("full", "full, all of these") > 0.7 * (64.0 + 86.0 + 192.0));
}

/// The most bytes held in the second of two steps.
fn most_in_a_step(decoder: Decoder, optimizer_in_backward: bool) -> usize {
    let examples = {
        let dir = TempDir::new().unwrap();
        fixture::model_folder(dir.path());
        fixture::examples(&fixture::chat(dir.path()), &fixture::rows(4))
    };
    let batch = [Batch::new(&examples, &[vec![0]], 2)];
    let settings = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        rounding_seed: 0,
    };
    let optimizer = Optimizer::of(Optim::Adamw, &decoder.trainable(), settings);
    let mut trainer = Trainer::new(decoder, optimizer, 0.0);
    trainer.optimizer_in_backward = optimizer_in_backward;
    trainer.gradient_checkpointing = true; // so that activations are small beside gradients
    assert!(trainer.step(&batch, 1e-3).applied);
    MOST.store(HELD.load(Relaxed), Relaxed);
    assert!(trainer.step(&batch, 1e-3).applied);
    MOST.load(Relaxed)
}

/// Written and compared, an export holds a parameter at a time beside the model, its adapter merged or not.
#[test]
fn an_export_holds_what_the_plan_says_beside_the_model() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let small = json!({"vocab_size": 512, "model_type": "phi3"});
    for (changes, dora) in [
        (json!({}), None),
        (small.clone(), Some(false)),
        (small, Some(true)),
    ] {
        let config = shape(changes, StoredDtype::Bf16);
        let mut decoder = Decoder::random(config.clone(), 1, &Device::flex()).in_bf16();
        if let Some(dora) = dora {
            let lora = Lora {
                rank: 8,
                alpha: 16.0,
                dropout: 0.0,
                target_modules: Vec::new(),
                rslora: false,
                dora,
            };
            decoder = decoder.with_lora(lora, 2).unwrap();
        }
        let dir = TempDir::new().unwrap();
        let before = HELD.load(Relaxed);
        MOST.store(before, Relaxed);
        let dtype = ExportDtype::Of(StoredDtype::Bf16);
        let look = |merge: &_| check_merge(merge).map(drop);
        decoder.save_merged(dir.path(), dtype, None, &look).unwrap();
        decoder.compare_saved(dir.path(), dtype, None).unwrap();
        let most = (MOST.load(Relaxed) - before) as f64;
        let planned = export(&config, decoder.lora()) as f64;
        println!("dora {dora:?}: {most} of {planned} bytes");
        // Beside it headers, buffers and the threads' panels.
        assert!(
            most < planned + 6e6 && most > 0.4 * planned,
            "dora {dora:?}: {most} of {planned}"
        );
    }
}

#[test]
fn the_optimizer_in_backward_never_holds_all_gradients() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for tied in [false, true] {
        let config = shape(json!({"tie_word_embeddings": tied}), StoredDtype::F32);
        let counted = parameters(&config, None);
        let most = |in_backward| {
            let decoder = Decoder::random(config.clone(), 1, &Device::flex());
            most_in_a_step(decoder, in_backward)
        };
        let saved = most(false) - most(true);
        // All but those of a layer and of embedding or head.
        let never = 4 * (counted.trained - counted.layer - counted.table) as usize;
        let expected = never as f64;
        assert!(
            saved as f64 > 0.9 * expected,
            "tied {tied}: {saved} of {never} bytes"
        );
    }
}
