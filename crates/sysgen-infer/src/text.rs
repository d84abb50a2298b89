//! A text that is being worked on: its ids, its blocks, and what is done with it.

use crate::blocks::Content;
use crate::choose::Choosing;
use crate::engine::RequestId;
use crate::generate::Generation;
use crate::request::{Choice, Completion, Refused, TokenLogProbability};

/// What is done with a text.
pub(crate) enum Work {
    Generate(Box<Generation>),
    Choose(Choosing),
}

/// How it ended.
pub(crate) enum Ended {
    Completion {
        number: usize,
        of: usize,
        completion: Completion,
        prompt: Vec<TokenLogProbability>,
    },
    Choices(Vec<Choice>),
}

impl Work {
    /// The ids to read first, and how many they may become.
    pub(crate) fn start(&mut self, max_length: usize) -> Result<(Vec<u32>, usize), Refused> {
        match self {
            Work::Generate(generation) => generation.start(max_length),
            Work::Choose(choosing) => choosing.start(max_length),
        }
    }

    /// Looks at the logits after all ids so far; gives the ids to read next, none ends the text.
    fn advance(&mut self, logits: &[f32]) -> Result<Vec<u32>, Refused> {
        match self {
            Work::Generate(generation) => generation.advance(logits),
            Work::Choose(choosing) => choosing.advance(logits),
        }
    }

    pub(crate) fn wants_prompt(&self) -> bool {
        matches!(self, Work::Generate(generation) if generation.wants_prompt())
    }

    pub(crate) fn finish(self) -> Ended {
        match self {
            Work::Generate(generation) => {
                let (number, of) = (generation.number, generation.of());
                let (completion, prompt) = generation.finish();
                Ended::Completion {
                    number,
                    of,
                    completion,
                    prompt,
                }
            }
            Work::Choose(choosing) => Ended::Choices(choosing.finish()),
        }
    }
}

/// A text that is being worked on. The vector of them is in the order of admission.
pub(crate) struct Text {
    pub(crate) id: RequestId,
    pub(crate) work: Work,
    /// The text so far.
    pub(crate) ids: Vec<u32>,
    /// Ids it started with.
    pub(crate) prompt: usize,
    /// How many ids the cache has.
    pub(crate) held: usize,
    pub(crate) blocks: Vec<u32>,
    /// Of its full blocks.
    pub(crate) contents: Vec<Content>,
    /// Nothing of it has gone through the model since it was admitted or gave its blocks away.
    pub(crate) fresh: bool,
    /// It needs nothing more; taken out at the end of the step.
    pub(crate) ended: Option<Result<(), Refused>>,
}

impl Text {
    /// Ids that the cache does not have yet.
    pub(crate) fn pending(&self) -> usize {
        self.ids.len() - self.held
    }

    /// Looks at the logits after its id at `position`.
    pub(crate) fn look(&mut self, position: usize, logits: &[f32]) {
        let vocab_size = logits.len();
        if position + 1 < self.prompt {
            if let Work::Generate(generation) = &mut self.work
                && let Err(refused) = generation.look_at_prompt(position, logits)
            {
                self.ended = Some(Err(refused));
            }
            return;
        }
        if self.ended.is_some() || position + 1 < self.ids.len() {
            return;
        }
        let next = self.work.advance(logits);
        let unknown = |ids: &Vec<u32>| ids.iter().copied().find(|&id| id as usize >= vocab_size);
        match next.map(|ids| (unknown(&ids), ids)) {
            Err(refused) => self.ended = Some(Err(refused)),
            Ok((Some(id), _)) => self.ended = Some(Err(Refused::UnknownId { id, vocab_size })),
            Ok((None, ids)) if ids.is_empty() => self.ended = Some(Ok(())),
            Ok((None, ids)) => self.ids.extend(ids),
        }
    }
}
