#!/usr/bin/env python3
"""Kills a training run at random moments and shows that it ends with the bytes of an undisturbed one.

    python3 scripts/kill_resume.py target/release/sysgen-train [--kills 30] [--steps 200] [--set key=value]…

The model is checkpoints/sysgen-nano-plain's shape, small and from scratch; the rows are those of configs/quickstart with a system
message in front. Every --set goes to both runs, for example --set train.method=lora. Exit status 0: all bytes are equal.
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import killing

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The weights or the adapter, the optimizer's state; and what was logged, without times.
COMPARED = ["model.safetensors", "adapter_model.safetensors", "optimizer.safetensors"]
TIMES = ["seconds", "tokens_per_second", "supervised_tokens_per_second"]


def rows(path):
    """The quickstart's questions and answers as conversations."""
    with open(ROOT / "configs/quickstart/instructions.jsonl") as source, open(path, "w") as target:
        for line in source:
            row = json.loads(line)
            keys = [key for key in ("question", "instruction", "prompt") if key in row]
            answers = [key for key in ("answer", "output", "response", "completion") if key in row]
            messages = [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": row[keys[0]]},
                {"role": "assistant", "content": row[answers[0]]},
            ]
            target.write(json.dumps({"messages": messages}) + "\n")


def command(program, output, data, steps, extra):
    sets = [
        f"output_dir={output}", "generate=false", "export=false", f"data.path={data}", f"train.max_steps={steps}",
        "train.max_length=128", "train.per_device_train_batch_size=1", "train.save_steps=7", "train.eval_steps=0",
        "train.samples=0", "train.logging_steps=1", "device=cpu", *extra,
    ]
    words = [program, "-q", "--config", str(ROOT / "configs/quickstart.toml")]
    for value in sets:
        words += ["--set", value]
    return words


def results(output, steps):
    folder = output / f"checkpoint-{steps}"
    found = {name: (folder / name).read_bytes() for name in COMPARED if (folder / name).exists()}
    lines = [json.loads(line) for line in open(output / "metrics.jsonl")]
    for line in lines:
        for key in TIMES:
            line.pop(key, None)
    found["metrics.jsonl without times"] = json.dumps(lines)
    found["row_losses.jsonl"] = (output / "row_losses.jsonl").read_bytes()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="extra")
    options = parser.parse_args()
    random.seed(options.seed)
    program = str(pathlib.Path(options.program).resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data = folder / "rows.jsonl"
        rows(data)
        calm, killed = folder / "calm", folder / "killed"
        whole = killing.undisturbed(
            command(program, calm, data, options.steps, options.extra), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        print(f"undisturbed: {options.steps} steps in {whole:.1f} s", flush=True)
        kills = 0
        words = command(program, killed, data, options.steps, options.extra)
        # Long enough on the average to reach the next checkpoint now and then, so that the kills spread over the run.
        longest = 2.0 * whole / options.kills
        while kills < options.kills:
            child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            kills += killing.kill_after([child], random.uniform(0.0, longest))
            steps = sorted(int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*[0-9]"))
            print(f"kill {kills}: checkpoints {steps}", flush=True)
            if child.returncode == 0:
                raise SystemExit(f"the run was over after {kills} kills; raise --steps")
        subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        killing.same(results(calm, options.steps), results(killed, options.steps))
        print(f"{kills} kills")


if __name__ == "__main__":
    main()
