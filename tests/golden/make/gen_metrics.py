"""Reference scores of ROUGE, GLEU and the Porter stemmer.

    pip install rouge_score==0.1.2 nltk sacrebleu==2.6.0
    python3 gen_metrics.py ../metrics

Scores the pairs and stems the words that are already in `metrics.json` and `stems.json`, adds what is
missing and writes both files again. Fails when a stored value is another one.
"""

import json
import pathlib
import sys

import nltk
import sacrebleu
from nltk.stem.porter import PorterStemmer
from nltk.translate.gleu_score import corpus_gleu, sentence_gleu
from rouge_score import rouge_scorer, tokenize

TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
TOLERANCE = 1e-12


def rouge(reference, candidate, stemmer):
    scores = rouge_scorer.RougeScorer(TYPES, use_stemmer=stemmer).score(reference, candidate)
    return {
        name: {"precision": score.precision, "recall": score.recall, "fmeasure": score.fmeasure}
        for name, score in scores.items()
    }


def score(reference, candidate):
    stemmer = PorterStemmer()
    tokens = {}
    for name, text in (("reference", reference), ("candidate", candidate)):
        tokens[name] = tokenize.tokenize(text, None)
        tokens[name + "_stemmed"] = tokenize.tokenize(text, stemmer)
    return {
        "reference": reference,
        "candidate": candidate,
        "rouge": rouge(reference, candidate, False),
        "rouge_stemmed": rouge(reference, candidate, True),
        "rouge_tokens": tokens,
        "sentence_gleu": sentence_gleu([reference.split()], candidate.split()),
        "sentence_gleu_characters": sentence_gleu([reference], candidate),
        "sacrebleu_sentence_bleu": sacrebleu.sentence_bleu(candidate, [reference]).score,
        "sacrebleu_chrf": sacrebleu.sentence_chrf(candidate, [reference]).score,
    }


def corpus(pairs):
    nonempty = [i for i, pair in enumerate(pairs) if pair["reference"] and pair["candidate"]]
    chosen = [pairs[i] for i in nonempty]

    def words(chosen):
        return corpus_gleu(
            [[pair["reference"].split()] for pair in chosen], [pair["candidate"].split() for pair in chosen]
        )

    def mean(key):
        return {name: sum(pair[key][name]["fmeasure"] for pair in pairs) / len(pairs) for name in TYPES}

    candidates = [pair["candidate"] for pair in pairs]
    references = [[pair["reference"] for pair in pairs]]
    return {
        "corpus_gleu_all": words(pairs),
        "corpus_gleu_nonempty": words(chosen),
        "corpus_gleu_characters": corpus_gleu(
            [[pair["reference"]] for pair in pairs], [pair["candidate"] for pair in pairs]
        ),
        "nonempty_indices": nonempty,
        "sacrebleu_corpus_bleu": sacrebleu.corpus_bleu(candidates, references).score,
        "sacrebleu_corpus_chrf": sacrebleu.corpus_chrf(candidates, references).score,
        "mean_rouge_f": mean("rouge"),
        "mean_rouge_f_stemmed": mean("rouge_stemmed"),
    }


def compare(stored, made, where):
    """Everything that was stored must have been made again."""
    if isinstance(stored, dict):
        for key, value in stored.items():
            compare(value, made[key], f"{where}.{key}")
    elif isinstance(stored, list):
        assert len(stored) == len(made), where
        for i, value in enumerate(stored):
            compare(value, made[i], f"{where}[{i}]")
    elif isinstance(stored, float):
        assert abs(stored - made) <= TOLERANCE, f"{where}: {stored} is now {made}"
    else:
        assert stored == made, f"{where}: {stored!r} is now {made!r}"


def main(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    stems = json.loads((folder / "stems.json").read_text())
    pairs = [score(pair["reference"], pair["candidate"]) for pair in metrics["pairs"]]
    made = {"notes": metrics["notes"], "pairs": pairs, "corpus": corpus(pairs)}
    made_stems = {"note": stems["note"], "stems": {word: PorterStemmer().stem(word) for word in stems["stems"]}}
    compare({key: metrics[key] for key in ("pairs", "corpus")}, made, "metrics")
    compare(stems, made_stems, "stems")
    versions = {"rouge_score": "0.1.2", "nltk": nltk.__version__, "sacrebleu": sacrebleu.__version__}
    for name, content in (("metrics.json", {"versions": versions, **made}), ("stems.json", made_stems)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


main(pathlib.Path(sys.argv[1]))
