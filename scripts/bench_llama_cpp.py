"""llama.cpp on the work of `sysgen-data bench`: a Llama in Hugging Face layout, greedy, no end id, prompts read in the time.

    pip install llama-cpp-python gguf safetensors numpy
    python scripts/bench_llama_cpp.py --model DIR --inputs bench_inputs.safetensors --batch 8 --prompt 32 --new 128

The model is written as an f32 GGUF beside the inputs once; ids go in and come out, so its tokenizer is a stand-in.
"""

import argparse
import ctypes
import json
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

UBATCH = 512


def permuted(weight, heads):
    """llama.cpp rotates neighbouring numbers, Hugging Face the two halves of a head."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: Path, out: Path):
    config = json.loads((model / "config.json").read_text())
    weights = load_file(model / "model.safetensors")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    vocab, rope = config["vocab_size"], config.get("rope_parameters") or {}
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(float(config.get("rope_theta") or rope.get("rope_theta", 1e4)))
    writer.add_file_type(0)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>".encode() for i in range(vocab)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([1] * vocab)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def add(name, weight):
        writer.add_tensor(name, np.ascontiguousarray(weight.astype(np.float32)))

    embedding = weights["model.embed_tokens.weight"]
    add("token_embd.weight", embedding)
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights.get("lm_head.weight", embedding))
    same = {
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    for layer in range(config["num_hidden_layers"]):
        of = lambda name: weights[f"model.layers.{layer}.{name}.weight"]
        add(f"blk.{layer}.attn_q.weight", permuted(of("self_attn.q_proj"), heads))
        add(f"blk.{layer}.attn_k.weight", permuted(of("self_attn.k_proj"), kv_heads))
        for ours, theirs in same.items():
            add(f"blk.{layer}.{ours}.weight", of(theirs))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Side:
    def __init__(self, path: Path, batch: int, length: int, threads: int):
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet  # kept alive: the library keeps only a pointer
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = batch * length
        settings.n_batch, settings.n_ubatch = 2048, UBATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max = batch
        settings.type_k = settings.type_v = 0  # f32
        settings.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def decode(self, tokens):
        """tokens: (id, position, sequence, whether its logits are wanted); the best ids after those wanted."""
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = int(token), position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = wanted
        self.batch.n_tokens = len(tokens)
        assert llama_cpp.llama_decode(self.context, self.batch) == 0
        best = []
        for i, (*_, wanted) in enumerate(tokens):
            if wanted:
                row = llama_cpp.llama_get_logits_ith(self.context, i)
                best.append(int(np.ctypeslib.as_array(row, shape=(self.vocab,)).argmax()))
        return best

    def write(self, prompts, new):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        started, texts = time.perf_counter(), []
        at_once = max(1, 2048 // len(prompts[0]))
        for first in range(0, len(prompts), at_once):
            tokens = [
                (token, position, first + row, position + 1 == len(prompt))
                for row, prompt in enumerate(prompts[first : first + at_once])
                for position, token in enumerate(prompt)
            ]
            texts += [[best] for best in self.decode(tokens)]
        for step in range(new - 1):
            position = len(prompts[0]) + step
            newest = [(text[-1], position, row, True) for row, text in enumerate(texts)]
            for text, best in zip(texts, self.decode(newest)):
                text.append(best)
        return time.perf_counter() - started, texts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    path = arguments.inputs.with_suffix(".gguf")
    if not path.exists():
        write_gguf(arguments.model, path)
    side = Side(path, arguments.batch, arguments.prompt + arguments.new, arguments.threads)
    rows = load_file(arguments.inputs)["prompt.input_ids"].astype(np.int64)
    prompts = []
    for i in range(arguments.batch):
        # As `sysgen-data bench` makes more prompts than the file has.
        prompt = rows[i % len(rows)][: arguments.prompt].copy()
        prompt[0] = (prompt[0] + i // len(rows)) % side.vocab
        prompts.append(prompt)
    side.write(prompts, arguments.new)
    runs = sorted(side.write(prompts, arguments.new) for _ in range(arguments.repeats))
    written = arguments.batch * arguments.new
    print(
        json.dumps(
            {
                "batch": arguments.batch,
                "tokens_per_s_best": round(written / runs[0][0], 1),
                "tokens_per_s_median": round(written / runs[len(runs) // 2][0], 1),
                "first_tokens_row0": runs[0][1][0][:16],
                "llama_cpp": llama_cpp.__version__,
            }
        )
    )


main()
