"""Reference hidden states and BERTScores of tiny random encoders.

    pip install bert-score==0.3.13 transformers==4.57.1 tokenizers==0.22.2 torch safetensors
    python3 gen_encoder.py ../encoder

Writes two model folders, `bert` (f32, names without a prefix, WordPiece) and `roberta` (bf16, names under
`roberta.` beside a head, byte-level BPE), and in each `reference.json` and `reference.safetensors`. Numbers are
computed in float64 by the formula of the BERTScore paper and must agree with the `bert-score` package.
"""
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bert_score
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

CORPUS = [
    "The quick answer is short, and the long answer explains every step of the way.",
    "First, measure the flour; then mix it with water and let the dough rest for an hour.",
    "A comet is a ball of ice and dust that grows a tail when it comes near the sun.",
    "If x is 12 and y is 7, then x + y is 19 and x - y is 5.",
    "Please write the answer as a list: one point for each reason, no more than three.",
    "The museum guide explains why the moon shines although it makes no light itself.",
]

# Candidate (the new answer) and reference (the original one).
PAIRS = [
    ("The answer is 19.", "x + y is 19."),
    ("A comet is a ball of ice and dust.", "A comet is a ball of ice and dust."),
    ("First, mix the flour with water.\n\nThen let it rest.", "Measure the flour, mix it, and let the dough rest for an hour."),
    ("  Spaces around  ", "spaces around"),
    ("Crème brûlée für Zoë — 数学は楽しい 🙂", "Creme brulee for Zoe"),
    ("the the the the", "the"),
    # Cut: longer than the encoder.
    (" ".join(CORPUS), "A short answer."),
    (" ".join(CORPUS), " ".join(reversed(CORPUS))),
    # Spell special tokens, which become those tokens and do not count.
    ("one [SEP] two </s> three", "one two three"),
    ("", "nothing to match"),
    ("something", "   "),
]
# Hidden states are kept of these.
STATES = [PAIRS[0][0], PAIRS[2][1], PAIRS[4][0], PAIRS[6][0]]

CONFIG_KEYS = ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
               "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act", "position_embedding_type",
               "pad_token_id", "is_decoder"]


def bert_tokenizer(folder, model_max_length):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=180, special_tokens=specials))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": model_max_length,
              "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tokenizer


def roberta_tokenizer(folder, model_max_length):
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=sorted(alphabet)))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "RobertaTokenizer", "model_max_length": model_max_length, "bos_token": "<s>",
              "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>",
              "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tokenizer


@torch.no_grad()
def randomise(model, seed, dtype):
    """Spread so that every part shows in the result, and rounded to what is stored."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if "LayerNorm.weight" in name:
            values = 1 + 0.3 * values
        elif parameter.dim() == 1:
            values = 0.3 * values
        elif "embeddings" in name:
            values = 0.6 * values
        else:
            values = 1.2 * values / parameter.shape[1] ** 0.5
        parameter.copy_(values.to(dtype).float())
    return model.eval()


def slow_folder(folder, like):
    """The same tokenizer in the files that the package's default, the slow tokenizers, want."""
    target = pathlib.Path(tempfile.mkdtemp())
    for file in folder.iterdir():
        if file.suffix != ".json" or file.name in ("config.json", "tokenizer_config.json"):
            shutil.copy(file, target)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    if like == "bert":
        words = sorted(model["vocab"], key=model["vocab"].get)
        (target / "vocab.txt").write_text("\n".join(words) + "\n")
    else:
        (target / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return target


def ids_of(tokenizer, text):
    """As bert_score.utils.sent_encode."""
    return bert_score.utils.sent_encode(tokenizer, text)


@torch.no_grad()
def states_of(encoder, ids):
    output = encoder(torch.tensor([ids]), output_hidden_states=True)
    return [state[0] for state in output.hidden_states]


def score(candidate, reference, ids, specials):
    """R = mean over the reference's tokens of the best cosine, P over the candidate's; special tokens are matched, not
    counted."""
    if len(ids[0]) == 2 or len(ids[1]) == 2:
        return [0.0, 0.0, 0.0]
    unit = [state / state.norm(dim=-1, keepdim=True) for state in (candidate, reference)]
    similarity = unit[0] @ unit[1].T
    counted = [torch.tensor([i not in specials for i in text]) for text in ids]
    precision = similarity.max(dim=1).values[counted[0]].mean().item()
    recall = similarity.max(dim=0).values[counted[1]].mean().item()
    return [precision, recall, 2 * precision * recall / (precision + recall)]


def case(root, name):
    folder = root / name
    folder.mkdir(parents=True)
    if name == "bert":
        # The tokenizer's length is the smaller one.
        tokenizer_json = bert_tokenizer(folder, 32)
        config = BertConfig(vocab_size=tokenizer_json.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                            num_attention_heads=4, intermediate_size=40, max_position_embeddings=40)
        model = whole = randomise(BertModel(config, add_pooling_layer=True), 11, torch.float32)
    else:
        # Two positions are lost to padding: 40 - 1 - 1.
        tokenizer_json = roberta_tokenizer(folder, 38)
        config = RobertaConfig(vocab_size=tokenizer_json.get_vocab_size(), hidden_size=32, num_hidden_layers=3,
                               num_attention_heads=2, intermediate_size=40, max_position_embeddings=40, type_vocab_size=1,
                               layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2)
        whole = randomise(RobertaForMaskedLM(config), 12, torch.bfloat16)
        model = whole.roberta
    stored = torch.float32 if name == "bert" else torch.bfloat16
    keys = {key: value.to(stored).contiguous() for key, value in whole.state_dict().items() if "position_ids" not in key}
    # The masked-language head shares the embedding; transformers writes it once.
    keys.pop("lm_head.decoder.weight", None)
    keys.pop("lm_head.decoder.bias", None)
    save_file(keys, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    described = {key: config.to_dict()[key] for key in CONFIG_KEYS}
    described["architectures"] = [type(whole).__name__]
    described["torch_dtype"] = str(stored).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")

    slow = slow_folder(folder, name)
    tokenizer = (BertTokenizer if name == "bert" else RobertaTokenizer).from_pretrained(slow)
    specials = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    encoder = model.double()
    layers = config.num_hidden_layers

    tensors = {}
    for i, text in enumerate(STATES):
        ids = ids_of(tokenizer, text)
        tensors[f"{i}.ids"] = torch.tensor(ids)
        for layer, state in enumerate(states_of(encoder, ids)):
            tensors[f"{i}.layer{layer}"] = state.float()
    save_file(tensors, str(folder / "reference.safetensors"))
    (folder / "reference.safetensors").chmod(0o644)

    scores = {}
    for layer in range(layers + 1):
        rows = []
        for candidate, reference in PAIRS:
            ids = [ids_of(tokenizer, text) for text in (candidate, reference)]
            rows.append(score(*(states_of(encoder, text)[layer] for text in ids), ids, specials))
        scores[str(layer)] = rows
        # One pair at a time: where a batch is padded, the package also compares with the padding, as a similarity of 0.
        package = [bert_score.score([candidate], [reference], model_type=str(slow), num_layers=layer, batch_size=1, device="cpu")
                   for candidate, reference in PAIRS]
        for ours, theirs in zip(rows, package):
            for a, b in zip(ours, theirs):
                assert math.isclose(a, b.item(), abs_tol=2e-6), (name, layer, ours, theirs)
    limit = tokenizer.model_max_length
    cut = sum(len(tokenizer_json.encode((" " if name == "roberta" else "") + text.strip()).ids) > limit for pair in PAIRS for text in pair)
    reference = {
        "versions": {"bert_score": "0.3.13", "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                     "torch": torch.__version__.split("+")[0]},
        "texts": STATES,
        "pairs": PAIRS,
        "max_length": limit,
        "ids": [[ids_of(tokenizer, text) for text in pair] for pair in PAIRS],
        "cut_texts": cut,
        "scores": scores,
    }
    (folder / "reference.json").write_text(json.dumps(reference, ensure_ascii=False) + "\n")
    print(name, config.vocab_size, "words;", {layer: rows[0] for layer, rows in scores.items()}, "cut:", cut)


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bert", "roberta"):
        case(root, name)
