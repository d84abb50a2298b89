//! Which text has which blocks of the cache. A full block is known by the ids it and all blocks before it stand for, so
//! that a text which begins alike takes it over; an idle block keeps its content until it is needed.

use std::collections::{BTreeMap, HashMap};

/// What a block's keys and values depend on: the ids of its positions and of all before them.
pub(crate) type Content = [u8; 32];

/// The content of every full block of `ids`, given that of the blocks before `known.len()`.
pub(crate) fn extend_contents(known: &mut Vec<Content>, ids: &[u32], block_size: usize) {
    for block in ids.chunks_exact(block_size).skip(known.len()) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(known.last().map_or(&[][..], |before| before));
        for id in block {
            hasher.update(&id.to_le_bytes());
        }
        known.push(*hasher.finalize().as_bytes());
    }
}

/// The blocks of one cache.
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    /// Blocks from here on were never used: their memory has not been touched.
    fresh: usize,
    /// Used before, without content worth keeping.
    empty: Vec<u32>,
    /// Nobody's blocks with content, by when they became idle.
    idle: BTreeMap<u64, u32>,
    known: HashMap<Content, u32>,
    clock: u64,
}

#[derive(Clone, Default)]
struct Block {
    /// Texts that list it.
    users: usize,
    content: Option<Content>,
    /// Its key in `idle`.
    since: u64,
}

impl Blocks {
    pub(crate) fn new(count: usize) -> Blocks {
        Blocks {
            blocks: vec![Block::default(); count],
            fresh: 0,
            empty: Vec::new(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            clock: 0,
        }
    }

    /// Blocks that can be taken.
    pub(crate) fn available(&self) -> usize {
        self.blocks.len() - self.fresh + self.empty.len() + self.idle.len()
    }

    /// Blocks that texts use.
    pub(crate) fn used(&self) -> usize {
        self.blocks.len() - self.available()
    }

    /// The longest beginning of `contents` that the cache has.
    pub(crate) fn find(&self, contents: &[Content]) -> Vec<u32> {
        contents
            .iter()
            .map_while(|content| self.known.get(content).copied())
            .collect()
    }

    /// One more text uses these blocks.
    pub(crate) fn share(&mut self, blocks: &[u32]) {
        for &number in blocks {
            let block = &mut self.blocks[number as usize];
            if block.users == 0 {
                self.idle.remove(&block.since);
            }
            block.users += 1;
        }
    }

    /// A block for one text; `None` when all are in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        // Untouched memory is taken before idle content is given up, but not for more content than is in use: a long
        // run of short texts would otherwise walk through the whole cache.
        let grows = self.fresh < self.blocks.len() && self.idle.len() <= self.used();
        let number = if let Some(number) = self.empty.pop() {
            number
        } else if grows || self.idle.is_empty() {
            if self.fresh == self.blocks.len() {
                return None;
            }
            self.fresh += 1;
            self.fresh as u32 - 1
        } else {
            let (_, number) = self.idle.pop_first()?;
            if let Some(content) = self.blocks[number as usize].content.take() {
                self.known.remove(&content);
            }
            number
        };
        self.blocks[number as usize].users = 1;
        Some(number)
    }

    /// A text gives its blocks back. Its last ones become idle first: a beginning is more likely to be needed again.
    pub(crate) fn release(&mut self, blocks: &[u32]) {
        for &number in blocks.iter().rev() {
            let block = &mut self.blocks[number as usize];
            block.users -= 1;
            if block.users > 0 {
                continue;
            }
            if block.content.is_some() {
                self.clock += 1;
                block.since = self.clock;
                self.idle.insert(self.clock, number);
            } else {
                self.empty.push(number);
            }
        }
    }

    /// The block's keys and values are computed.
    pub(crate) fn fill(&mut self, number: u32, content: Content) {
        // Two texts may have computed the same at the same time; the first block is the one that is found.
        if let std::collections::hash_map::Entry::Vacant(place) = self.known.entry(content) {
            place.insert(number);
            self.blocks[number as usize].content = Some(content);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn contents(ids: &[u32]) -> Vec<Content> {
        let mut contents = Vec::new();
        extend_contents(&mut contents, ids, 2);
        contents
    }

    #[test]
    fn a_block_is_known_by_everything_up_to_its_end() {
        let text = contents(&[1, 2, 3, 4, 5]);
        assert_eq!(text.len(), 2);
        assert_eq!(text[0], contents(&[1, 2])[0]);
        assert_ne!(text[1], contents(&[3, 4])[0]);
        let mut grown = contents(&[1, 2]);
        extend_contents(&mut grown, &[1, 2, 3, 4, 5], 2);
        assert_eq!(grown, text);
    }

    #[test]
    fn idle_content_is_found_until_its_block_is_needed_and_used_content_always() {
        let mut blocks = Blocks::new(3);
        let text = contents(&[1, 2, 3, 4]);
        let own = [blocks.take().unwrap(), blocks.take().unwrap()];
        for (number, content) in own.into_iter().zip(&text) {
            blocks.fill(number, *content);
        }
        assert_eq!(blocks.find(&text), own);
        blocks.release(&own);
        assert_eq!((blocks.find(&text), blocks.available()), (own.into(), 3));

        blocks.share(&own[..1]);
        let others = [blocks.take().unwrap(), blocks.take().unwrap()];
        assert_eq!(blocks.take(), None);
        assert_eq!(blocks.find(&text), own[..1], "the end was given up");
        blocks.release(&others);
        blocks.release(&own[..1]);
        assert_eq!(blocks.available(), 3);
        assert_eq!(blocks.used(), 0);
    }

    #[test]
    fn short_texts_one_after_the_other_touch_few_blocks() {
        let mut blocks = Blocks::new(1000);
        for text in 0..500 {
            let own = [blocks.take().unwrap(), blocks.take().unwrap()];
            for (number, content) in own.iter().zip(contents(&[text, 0, text, 1])) {
                blocks.fill(*number, content);
            }
            blocks.release(&own);
        }
        assert!(blocks.fresh < 10, "{} blocks were touched", blocks.fresh);
    }
}
