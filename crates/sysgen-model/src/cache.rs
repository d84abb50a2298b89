//! Keys and values of the texts being decoded, on the host: one growing list per slot and layer.
//! Slots are independent of each other, so a text's result cannot depend on its neighbours.

use crate::config::ModelConfig;

/// A cache with a fixed number of slots, each holding one text.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// f32 values per token and layer, of keys as of values: `kv_heads * head_dim`.
    width: usize,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Tokens whose keys and values are held by every layer.
    length: usize,
    layers: Vec<Held>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for `slots` texts at a time.
    pub fn new(config: &ModelConfig, slots: usize) -> KvCache {
        let slot = Slot {
            length: 0,
            layers: vec![Held::default(); config.layers],
        };
        KvCache {
            width: config.kv_heads * config.head_dim,
            slots: vec![slot; slots],
        }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Tokens held by a slot.
    pub fn len(&self, slot: usize) -> usize {
        self.slots[slot].length
    }

    /// Whether a slot holds nothing.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Forgets a slot's text; its memory is kept for the next one.
    pub fn clear(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        slot.length = 0;
        for held in &mut slot.layers {
            held.keys.clear();
            held.values.clear();
        }
    }

    /// Gives slot `to` the first `tokens` tokens of slot `from` in the place of its own: texts that begin alike
    /// need their common beginning computed only once.
    ///
    /// # Panics
    /// `from` holds fewer tokens, or both are the same slot.
    pub fn copy(&mut self, from: usize, to: usize, tokens: usize) {
        assert!(
            tokens <= self.len(from),
            "slot {from} holds {} tokens, {tokens} are asked for",
            self.len(from)
        );
        let [source, target] = self
            .slots
            .get_disjoint_mut([from, to])
            .expect("two slots of this cache");
        let values = tokens * self.width;
        for (source, target) in source.layers.iter().zip(&mut target.layers) {
            target.keys.clear();
            target.keys.extend_from_slice(&source.keys[..values]);
            target.values.clear();
            target.values.extend_from_slice(&source.values[..values]);
        }
        target.length = tokens;
    }

    /// Bytes of keys and values held.
    pub fn bytes(&self) -> usize {
        let held = |slot: &Slot| {
            slot.layers
                .iter()
                .map(|held| held.keys.len() + held.values.len())
                .sum::<usize>()
        };
        self.slots.iter().map(held).sum::<usize>() * size_of::<f32>()
    }

    /// Writes keys and values `[tokens, kv_heads, head_dim]` at `start`; what the layer held from there on is dropped.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        slot: usize,
        start: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let at = start * self.width;
        let held = &mut self.slots[slot].layers[layer];
        assert!(
            held.keys.len() >= at,
            "slot {slot} holds {} tokens, a run starts at {start}",
            held.keys.len() / self.width
        );
        held.keys.truncate(at);
        held.keys.extend_from_slice(keys);
        held.values.truncate(at);
        held.values.extend_from_slice(values);
    }

    /// Keys and values of a slot in one layer, `[tokens, kv_heads, head_dim]` each.
    pub(crate) fn held(&self, layer: usize, slot: usize) -> (&[f32], &[f32]) {
        let held = &self.slots[slot].layers[layer];
        (&held.keys, &held.values)
    }

    /// Records a slot's new length once all layers have been written.
    pub(crate) fn set_length(&mut self, slot: usize, length: usize) {
        self.slots[slot].length = length;
    }
}
