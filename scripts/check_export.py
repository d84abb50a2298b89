#!/usr/bin/env python3
"""Loads an exported model with transformers and compares it with our own program.

    pip install torch transformers safetensors peft
    cargo build --release --bin sysgen-train
    python3 scripts/check_export.py runs/quickstart/export

An export that is an adapter alone (export.adapter = "keep") is loaded with peft beside its base and compared with the same
adapter merged by `sysgen-train merge`.

For each conversation, with and without a system message: the exported chat template must give the
same prompt ids, and greedy decoding the same new ids. Exits with 1 at the first difference.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CONVERSATIONS = [
    ("You are a careful teacher. Answer in one short sentence.", "What is 7 plus 5?"),
    ("Answer as a travel guide. Begin with a greeting.", "What is the capital of France?"),
    (None, "How many legs does a spider have?"),
    ("Antworte höflich – mit Emoji 🙂.", "Wie heißt du?"),
]
NEW_TOKENS = 48


def ours(binary, export, system, user):
    """The ids of the prompt and of the greedy answer, from our program."""
    command = [binary, "answer", "--model", export, "--user", user, "--max-tokens", str(NEW_TOKENS), "--json"]
    if system is not None:
        command += ["--system", system]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def theirs(tokenizer, model, system, user):
    """The same from transformers, in float32 on the CPU."""
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    prompt_ids = prompt["input_ids"][0].tolist()
    return {"prompt_ids": prompt_ids, "ids": output[0].tolist()[len(prompt_ids):]}


def load(export):
    """The exported model, or the adapter beside its base, in float32."""
    settings = Path(export, "adapter_config.json")
    if not settings.exists():
        return AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    from peft import PeftModel
    base = AutoModelForCausalLM.from_pretrained(json.loads(settings.read_text())["base_model_name_or_path"], dtype=torch.float32)
    return PeftModel.from_pretrained(base, export).eval()


def main():
    export = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/export"
    binary = sys.argv[2] if len(sys.argv) > 2 else "target/release/sysgen-train"
    if not Path(binary).exists():
        sys.exit(f"{binary} is not there: cargo build --release --bin sysgen-train")
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = load(export)
    whole = export
    if Path(export, "adapter_config.json").exists():
        whole = tempfile.mkdtemp() + "/merged"
        base = json.loads(Path(export, "adapter_config.json").read_text())["base_model_name_or_path"]
        subprocess.run([binary, "merge", "--model", base, "--adapter", export, "--output", whole, "--dtype", "f32"], check=True)
    stop_ids = model.generation_config.eos_token_id
    stop_ids = set(stop_ids if isinstance(stop_ids, list) else [stop_ids])
    for system, user in CONVERSATIONS:
        mine, reference = ours(binary, whole, system, user), theirs(tokenizer, model, system, user)
        # transformers returns the stop token, our engine does not.
        reference["ids"] = [token for token in reference["ids"] if token not in stop_ids]
        for key in ("prompt_ids", "ids"):
            if mine[key] != reference[key]:
                sys.exit(f"{key} differ for {user!r}:\n  ours         {mine[key]}\n  transformers {reference[key]}")
        print(f"equal: {len(mine['prompt_ids'])} prompt ids, {len(mine['ids'])} new ids | {user} -> "
              f"{tokenizer.decode(mine['ids'], skip_special_tokens=True)!r}")


if __name__ == "__main__":
    main()
