//! Renderings made by Python's jinja2 under transformers' settings; every file of the folder is a case.

use serde_json::Value;
use sysgen_chat::{EncoderTokenizer, SpecialTokens, Template, TemplateError};

use crate::fixtures::{external, gemma};
use sysgen_core::Message;
use sysgen_core::config::{DefaultSystem, SystemRole};

fn messages(case: &Value) -> Vec<Value> {
    case["messages"].as_array().unwrap().clone()
}

fn special_tokens(variables: &Value) -> SpecialTokens {
    let entries = variables.as_object().unwrap().iter();
    entries
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())))
        .collect()
}

/// Checks one case; true if it is an expected error.
fn check(name: &str, template: &Template, case: &Value) -> bool {
    let result = template.render_json(
        &messages(case),
        case["add_generation_prompt"].as_bool().unwrap(),
    );
    match (case["output"].as_str(), case["error"].as_str()) {
        (Some(expected), None) => {
            assert_eq!(result.unwrap(), expected, "{name}: {case}");
            false
        }
        (None, Some(words)) => {
            match result.expect_err(name) {
                TemplateError::Raised(raised) => assert_eq!(raised, words, "{name}"),
                // jinja2's own errors are worded by jinja2.
                TemplateError::Failed(_) => {
                    assert!(
                        !case["error_type"]
                            .as_str()
                            .unwrap_or_default()
                            .ends_with("TemplateError"),
                        "{name}: {case}"
                    );
                }
            }
            true
        }
        _ => panic!("{name}: a case has an output or an error: {case}"),
    }
}

fn case_files() -> Option<Vec<(String, Value)>> {
    let folder = external()?.join("golden/chat_templates");
    let mut files = Vec::new();
    for entry in
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            files.push((
                path.file_stem().unwrap().to_str().unwrap().to_owned(),
                serde_json::from_str(&text).unwrap(),
            ));
        }
    }
    assert!(!files.is_empty(), "{} has no cases", folder.display());
    Some(files)
}

#[test]
fn golden_chat_templates_render_as_transformers_renders_them() {
    let Some(files) = case_files() else { return };
    let (mut cases, mut errors) = (0, 0);
    for (name, file) in files {
        let template = Template::new(
            file["template"].as_str().unwrap(),
            &special_tokens(&file["variables"]),
        )
        .unwrap();
        for case in file["cases"].as_array().unwrap() {
            cases += 1;
            errors += usize::from(check(&name, &template, case));
        }
    }
    eprintln!("{cases} renderings, {errors} of them refusals");
    assert!(cases > 0);
}

#[test]
fn golden_renderings_of_the_template_collection() {
    let Some(folder) = external() else { return };
    let folder = folder.join("templates");
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(folder.join("goldens.json")).unwrap())
            .unwrap();
    assert!(!cases.is_empty());
    for case in &cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        check(
            name,
            &Template::new(&source, &special_tokens(case)).unwrap(),
            case,
        );
    }
    eprintln!("{} renderings", cases.len());
}

#[test]
fn golden_gemma_with_its_own_system_turn_renders_as_the_edited_template() {
    let Some(files) = case_files() else { return };
    let find = |wanted: &str| {
        files
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, file)| file.clone())
            .unwrap()
    };
    let edited = find("derived-gemma-2-9b-it-system-role");
    let model = gemma(find("google-gemma-2-9b-it")["template"].as_str().unwrap());
    let chat = model
        .load(SystemRole::OwnTurn, DefaultSystem::Keep)
        .unwrap();
    let mut equal = 0;
    for case in edited["cases"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let result = chat.render_text(&messages, case["add_generation_prompt"].as_bool().unwrap());
        match case["output"].as_str() {
            Some(expected) => {
                assert_eq!(result.unwrap(), expected);
                equal += 1;
            }
            None if messages.is_empty() => assert!(result.is_err()),
            None => assert!(
                format!("{:#}", result.unwrap_err()).contains(case["error"].as_str().unwrap())
            ),
        }
    }
    assert!(equal > 0);
}

#[test]
fn golden_encoder_texts_have_the_ids_of_the_bert_score_package() {
    let repository =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/encoder");
    for (name, positions) in [("bert", 40), ("roberta", 38)] {
        let folder = repository.join(name);
        let text = std::fs::read_to_string(folder.join("reference.json")).unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        let tokenizer = EncoderTokenizer::load(&folder, positions, name == "roberta").unwrap();
        assert_eq!(
            tokenizer.max_length() as u64,
            reference["max_length"].as_u64().unwrap()
        );
        let texts = reference["pairs"].as_array().unwrap().iter();
        let ids = reference["ids"].as_array().unwrap().iter();
        let mut cut = 0;
        for (text, ids) in texts.zip(ids).flat_map(|(texts, ids)| {
            let texts = texts.as_array().unwrap().iter();
            texts.zip(ids.as_array().unwrap())
        }) {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let encoded = tokenizer.encode(text.as_str().unwrap());
            assert_eq!(encoded.ids, ids, "{name}: {text}");
            cut += u64::from(encoded.is_cut);
        }
        assert_eq!(cut, reference["cut_texts"].as_u64().unwrap());
    }
}
