//! The Porter stemmer with the extensions of `nltk.stem.porter.PorterStemmer`, which `rouge_score`
//! stems with. Rules: M. F. Porter, An algorithm for suffix stripping, 1980, steps 1a to 5b; the
//! departures are named where they occur. Equal to nltk on every word of `tests/golden/metrics/stems.json`.

/// Words that nltk looks up instead of cutting.
const IRREGULAR: [(&str, &str); 16] = [
    ("skies", "sky"),
    ("sky", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a lower-case word of ASCII letters and digits.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return stem.to_string();
    }
    if word.len() <= 2 {
        return word.to_string();
    }
    let mut word = word.to_string();
    for step in [
        step_1a, step_1b, step_1c, step_2, step_3, step_4, step_5a, step_5b,
    ] {
        word = step(&word);
    }
    word
}

/// A vowel is a, e, i, o, u, and y after a consonant.
fn is_consonant(word: &[u8], i: usize) -> bool {
    match word[i] {
        b'a' | b'e' | b'i' | b'o' | b'u' => false,
        b'y' => i == 0 || !is_consonant(word, i - 1),
        _ => true,
    }
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure(stem: &str) -> usize {
    let bytes = stem.as_bytes();
    (1..bytes.len())
        .filter(|&i| is_consonant(bytes, i) && !is_consonant(bytes, i - 1))
        .count()
}

fn contains_vowel(stem: &str) -> bool {
    let bytes = stem.as_bytes();
    (0..bytes.len()).any(|i| !is_consonant(bytes, i))
}

fn ends_in_double_consonant(word: &str) -> bool {
    let bytes = word.as_bytes();
    let n = bytes.len();
    n >= 2 && bytes[n - 1] == bytes[n - 2] && is_consonant(bytes, n - 1)
}

/// Porter's *o: consonant, vowel, consonant other than w, x, y. nltk adds two-letter words of a vowel
/// and a consonant.
fn ends_in_cvc(word: &str) -> bool {
    let bytes = word.as_bytes();
    let n = bytes.len();
    if n == 2 {
        return !is_consonant(bytes, 0) && is_consonant(bytes, 1);
    }
    n >= 3
        && is_consonant(bytes, n - 3)
        && !is_consonant(bytes, n - 2)
        && is_consonant(bytes, n - 1)
        && !matches!(bytes[n - 1], b'w' | b'x' | b'y')
}

type Condition = fn(&str) -> bool;
/// A suffix, what takes its place, and what must hold of the stem before it.
type Rule = (&'static str, &'static str, Condition);

fn always(_: &str) -> bool {
    true
}
fn positive_measure(stem: &str) -> bool {
    measure(stem) > 0
}
fn measure_above_one(stem: &str) -> bool {
    measure(stem) > 1
}

/// The first rule whose suffix is there decides, even when its condition does not hold.
fn apply(word: &str, rules: &[Rule]) -> String {
    for (suffix, replacement, condition) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            return if condition(stem) {
                format!("{stem}{replacement}")
            } else {
                word.to_string()
            };
        }
    }
    word.to_string()
}

fn step_1a(word: &str) -> String {
    // nltk: `flies` becomes `fli`, but `dies` becomes `die`.
    if word.len() == 4 && word.ends_with("ies") {
        return word[..3].to_string();
    }
    apply(
        word,
        &[
            ("sses", "ss", always),
            ("ies", "i", always),
            ("ss", "ss", always),
            ("s", "", always),
        ],
    )
}

fn step_1b(word: &str) -> String {
    // nltk: `spied` becomes `spi`, but `died` becomes `die`.
    if let Some(stem) = word.strip_suffix("ied") {
        let ending = if word.len() == 4 { "ie" } else { "i" };
        return format!("{stem}{ending}");
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if positive_measure(stem) {
            format!("{stem}ee")
        } else {
            word.to_string()
        };
    }
    let cut = ["ed", "ing"].iter().find_map(|suffix| {
        word.strip_suffix(suffix)
            .filter(|stem| contains_vowel(stem))
    });
    let Some(stem) = cut else {
        return word.to_string();
    };
    if ["at", "bl", "iz"]
        .iter()
        .any(|ending| stem.ends_with(ending))
    {
        return format!("{stem}e");
    }
    if ends_in_double_consonant(stem) {
        let keeps_both = stem.ends_with(['l', 's', 'z']);
        return stem[..stem.len() - usize::from(!keeps_both)].to_string();
    }
    if measure(stem) == 1 && ends_in_cvc(stem) {
        return format!("{stem}e");
    }
    stem.to_string()
}

/// nltk: y becomes i only after a consonant that is not the first letter (`happy`, not `by`).
fn step_1c(word: &str) -> String {
    let after_consonant: Condition =
        |stem| stem.len() > 1 && is_consonant(stem.as_bytes(), stem.len() - 1);
    apply(word, &[("y", "i", after_consonant)])
}

fn step_2(word: &str) -> String {
    // nltk: the `al` that `alli` leaves is looked at again, as in `rationalli`.
    if let Some(stem) = word.strip_suffix("alli")
        && positive_measure(stem)
    {
        return step_2(&format!("{stem}al"));
    }
    // nltk measures the stem of `logi` with its l.
    if let Some(stem) = word.strip_suffix("ogi").filter(|stem| stem.ends_with('l')) {
        return if positive_measure(stem) {
            format!("{stem}og")
        } else {
            word.to_string()
        };
    }
    apply(
        word,
        &[
            ("ational", "ate", positive_measure),
            ("tional", "tion", positive_measure),
            ("enci", "ence", positive_measure),
            ("anci", "ance", positive_measure),
            ("izer", "ize", positive_measure),
            ("bli", "ble", positive_measure),
            ("alli", "al", positive_measure),
            ("entli", "ent", positive_measure),
            ("eli", "e", positive_measure),
            ("ousli", "ous", positive_measure),
            ("ization", "ize", positive_measure),
            ("ation", "ate", positive_measure),
            ("ator", "ate", positive_measure),
            ("alism", "al", positive_measure),
            ("iveness", "ive", positive_measure),
            ("fulness", "ful", positive_measure),
            ("ousness", "ous", positive_measure),
            ("aliti", "al", positive_measure),
            ("iviti", "ive", positive_measure),
            ("biliti", "ble", positive_measure),
            ("fulli", "ful", positive_measure),
        ],
    )
}

fn step_3(word: &str) -> String {
    apply(
        word,
        &[
            ("icate", "ic", positive_measure),
            ("ative", "", positive_measure),
            ("alize", "al", positive_measure),
            ("iciti", "ic", positive_measure),
            ("ical", "ic", positive_measure),
            ("ful", "", positive_measure),
            ("ness", "", positive_measure),
        ],
    )
}

fn step_4(word: &str) -> String {
    let after_s_or_t: Condition = |stem| measure(stem) > 1 && stem.ends_with(['s', 't']);
    apply(
        word,
        &[
            ("al", "", measure_above_one),
            ("ance", "", measure_above_one),
            ("ence", "", measure_above_one),
            ("er", "", measure_above_one),
            ("ic", "", measure_above_one),
            ("able", "", measure_above_one),
            ("ible", "", measure_above_one),
            ("ant", "", measure_above_one),
            ("ement", "", measure_above_one),
            ("ment", "", measure_above_one),
            ("ent", "", measure_above_one),
            ("ion", "", after_s_or_t),
            ("ou", "", measure_above_one),
            ("ism", "", measure_above_one),
            ("ate", "", measure_above_one),
            ("iti", "", measure_above_one),
            ("ous", "", measure_above_one),
            ("ive", "", measure_above_one),
            ("ize", "", measure_above_one),
        ],
    )
}

fn step_5a(word: &str) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) > 1 || (measure(stem) == 1 && !ends_in_cvc(stem)) => {
            stem.to_string()
        }
        _ => word.to_string(),
    }
}

/// Porter measures the word without its last l.
fn step_5b(word: &str) -> String {
    if word.ends_with("ll") && measure_above_one(&word[..word.len() - 1]) {
        word[..word.len() - 1].to_string()
    } else {
        word.to_string()
    }
}
