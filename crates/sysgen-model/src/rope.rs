//! Rotary position embedding: from the settings in `config.json` to cos and sin of every token.
//! The rotation itself is `sysgen_ops::rope`. Angles are computed in f64: at position 100 000 an f32 angle is already
//! wrong in the third digit.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::config::Keys;

/// Rotary settings of a model.
#[derive(Clone, Debug)]
pub struct Rope {
    /// How many of a head's dimensions are rotated (an even number); the others pass.
    pub rotary_dim: usize,
    /// Inverse frequencies `[rotary_dim / 2]`, for texts up to the original length.
    pub inverse_frequencies: Vec<f64>,
    /// For texts that go beyond it (longrope), and where that begins.
    pub long: Option<Long>,
    /// Factor on cos and sin (longrope; otherwise 1).
    pub attention_factor: f64,
}

/// The second set of frequencies of longrope.
#[derive(Clone, Debug)]
pub struct Long {
    /// Inverse frequencies `[rotary_dim / 2]`.
    pub inverse_frequencies: Vec<f64>,
    /// Texts with more tokens than this use them.
    pub original_max_position_embeddings: usize,
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta`, `rope_scaling` and `partial_rotary_factor`.
    ///
    /// # Errors
    /// A rotary type other than default, linear, llama3, longrope; or a setting missing or of the wrong form.
    pub fn from_json(
        config: &Value,
        head_dim: usize,
        max_position_embeddings: usize,
    ) -> Result<Rope> {
        let top = Keys(config);
        let settings = ["rope_parameters", "rope_scaling"]
            .iter()
            .find_map(|key| config.get(key).filter(|value| value.is_object()));
        let scaling = Keys(settings.unwrap_or(&Value::Null));
        let either =
            |key: &str| -> Result<Option<f64>> { Ok(scaling.number(key)?.or(top.number(key)?)) };

        let theta = either("rope_theta")?.unwrap_or(10_000.0);
        let partial = either("partial_rotary_factor")?.unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * partial) as usize;
        ensure!(
            rotary_dim >= 2 && rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim,
            "`partial_rotary_factor` = {partial} rotates {rotary_dim} of {head_dim} dimensions; it must be an even number"
        );
        let plain: Vec<f64> = (0..rotary_dim / 2)
            .map(|i| theta.powf(-((2 * i) as f64) / rotary_dim as f64))
            .collect();

        let need = |key: &str| {
            scaling
                .number(key)?
                .with_context(|| format!("`{key}` is missing from the rope settings"))
        };
        let kind = scaling
            .text("rope_type")?
            .or(scaling.text("type")?)
            .unwrap_or("default");
        let mut rope = Rope {
            rotary_dim,
            inverse_frequencies: plain.clone(),
            long: None,
            attention_factor: 1.0,
        };
        match kind {
            "default" => {}
            "linear" => {
                let factor = need("factor")?;
                rope.inverse_frequencies = plain.iter().map(|f| f / factor).collect();
            }
            "llama3" => {
                let bands = Bands {
                    factor: need("factor")?,
                    low: need("low_freq_factor")?,
                    high: need("high_freq_factor")?,
                    original: need("original_max_position_embeddings")?,
                };
                rope.inverse_frequencies = plain.iter().map(|&f| bands.scale(f)).collect();
            }
            // "su" is what the first Phi-3 configs called it.
            "longrope" | "su" => {
                let divide = |key: &str| -> Result<Vec<f64>> {
                    let factors: Option<Vec<f64>> = scaling
                        .0
                        .get(key)
                        .and_then(Value::as_array)
                        .and_then(|list| list.iter().map(Value::as_f64).collect());
                    let factors = factors.with_context(|| {
                        format!("`{key}` must be a list of numbers in the rope settings")
                    })?;
                    ensure!(
                        factors.len() == plain.len(),
                        "`{key}` holds {} factors, the model needs {}",
                        factors.len(),
                        plain.len()
                    );
                    Ok(plain
                        .iter()
                        .zip(factors)
                        .map(|(f, factor)| f / factor)
                        .collect())
                };
                // HF `modeling_rope_utils.py:_compute_longrope_parameters`.
                let stated = either("original_max_position_embeddings")?;
                let original = stated.unwrap_or(max_position_embeddings as f64);
                let factor = match stated {
                    Some(original) => max_position_embeddings as f64 / original,
                    None => scaling.number("factor")?.unwrap_or(1.0),
                };
                let computed = if factor <= 1.0 {
                    1.0
                } else {
                    (1.0 + factor.ln() / original.ln()).sqrt()
                };
                rope.attention_factor = scaling.number("attention_factor")?.unwrap_or(computed);
                rope.inverse_frequencies = divide("short_factor")?;
                rope.long = Some(Long {
                    inverse_frequencies: divide("long_factor")?,
                    original_max_position_embeddings: original as usize,
                });
            }
            other => bail!(
                "rope type \"{other}\" is not supported; supported: default, linear, llama3, longrope"
            ),
        }
        Ok(rope)
    }

    /// The inverse frequencies for a text of `length` tokens.
    pub fn frequencies_for(&self, length: usize) -> &[f64] {
        match &self.long {
            Some(long) if length > long.original_max_position_embeddings => {
                &long.inverse_frequencies
            }
            _ => &self.inverse_frequencies,
        }
    }

    /// Appends cos and sin of one token, `rotary_dim / 2` values each.
    pub(crate) fn push(
        &self,
        position: u32,
        frequencies: &[f64],
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        for frequency in frequencies {
            let (s, c) = (f64::from(position) * frequency).sin_cos();
            cos.push((c * self.attention_factor) as f32);
            sin.push((s * self.attention_factor) as f32);
        }
    }
}

/// Llama-3.1's rule (HF `modeling_rope_utils.py:_compute_llama3_parameters`): short wavelengths stay, long ones are
/// divided by `factor`, those between are mixed.
struct Bands {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Bands {
    fn scale(&self, frequency: f64) -> f64 {
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < self.original / self.high {
            frequency
        } else if wavelength > self.original / self.low {
            frequency / self.factor
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn longrope() -> Value {
        json!({
            "rope_theta": 10000.0, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0]}
        })
    }

    #[test]
    fn longrope_changes_frequencies_beyond_the_original_length() {
        let rope = Rope::from_json(&longrope(), 8, 131_072).unwrap();
        assert_eq!(rope.rotary_dim, 4);
        assert_eq!(rope.frequencies_for(4096), [1.0, 0.01 / 2.0]);
        assert_eq!(rope.frequencies_for(4097), [1.0 / 4.0, 0.01 / 8.0]);
        // sqrt(1 + ln(32) / ln(4096)), the value published for Phi-3 with 128k tokens.
        assert!(
            (rope.attention_factor - 1.190_238).abs() < 1e-6,
            "{}",
            rope.attention_factor
        );
    }

    #[test]
    fn longrope_with_the_wrong_number_of_factors_is_refused() {
        let message = Rope::from_json(&longrope(), 16, 131_072)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("short_factor") && message.contains('4'),
            "{message}"
        );
    }
}
