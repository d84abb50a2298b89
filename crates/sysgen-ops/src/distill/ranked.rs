//! The distance of two distributions over different words: both sorted, the largest beside the largest.

/// `Σ |p₍ᵢ₎ − q₍ᵢ₎|`; `slopes` becomes its derivative by each number of q. Words that only one side has stand beside 0.
pub(super) fn distance(p: &mut [f32], q: &[f32], slopes: &mut [f32]) -> f32 {
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
