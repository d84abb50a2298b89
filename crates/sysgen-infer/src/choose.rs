//! A text whose labels are compared: force ids, read the labels' log-probabilities, go on after the best.

use sysgen_ops::distribution::{largest, log_sum_exp};

use crate::request::{Choice, ChoiceRequest, ChoiceStep, Refused};

/// One row of choices in the making.
pub(crate) struct Choosing {
    request: ChoiceRequest,
    choices: Vec<Choice>,
}

impl Choosing {
    pub(crate) fn new(request: ChoiceRequest) -> Choosing {
        Choosing {
            request,
            choices: Vec::new(),
        }
    }

    /// The ids to read first, and how many they may become; no ids when there is nothing to choose.
    pub(crate) fn start(&mut self, max_length: usize) -> Result<(Vec<u32>, usize), Refused> {
        let steps = &self.request.steps;
        if let Some(step) = steps.iter().position(|step| !can_be_told_apart(step)) {
            return Err(Refused::Labels { step });
        }
        let Some((last, before)) = steps.split_last() else {
            return Ok((Vec::new(), 0));
        };
        // The last step's label is chosen but not read.
        let longest = |step: &ChoiceStep| step.labels.iter().map(Vec::len).max().unwrap_or(0);
        let tokens = self.request.prompt.len()
            + steps.iter().map(|step| step.forced.len()).sum::<usize>()
            + before.iter().map(longest).sum::<usize>();
        debug_assert!(!last.labels.is_empty(), "steps were checked for labels");
        if tokens > max_length {
            return Err(Refused::TooLong { tokens, max_length });
        }
        let mut ids = self.request.prompt.clone();
        ids.extend(&steps[0].forced);
        if ids.is_empty() {
            return Err(Refused::Empty);
        }
        Ok((ids, tokens))
    }

    /// Looks at the logits after all ids so far; gives the ids to read next, none ends the text.
    pub(crate) fn advance(&mut self, logits: &[f32]) -> Result<Vec<u32>, Refused> {
        let step = &self.request.steps[self.choices.len()];
        let largest = largest(logits).ok_or(Refused::NotFinite)?;
        let total = log_sum_exp(logits, largest);
        let mut log_probabilities = Vec::with_capacity(step.labels.len());
        let mut best = 0;
        for (index, label) in step.labels.iter().enumerate() {
            let first = label[0];
            let logit = *logits.get(first as usize).ok_or(Refused::UnknownId {
                id: first,
                vocab_size: logits.len(),
            })?;
            log_probabilities.push((f64::from(logit) - total) as f32);
            if logit > logits[step.labels[best][0] as usize] {
                best = index;
            }
        }
        let mut ids = step.labels[best].clone();
        self.choices.push(Choice {
            best,
            log_probabilities,
        });
        Ok(match self.request.steps.get(self.choices.len()) {
            Some(next) => {
                ids.extend(&next.forced);
                ids
            }
            None => Vec::new(),
        })
    }

    pub(crate) fn finish(self) -> Vec<Choice> {
        self.choices
    }
}

fn can_be_told_apart(step: &ChoiceStep) -> bool {
    let firsts: Vec<Option<&u32>> = step.labels.iter().map(|label| label.first()).collect();
    !firsts.is_empty()
        && firsts
            .iter()
            .enumerate()
            .all(|(index, first)| first.is_some() && !firsts[..index].contains(first))
}
