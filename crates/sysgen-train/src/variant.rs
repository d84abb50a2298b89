//! The paper's ablations, from a finished SysGen data set: each needs nothing but what its rows hold, so one generated set
//! serves all five.

use sysgen_core::config::Variant;
use sysgen_core::message::{Message, Role};

use crate::rows::Row;

/// The row as `variant` has it; `common` is the system message of `common_system`.
///
/// # Errors
/// What the row lacks: a system message, or the answer the source data had.
pub fn as_variant(mut row: Row, variant: Variant, common: &str) -> Result<Row, String> {
    match variant {
        Variant::Sysgen => {}
        Variant::NoSystem => {
            take_system(&mut row)?;
            restore_answer(&mut row)?;
        }
        Variant::CommonSystem => {
            take_system(&mut row)?;
            restore_answer(&mut row)?;
            row.messages.insert(0, Message::system(common));
        }
        Variant::OriginalAnswer => restore_answer(&mut row)?,
        Variant::SystemInUser => {
            let system = take_system(&mut row)?;
            let user = row.messages.iter_mut().find(|m| m.role == Role::User);
            let user = user.ok_or("it has no user message")?;
            user.content = format!("{system}\n\n{}", user.content);
        }
    }
    Ok(row)
}

fn take_system(row: &mut Row) -> Result<String, String> {
    match row.messages.first() {
        Some(first) if first.role == Role::System => Ok(row.messages.remove(0).content),
        _ => Err("it has no system message, so it is no row of a SysGen data set".into()),
    }
}

fn restore_answer(row: &mut Row) -> Result<(), String> {
    let learnt = row
        .messages
        .iter_mut()
        .filter(|m| m.role == Role::Assistant)
        .zip(&row.learnt_answers)
        .filter_map(|(answer, learnt)| learnt.then_some(answer));
    let learnt: Vec<&mut Message> = learnt.collect();
    if learnt.len() != row.original_answers.len() {
        return Err(format!(
            "it has {} `sysgen.original_answer` for {} answer(s), and train.variant wants one for each; use a data set \
             written by [generate]",
            row.original_answers.len(),
            learnt.len()
        ));
    }
    for (answer, original) in learnt.into_iter().zip(&row.original_answers) {
        answer.content.clone_from(original);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row() -> Row {
        let messages = vec![
            Message::system("S"),
            Message::user("Q"),
            Message::assistant("new"),
        ];
        Row {
            original_answers: vec!["old".into()],
            ..Row::new("a", messages)
        }
    }

    fn said(row: &Row) -> Vec<(&str, &str)> {
        row.messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect()
    }

    #[test]
    fn each_variant_says_what_the_paper_has_it_say() {
        let system = |text| ("system", text);
        let (q, new, old) = (("user", "Q"), ("assistant", "new"), ("assistant", "old"));
        for (variant, expected) in [
            (Variant::Sysgen, vec![system("S"), q, new]),
            (Variant::NoSystem, vec![q, old]),
            (Variant::CommonSystem, vec![system("C"), q, old]),
            (Variant::OriginalAnswer, vec![system("S"), q, old]),
            (Variant::SystemInUser, vec![("user", "S\n\nQ"), new]),
        ] {
            let row = as_variant(row(), variant, "C").unwrap();
            assert_eq!(said(&row), expected, "{variant:?}");
        }
    }

    #[test]
    fn a_row_without_its_original_answer_is_bad_for_the_variants_that_want_it() {
        let plain = Row {
            original_answers: Vec::new(),
            ..row()
        };
        for variant in [
            Variant::NoSystem,
            Variant::CommonSystem,
            Variant::OriginalAnswer,
        ] {
            let reason = as_variant(plain.clone(), variant, "C").unwrap_err();
            assert!(reason.contains("sysgen.original_answer"), "{reason}");
        }
        assert!(as_variant(plain, Variant::SystemInUser, "C").is_ok());
    }
}
