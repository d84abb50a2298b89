//! The distance of two distributions over different words: both sorted, the largest beside the largest. Where a stretch of
//! text is several tokens on a side, its distribution is that of the last one, times the probabilities of the others:
//!
//! `Q(v) = A · q(v)`, `A = Π qᵢ(tokenᵢ)` over the positions before the last; likewise P of the teacher.
//! `D = Σ |P₍ᵣ₎ − Q₍ᵣ₎|`, `dD/dA · A = Σ sign · Q`: what the earlier positions' log-probabilities get.

use super::cpu::{log_softmax, log_sum, mean};

/// The distance of a span, each side as capped logits `[positions, vocab]` and the tokens its positions stand before; adds its
/// gradient times `weight` by the student's logits.
pub(super) fn of_span(
    student: (&[f32], &[u32]),
    teacher: (&[f32], &[u32]),
    temperature: f32,
    weight: f32,
    gradient: &mut [f32],
) -> f32 {
    let (log_p, log_b) = sides(teacher, temperature);
    let (log_q, log_a) = sides(student, temperature);
    let times = |log: &[f32], factor: f32| -> Vec<f32> {
        log.iter().map(|log| (log + factor).exp()).collect()
    };
    let mut slopes = vec![0.0; log_q.len()];
    let distance = distance(
        &mut times(&log_p, log_b),
        &times(&log_q, log_a),
        &mut slopes,
    );
    let (logits, targets) = student;
    let vocab = log_q.len();
    let mean = mean(&log_q, &slopes);
    let scale = weight / temperature * log_a.exp();
    let (earlier, last) = gradient.split_at_mut(logits.len() - vocab);
    for ((gradient, log_q), slope) in last.iter_mut().zip(&log_q).zip(&slopes) {
        *gradient += scale * log_q.exp() * (slope - mean);
    }
    let positions = logits.chunks_exact(vocab).zip(targets);
    for (gradient, (logits, &target)) in earlier.chunks_exact_mut(vocab).zip(positions) {
        let log_sum = log_sum(logits, temperature);
        for (gradient, logit) in gradient.iter_mut().zip(logits) {
            *gradient -= scale * mean * (logit / temperature - log_sum).exp();
        }
        gradient[target as usize] += scale * mean;
    }
    distance
}

/// Of a side: `ln q` at its last position, and `ln A`.
fn sides((logits, targets): (&[f32], &[u32]), temperature: f32) -> (Vec<f32>, f32) {
    let vocab = logits.len() / targets.len();
    let (earlier, last) = logits.split_at(logits.len() - vocab);
    let before: f64 = earlier
        .chunks_exact(vocab)
        .zip(targets)
        .map(|(logits, &target)| {
            f64::from(logits[target as usize] / temperature - log_sum(logits, temperature))
        })
        .sum();
    (log_softmax(last, temperature), before as f32)
}

/// `Σ |p₍ᵢ₎ − q₍ᵢ₎|`; `slopes` becomes its derivative by each number of q. Words that only one side has stand beside 0.
fn distance(p: &mut [f32], q: &[f32], slopes: &mut [f32]) -> f32 {
    p.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut order: Vec<u32> = (0..q.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| q[b as usize].total_cmp(&q[a as usize]).then(a.cmp(&b)));
    let mut sum = 0.0f64;
    for (rank, &word) in order.iter().enumerate() {
        let difference = q[word as usize] - p.get(rank).copied().unwrap_or(0.0);
        sum += f64::from(difference.abs());
        slopes[word as usize] = match difference {
            d if d > 0.0 => 1.0,
            d if d < 0.0 => -1.0,
            _ => 0.0,
        };
    }
    sum += p.iter().skip(q.len()).map(|&p| f64::from(p)).sum::<f64>();
    sum as f32
}
