#!/usr/bin/env python3
"""Reads a run's event files with the `tensorboard` package and holds them against its metrics.jsonl.

    pip install tensorboard
    target/release/sysgen-train --config configs/quickstart.toml --set train.report_to=tensorboard
    python3 scripts/check_tensorboard.py runs/quickstart

Every number of every logged step must be there, once, and nothing else. Exits with 1 at the first difference.
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Tag to key of metrics.jsonl.
TAGS = {
    "train/loss": "loss",
    "train/learning_rate": "learning_rate",
    "train/grad_norm": "grad_norm",
    "train/tokens_per_second": "tokens_per_second",
    "train/epoch": "epoch",
    "eval/loss": "eval_loss",
    "eval/obedience": "obedience",
}


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def main(run):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").open()]
    events = EventAccumulator(str(Path(run, "runs")), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag, key in TAGS.items():
        # The line of step 0 has the evaluation before training, and no epoch that means anything.
        has = [line for line in lines if line.get(key) is not None and (key != "epoch" or line["step"] > 0)]
        expected = [(line["step"], float32(line[key])) for line in has]
        if found.pop(tag, []) != expected:
            sys.exit(f"{tag} differs from {key} in metrics.jsonl")
        print(f"{tag}: {len(expected)} numbers")
    if found:
        sys.exit(f"tags that metrics.jsonl does not know: {sorted(found)}")


if __name__ == "__main__":
    main(sys.argv[1])
