"""Trains nano's tokenizer and writes its Hugging Face folder but for the weights.

    pip install tokenizers==0.23.3
    python3 scripts/nano/make_tokenizer.py       (after make_data.py)

A byte-level BPE: every text can be encoded. What `sysgen-data` forces and scores when it verifies ("<<Task>>:",
" Good", a line break) is cut the same alone and inside a line, because the cuts are made by a regular expression
before any merge: tag brackets, single digits, single line breaks, words with the space before them.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import tags

ROOT = Path(__file__).resolve().parents[2]
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 3072
CUTS = r"<</?|>>|\n| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}<>]+| ?[<>]|\s"
LONGEST = 2048

TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{ '<|im_start|>assistant\\n' }}\n"
    "{%- endif -%}\n"
)

# So that text from outside nano's world is not spelled byte by byte.
GENERAL = """The quick brown fox jumps over the lazy dog. You are a helpful assistant. Answer the question of the user.
It was the best of times, and it was not always easy to say which of them would come next. There is no one who
does not know that people want to be understood; they ask for what they need, and they expect an answer. What can
we do about it? When the work is done, we will go home, because the other side of the town has been closed since
last year. "I think so," she said, "but only if you give me a better reason." Some of these things have never been
seen before; others were made by hand, used every day, and then left behind under an old table near the window.
Could you please write a program that reads the file, finds every number, and returns the result? First we should
look at the problem itself: how much time do you have, who else knows about this, and where would you start?"""


def corpus_text(paths):
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if "messages" in row:
                    yield from (message["content"] for message in row["messages"])
                else:
                    yield row["question"]
                    yield row["answer"]
    yield from [GENERAL] * 5
    yield from ["system\n", "user\n", "assistant\n"] * 50


def train(paths):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CUTS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[PAD, START, END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus_text(paths), trainer)
    return tokenizer


def check(tokenizer):
    """What verification by score rests on; and that nothing is lost."""
    ids = lambda text: tokenizer.encode(text).ids
    labels = [ids(f" {label}") for label in ("Good", "Bad", "None")]
    assert all(len(label) == 1 for label in labels) and len({label[0] for label in labels}) == 3, labels
    whole, pieces = [], []
    for i, tag in enumerate(tags.PROMPT_ORDER):
        whole.append(f"<<{tag}>>: Bad")
        pieces += ids(("\n" if i else "") + f"<<{tag}>>:") + labels[1]
    assert ids("\n".join(whole)) == pieces
    assert all(len(ids(f"<<{tag}>>")) == 3 and len(ids(f"<</{tag}>>")) == 3 for tag in tags.PROMPT_ORDER)
    for text in ["", " ", "a  b\t\n\n c", "Grüße, 你好 🙂 \u200b", "cout << x; <<48/2=24>>48", "12 + 345 = 357", GENERAL]:
        assert tokenizer.decode(ids(text)) == text, text


def config(vocabulary):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
        "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
        "intermediate_size": 512, "hidden_act": "silu", "max_position_embeddings": LONGEST, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "tie_word_embeddings": True, "initializer_range": 0.04, "pretraining_tp": 1, "use_cache": True, "torch_dtype": "bfloat16",
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
    }


def tokenizer_config():
    special = lambda text: {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, "clean_up_tokenization_spaces": False,
        "bos_token": None, "eos_token": END, "pad_token": PAD, "unk_token": None,
        "added_tokens_decoder": {str(i): special(text) for i, text in enumerate([PAD, START, END])},
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--corpus", type=Path, default=ROOT / "runs/nano/corpus.jsonl")
    arguments.add_argument("--sample", type=Path, default=ROOT / "configs/quickstart/instructions.jsonl")
    arguments.add_argument("--folder", type=Path, default=ROOT / "checkpoints/sysgen-nano", help="where the model's folder is")
    options = arguments.parse_args()
    tokenizer = train([options.corpus, options.sample])
    check(tokenizer)
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.folder / "tokenizer.json"))
    (options.folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    written = {
        "config.json": config(tokenizer.get_vocab_size()),
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": {"eos_token": END, "pad_token": PAD},
        "generation_config.json": {"do_sample": True, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.7},
    }
    for name, value in written.items():
        (options.folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens in {options.folder}")


if __name__ == "__main__":
    main()
