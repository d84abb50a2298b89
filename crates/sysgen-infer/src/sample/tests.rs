#![allow(clippy::unwrap_used)]

use super::*;

const SAMPLING: Sampling = Sampling {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    frequency_penalty: 0.0,
    presence_penalty: 0.0,
    max_tokens: 0,
    min_tokens: 0,
    seed: 7,
};

/// 40 logits without order; the two highest are equal.
fn logits() -> Vec<f32> {
    let mut logits: Vec<f32> = (0..40u32)
        .map(|i| ((i * 37 % 41) as f32 * 0.31).sin() * 2.0)
        .collect();
    logits[23] = 2.5;
    logits[11] = 2.5;
    logits
}

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(sampling, &[])
}

/// How often each id is drawn.
fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(sampling, &[]);
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.draw(logits, &[]).unwrap() as usize] += 1;
    }
    counts
}

/// Softmax in the plainest form, of the ids that `keep` lets through.
fn softmax(logits: &[f32], temperature: f64, keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let exp: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| {
            if keep(id) {
                (f64::from(logit) / temperature).exp()
            } else {
                0.0
            }
        })
        .collect();
    let total: f64 = exp.iter().sum();
    exp.iter().map(|value| value / total).collect()
}

/// Pearson's statistic of `counts` stays below its mean plus six deviations, and nothing impossible
/// is drawn.
#[track_caller]
fn assert_follows(counts: &[usize], expected: &[f64]) {
    let draws = counts.iter().sum::<usize>() as f64;
    let mut statistic = 0.0;
    let mut freedom = -1.0;
    for (&count, &probability) in counts.iter().zip(expected) {
        if probability == 0.0 {
            assert_eq!(count, 0, "drawn though impossible");
            continue;
        }
        let mean = probability * draws;
        statistic += (count as f64 - mean).powi(2) / mean;
        freedom += 1.0;
    }
    let bound = freedom + 6.0 * f64::sqrt(2.0 * freedom);
    assert!(statistic < bound, "{statistic} is not below {bound}");
}

#[test]
fn greedy_takes_the_best_and_the_lowest_of_equals() {
    let mut sampler = sampler(Sampling {
        temperature: 0.0,
        ..SAMPLING
    });
    assert_eq!(sampler.draw(&logits(), &[]).unwrap(), 11);
    assert_eq!(sampler.draw(&[-1.0, 3.0, 2.0], &[]).unwrap(), 1);
}

#[test]
fn top_k_of_one_and_a_tiny_top_p_are_greedy() {
    for seed in 0..50 {
        let one = Sampling {
            top_k: 1,
            seed,
            ..SAMPLING
        };
        assert_eq!(Sampler::new(one, &[]).draw(&logits(), &[]).unwrap(), 11);
        let tiny = Sampling {
            top_p: 1e-6,
            seed,
            ..SAMPLING
        };
        assert_eq!(Sampler::new(tiny, &[]).draw(&logits(), &[]).unwrap(), 11);
        let cold = Sampling {
            temperature: 1e-4,
            seed,
            ..SAMPLING
        };
        assert!([11, 23].contains(&Sampler::new(cold, &[]).draw(&logits(), &[]).unwrap()));
    }
}

#[test]
fn draws_follow_the_softmax_at_every_temperature() {
    let logits = logits();
    for temperature in [0.5f32, 1.0, 1.7] {
        let sampling = Sampling {
            temperature,
            ..SAMPLING
        };
        let expected = softmax(&logits, f64::from(temperature), |_| true);
        assert_follows(&counts(sampling, &logits, 40_000), &expected);
    }
}

#[test]
fn top_k_draws_from_the_best_only() {
    let logits = logits();
    let order = best_first(&logits, 40);
    assert_eq!(order[..2], [11, 23]);
    let expected = softmax(&logits, 0.8, |id| order[..5].contains(&id));
    let sampling = Sampling {
        temperature: 0.8,
        top_k: 5,
        ..SAMPLING
    };
    assert_follows(&counts(sampling, &logits, 40_000), &expected);
}

/// The nucleus by its definition: the shortest run of best ids whose probability reaches `top_p`.
fn nucleus(logits: &[f32], temperature: f64, of: &[usize], top_p: f64) -> Vec<usize> {
    let probability = softmax(logits, temperature, |id| of.contains(&id));
    let mut ids = Vec::new();
    let mut reached = 0.0;
    for &id in of {
        if reached >= top_p {
            break;
        }
        ids.push(id);
        reached += probability[id];
    }
    ids
}

#[test]
fn top_p_draws_from_the_nucleus_only_and_comes_after_temperature_and_top_k() {
    let logits = logits();
    let order = best_first(&logits, 40);
    for (top_k, top_p) in [(0, 0.5f32), (0, 0.97), (6, 0.6)] {
        let of = if top_k == 0 {
            &order[..]
        } else {
            &order[..top_k]
        };
        let kept = nucleus(&logits, 1.5, of, f64::from(top_p));
        assert!(kept.len() > 1 && kept.len() < of.len());
        let expected = softmax(&logits, 1.5, |id| kept.contains(&id));
        let sampling = Sampling {
            temperature: 1.5,
            top_k,
            top_p,
            ..SAMPLING
        };
        assert_follows(&counts(sampling, &logits, 40_000), &expected);
    }
}

#[test]
fn a_wide_nucleus_in_a_large_vocabulary_is_whole() {
    let logits: Vec<f32> = (0..300).map(|id| (id % 7) as f32 * 0.01).collect();
    let order = best_first(&logits, logits.len());
    let kept = nucleus(&logits, 1.0, &order, 0.9);
    let drawn = counts(
        Sampling {
            top_p: 0.9,
            ..SAMPLING
        },
        &logits,
        20_000,
    );
    let expected = softmax(&logits, 1.0, |id| kept.contains(&id));
    assert_follows(&drawn, &expected);
}

#[test]
fn log_probabilities_are_the_models_own_and_the_best_come_first() {
    let logits = logits();
    let whole = softmax(&logits, 1.0, |_| true);
    let order = best_first(&logits, 40);
    for id in [0, 11, 39] {
        let found = log_probability(&logits, id, 5).unwrap();
        let of = |id: u32| whole[id as usize].ln();
        assert!((f64::from(found.log_probability) - of(id)).abs() < 1e-6);
        assert_eq!(found.top.len(), 5);
        for (&(top, own), &expected) in found.top.iter().zip(&order) {
            assert_eq!(top as usize, expected);
            assert!((f64::from(own) - of(top)).abs() < 1e-6);
        }
    }
    assert!(log_probability(&logits, 0, 0).unwrap().top.is_empty());
}

#[test]
fn min_p_draws_what_is_probable_enough_beside_the_best_after_temperature() {
    let logits = logits();
    let at_temperature = softmax(&logits, 1.5, |_| true);
    let best = at_temperature.iter().copied().fold(0.0, f64::max);
    let kept = |id: usize| at_temperature[id] >= 0.3 * best;
    let count = (0..40).filter(|&id| kept(id)).count();
    assert!(count > 2 && count < 40);
    let expected = softmax(&logits, 1.5, kept);
    let sampling = Sampling {
        temperature: 1.5,
        min_p: 0.3,
        ..SAMPLING
    };
    assert_follows(&counts(sampling, &logits, 40_000), &expected);
}

#[test]
fn penalties_are_those_of_their_definitions() {
    let greedy = Sampling {
        temperature: 0.0,
        ..SAMPLING
    };
    let logits = [2.0, 1.9, -1.0, -1.1];
    let draws = |sampling: Sampling, prompt: &[u32], count: usize| -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, prompt);
        (0..count)
            .map(|_| sampler.draw(&logits, &[]).unwrap())
            .collect()
    };
    // Positive logits are divided, negative ones multiplied, once however often the token came.
    let repetition = Sampling {
        repetition_penalty: 1.2,
        ..greedy
    };
    assert_eq!(draws(repetition, &[], 3), [0, 1, 0]);
    assert_eq!(draws(repetition, &[0], 3), [1, 0, 0]);
    let strong = Sampling {
        repetition_penalty: 1e6,
        ..greedy
    };
    assert_eq!(
        draws(strong, &[0, 1], 1),
        [0],
        "divided, still above the negative ones"
    );
    assert_eq!(Sampler::new(strong, &[0]).draw(&[-1.0, -5.0], &[]), Some(1));
    // The prompt does not count for the other two; one counts how often.
    let presence = Sampling {
        presence_penalty: 0.15,
        ..greedy
    };
    assert_eq!(draws(presence, &[0], 4), [0, 1, 0, 0]);
    let frequency = Sampling {
        frequency_penalty: 0.15,
        ..greedy
    };
    assert_eq!(draws(frequency, &[0], 4), [0, 1, 0, 1]);
    // The first penalty changes the draw, never the stream.
    let warm = |sampling: Sampling| Sampling {
        temperature: 1.0,
        ..sampling
    };
    assert_eq!(draws(warm(presence), &[], 1), draws(warm(greedy), &[], 1));
}

#[test]
fn banned_ids_are_never_drawn() {
    let logits = logits();
    let mut sampler = Sampler::new(SAMPLING, &[]);
    for _ in 0..500 {
        assert!(![11, 23].contains(&sampler.draw(&logits, &[11, 23]).unwrap()));
    }
    assert_eq!(sampler.draw(&[1.0, 2.0], &[0, 1]), None);
}

#[test]
fn the_best_of_many_are_the_best_of_all_sorted() {
    let numbers: Vec<f32> = (0..5000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32)
        .collect();
    let mut all: Vec<usize> = (0..numbers.len()).collect();
    all.sort_by(|a, b| numbers[*b].total_cmp(&numbers[*a]).then(a.cmp(b)));
    for count in [0, 1, 2, 64, 157, 200, 4999, 5000, 9000] {
        assert_eq!(
            best_first(&numbers, count),
            all[..count.min(5000)],
            "{count}"
        );
    }
}

#[test]
fn a_seed_fixes_the_draws_and_each_token_takes_one_number() {
    let draws = |sampling: Sampling| -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..30)
            .map(|_| sampler.draw(&logits(), &[]).unwrap())
            .collect()
    };
    assert_eq!(draws(SAMPLING), draws(SAMPLING));
    assert_ne!(
        draws(SAMPLING),
        draws(Sampling {
            seed: 8,
            ..SAMPLING
        })
    );
    let mut skipped = Sampler::new(SAMPLING, &[]);
    skipped.draw(&[0.0; 9], &[]).unwrap();
    let rest: Vec<u32> = (1..30)
        .map(|_| skipped.draw(&logits(), &[]).unwrap())
        .collect();
    assert_eq!(rest, draws(SAMPLING)[1..]);
}

#[test]
fn logits_that_are_no_numbers_give_nothing() {
    for bad in [
        vec![],
        vec![1.0, f32::NAN],
        vec![f32::INFINITY, 0.0],
        vec![f32::NEG_INFINITY; 3],
    ] {
        assert_eq!(Sampler::new(SAMPLING, &[]).draw(&bad, &[]), None, "{bad:?}");
    }
    let masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    assert_eq!(Sampler::new(SAMPLING, &[]).draw(&masked, &[]).unwrap(), 1);
}
