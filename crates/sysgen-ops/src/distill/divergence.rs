//! Distances of two distributions over the same words, and their slopes.

use super::Divergence;

/// The least probability of a rest: what a teacher gives to the words that were not stored is known to rounding only.
pub(super) const LEAST: f32 = 1e-9;

impl Divergence {
    /// The distance of q, the student's, from p, by their logarithms. `slopes` becomes its derivative by each number of q,
    /// up to a constant, which a softmax does not feel.
    pub(super) fn distance(self, log_p: &[f32], log_q: &[f32], slopes: &mut [f32]) -> f32 {
        let words = log_p.iter().zip(log_q).zip(slopes);
        let mut sum = 0.0f64;
        match self {
            Divergence::ForwardKl => {
                for ((&p, &q), slope) in words {
                    sum += f64::from(times(p.exp(), p - q));
                    *slope = -(p - q).exp();
                }
            }
            Divergence::ReverseKl => {
                for ((&p, &q), slope) in words {
                    sum += f64::from(times(q.exp(), q - p));
                    *slope = q - p;
                }
            }
            Divergence::Jsd(beta) => {
                for ((&p, &q), slope) in words {
                    let m = (beta * p.exp() + (1.0 - beta) * q.exp()).ln();
                    let of_p = times(p.exp(), p - m);
                    let of_q = times(q.exp(), q - m);
                    sum += f64::from(beta * of_p + (1.0 - beta) * of_q);
                    *slope = (1.0 - beta) * if q.exp() > 0.0 { q - m } else { 0.0 };
                }
            }
            Divergence::Uld => unreachable!("sorted distributions are compared in `ranked`"),
        }
        sum as f32
    }
}

/// `x · y`, where nothing times anything is nothing.
fn times(x: f32, y: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x * y }
}
