//! What the model thought at each place of its answers, with the real engine and the embedded model.

use std::path::Path;

use sysgen_core::config::RunConfig;
use sysgen_core::hash::FileHashes;
use sysgen_data::environment::Environment;
use sysgen_model::Device;

#[test]
fn the_data_set_keeps_the_best_tokens_of_every_place_of_an_answer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<String> =
        std::fs::read_to_string(root.join("configs/quickstart/instructions.jsonl"))
            .unwrap()
            .lines()
            .take(3)
            .map(str::to_string)
            .collect();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("rows.jsonl"), rows.join("\n")).unwrap();
    let model = root.join("checkpoints/sysgen-nano").display().to_string();
    let config = |output: &str, top_k: usize| {
        let text = format!(
            "output_dir = {:?}\n[model]\npath = {model:?}\n[data]\npath = {:?}\n[generate]\n[generate.respond]\n",
            path(output),
            path("rows.jsonl"),
        );
        std::fs::write(path("run.toml"), text).unwrap();
        let prompt = |name: &str| {
            let file = root
                .join("configs/quickstart")
                .join(name)
                .display()
                .to_string();
            format!("generate.{}_prompt={file:?}", name.trim_end_matches(".txt"))
        };
        let settings = [
            "generate.max_length=1024".to_string(),
            "generate.respond.max_tokens=100".to_string(),
            format!("generate.respond.teacher_top_k={top_k}"),
            prompt("draft.txt"),
            prompt("verify.txt"),
        ];
        RunConfig::load(&folder.path().join("run.toml"), &settings).unwrap()
    };
    let lines = |config: &RunConfig| -> Vec<serde_json::Value> {
        let (environment, files) = (Environment::default(), FileHashes::default());
        sysgen_data::run(config, &Device::flex(), &environment, &files).unwrap();
        let text = std::fs::read_to_string(config.generated_data_dir().join("dataset.jsonl"));
        let text = text.unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let with = lines(&config("with", 5));
    let without = lines(&config("without", 0));
    assert!(!with.is_empty());
    for (with, without) in with.into_iter().zip(without) {
        assert_eq!(
            with["messages"], without["messages"],
            "looking changes nothing"
        );
        assert!(without["sysgen"].get("teacher").is_none());
        let teacher = &with["sysgen"]["teacher"];
        let list = |name: &str| teacher[name].as_array().unwrap().clone();
        let places = list("answer_ids").len();
        assert_eq!(teacher["top_k"], 5);
        // The stop token is a place of its own.
        let written = with["sysgen"]["tokens"]["respond"].as_u64().unwrap() as usize;
        assert_eq!(places, written + 1);
        let (ids, log_probabilities) = (list("ids"), list("log_probabilities"));
        assert_eq!((ids.len(), log_probabilities.len()), (places, places));
        for place in &log_probabilities {
            let place: Vec<f64> = serde_json::from_value(place.clone()).unwrap();
            assert_eq!(place.len(), 5);
            assert!(place.is_sorted_by(|a, b| a >= b));
            assert!(place.iter().map(|p| p.exp()).sum::<f64>() < 1.001);
        }
    }
}
