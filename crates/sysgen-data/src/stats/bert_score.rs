//! BERTScore (Zhang et al. 2020) as the `bert-score` package defines it: each token of the candidate is matched with the
//! nearest token of the reference by the cosine of their hidden states, and the other way round; precision is the mean
//! over the candidate's tokens, recall that over the reference's. No idf weights, no rescaling. Special tokens may be
//! matched but are not counted. Two texts are compared alone: where the package pads a batch, a token whose best cosine
//! is negative gets 0, the padding's.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::Serialize;
use sysgen_chat::{EncodedText, EncoderTokenizer};
use sysgen_core::tell::duration;
use sysgen_model::{Device, Encoder, EncoderConfig, EncoderFamily};

use crate::dataset::{AnswerPair, Line};
use crate::open::DataSet;
use crate::stats::rouge::Score;

/// Pairs between two looks at the clock; enough of them that those of a length meet.
const PAIRS_TOGETHER: usize = 128;
/// Between two lines about how far it is.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// An encoder with its tokenizer.
pub struct BertScorer {
    name: String,
    encoder: Encoder,
    tokenizer: EncoderTokenizer,
    layer: usize,
}

/// The column of Table 1. Scores are means over the pairs, times 100.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BertScoreStatistics {
    /// The encoder's folder.
    pub model: String,
    /// The layer whose hidden states are compared; 0 is the embeddings.
    pub layer: usize,
    /// Pairs that were compared: all of them, unless fewer were asked for.
    pub pairs: usize,
    /// The encoder's longest text, in tokens.
    pub max_length: usize,
    /// Answers that are longer; their ends were left out.
    pub cut_texts: usize,
    /// The score.
    #[serde(flatten)]
    pub score: Score,
}

/// What became of some pairs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BertScores {
    /// One for each pair, between -1 and 1; 0 where a text has no token that counts.
    pub scores: Vec<Score>,
    /// Texts that were cut.
    pub cut_texts: usize,
    /// Tokens that were read.
    pub tokens: usize,
}

impl BertScorer {
    /// Loads the encoder in `dir` up to `layer`; without one, up to the layer that `bert-score` takes for the published
    /// models of its family and depth.
    ///
    /// # Errors
    /// No supported encoder, files that do not belong together, a layer that it does not have, or none given where
    /// no default is known.
    pub fn load(dir: &Path, layer: Option<usize>, device: &Device) -> Result<BertScorer> {
        let config = EncoderConfig::from_directory(dir)?;
        let folder = dir.display();
        let layers = config.layers;
        let layer = match layer.or_else(|| default_layer(&config)) {
            Some(layer) if layer <= layers => layer,
            Some(layer) => {
                bail!(
                    "{folder} has no layer {layer}; choose one with --bertscore-layer, from 0 (the embeddings) to {layers}"
                )
            }
            None => bail!(
                "{folder} has {layers} layers, a depth for which bert-score names no layer to compare; choose one with --bertscore-layer, from 0 (the embeddings) to {layers}"
            ),
        };
        let space_first = config.family == EncoderFamily::Roberta;
        let tokenizer = EncoderTokenizer::load(dir, config.max_length(), space_first)?;
        ensure!(
            tokenizer.vocab_size() <= config.vocab_size,
            "{folder}: the tokenizer has {} words, the encoder only {}: these files do not belong together",
            tokenizer.vocab_size(),
            config.vocab_size
        );
        Ok(BertScorer {
            name: folder.to_string(),
            encoder: Encoder::load(dir, layer, device).context("loading the encoder")?,
            tokenizer,
            layer,
        })
    }

    /// Scores pairs of a candidate and a reference.
    pub fn scores(&self, pairs: &[(&str, &str)]) -> BertScores {
        let encoded: Vec<[EncodedText; 2]> = pairs
            .par_iter()
            .map(|(candidate, reference)| {
                [candidate, reference].map(|text| self.tokenizer.encode(text))
            })
            .collect();
        let texts = || encoded.iter().flatten();
        let mut result = BertScores {
            scores: vec![Score::default(); pairs.len()],
            cut_texts: texts().filter(|text| text.is_cut).count(),
            tokens: texts().map(|text| text.ids.len()).sum(),
        };
        let ids: Vec<[&[u32]; 2]> = encoded
            .iter()
            .map(|pair| [pair[0].ids.as_slice(), pair[1].ids.as_slice()])
            .collect();
        let special = self.tokenizer.special_ids();
        self.encoder.cosines(&ids, |pair, cosines| {
            result.scores[pair] = matched(ids[pair], &cosines, special);
        });
        result
    }
}

/// The score of one pair from its cosines `[candidate, reference]`.
fn matched(ids: [&[u32]; 2], cosines: &[f32], special: [u32; 2]) -> Score {
    let [candidate, reference] = ids.map(|ids| {
        let counted = (0..ids.len()).filter(|&at| !special.contains(&ids[at]));
        counted.collect::<Vec<usize>>()
    });
    if candidate.is_empty() || reference.is_empty() {
        return Score::default();
    }
    let width = ids[1].len();
    let nearest = |cosines: &mut dyn Iterator<Item = &f32>| {
        f64::from(cosines.fold(f32::NEG_INFINITY, |best, &cosine| best.max(cosine)))
    };
    let rows = candidate
        .iter()
        .map(|row| nearest(&mut cosines[row * width..][..width].iter()));
    let columns = reference
        .iter()
        .map(|&column| nearest(&mut cosines[column..].iter().step_by(width)));
    let precision = rows.sum::<f64>() / candidate.len() as f64;
    let recall = columns.sum::<f64>() / reference.len() as f64;
    let f = 2.0 * precision * recall / (precision + recall);
    Score {
        precision,
        recall,
        f: if f.is_nan() { 0.0 } else { f },
    }
}

/// `bert_score.utils.model2layers`, for the models that others are made after.
fn default_layer(config: &EncoderConfig) -> Option<usize> {
    match (config.family, config.layers) {
        (EncoderFamily::Bert | EncoderFamily::XlmRoberta, 12) => Some(9),
        (EncoderFamily::Roberta, 12) => Some(10),
        (EncoderFamily::Bert, 24) => Some(18),
        (EncoderFamily::Roberta | EncoderFamily::XlmRoberta, 24) => Some(17),
        _ => None,
    }
}

/// Scores the new answers of a data set against the original ones: of its `pairs`, at most `limit`, spread evenly.
pub(crate) fn score_data_set(
    data_set: &DataSet,
    scorer: &BertScorer,
    pairs: usize,
    limit: Option<usize>,
) -> Result<Option<BertScoreStatistics>> {
    let wanted = limit.map_or(pairs, |limit| limit.min(pairs));
    let mut seen = 0;
    // The i-th pair is taken where i · wanted / pairs passes a whole number.
    let mut is_chosen = || {
        seen += 1;
        let passed = |i: usize| i as u128 * wanted as u128 / pairs as u128;
        passed(seen - 1) != passed(seen)
    };
    let mut sums = Sums::default();
    let started = Instant::now();
    let mut last_line = started;
    data_set.for_each_chunk(|lines| {
        let chosen: Vec<(&str, &str)> = lines
            .iter()
            .flat_map(Line::pairs)
            .filter(|_| is_chosen())
            .map(|AnswerPair { original, new }| (new, original))
            .collect();
        for part in chosen.chunks(PAIRS_TOGETHER) {
            sums.add(scorer.scores(part));
            if last_line.elapsed() >= LINE_EVERY && sums.pairs < wanted {
                last_line = Instant::now();
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(
                    "BERTScore: {} of {wanted} pairs  {:.0} tokens/s  {} left",
                    sums.pairs,
                    sums.tokens as f64 / seconds,
                    duration(seconds / sums.pairs as f64 * (wanted - sums.pairs) as f64)
                );
            }
        }
        Ok(())
    })?;
    Ok(sums.finish(scorer))
}

/// Sums over pairs, in file order.
#[derive(Default)]
struct Sums {
    pairs: usize,
    cut_texts: usize,
    tokens: usize,
    scores: [f64; 3],
}

impl Sums {
    fn add(&mut self, scores: BertScores) {
        self.pairs += scores.scores.len();
        self.cut_texts += scores.cut_texts;
        self.tokens += scores.tokens;
        for score in scores.scores {
            let values = [score.precision, score.recall, score.f];
            for (sum, value) in self.scores.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }

    fn finish(&self, scorer: &BertScorer) -> Option<BertScoreStatistics> {
        if self.pairs == 0 {
            return None;
        }
        let [precision, recall, f] = self.scores.map(|sum| sum * 100.0 / self.pairs as f64);
        Some(BertScoreStatistics {
            model: scorer.name.clone(),
            layer: scorer.layer,
            pairs: self.pairs,
            max_length: scorer.tokenizer.max_length(),
            cut_texts: self.cut_texts,
            score: Score {
                precision,
                recall,
                f,
            },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_a_layer_it_is_the_packages() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/encoder");
        let mut config = EncoderConfig::from_directory(&golden.join("roberta")).unwrap();
        for (family, layers, expected) in [
            (EncoderFamily::Roberta, 24, Some(17)),
            (EncoderFamily::Roberta, 12, Some(10)),
            (EncoderFamily::Bert, 12, Some(9)),
            (EncoderFamily::Bert, 24, Some(18)),
            (EncoderFamily::XlmRoberta, 12, Some(9)),
            (EncoderFamily::XlmRoberta, 24, Some(17)),
            (EncoderFamily::Roberta, 6, None),
        ] {
            (config.family, config.layers) = (family, layers);
            assert_eq!(default_layer(&config), expected, "{family:?} {layers}");
        }
    }
}
