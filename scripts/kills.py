#!/usr/bin/env python3
"""Kills sysgen-data at random moments and compares what it writes with an undisturbed run.

    cargo build --release --bin sysgen-data
    python3 scripts/kills.py target/release/sysgen-data --rows 2000 --kills 50

Batch size and number of shards change from one start to the next. Afterwards dataset.jsonl and manifest.json must
have the bytes of the undisturbed run and no request may stand in the logs twice. Time lost is what all runs took
together beyond the undisturbed one, starts included.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import time

import killing

CONFIG = "configs/quickstart.toml"


def rows(path, count):
    """The quickstart's rows again and again, each copy with ids of its own."""
    source = [json.loads(line) for line in open("configs/quickstart/instructions.jsonl", encoding="utf-8")]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            row = dict(source[i % len(source)], id=f"row-{i}")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def command(binary, data, output, batch_size, shard=None):
    line = [binary, "--config", CONFIG, "-q", "--set", f"data.path={data}", "--set", f"output_dir={output}"]
    line += ["--set", f"generate.batch_size={batch_size}", "--set", "device=cpu"]
    return line + (["--shard", shard] if shard else [])


def answered(output):
    """How often each request stands in the logs."""
    times = {}
    for path in sorted((output / "data").glob("log*.jsonl")):
        for line in open(path, "rb").read().split(b"\n")[1:-1]:
            entry = json.loads(line)
            place = (entry["row"], entry["phase"], entry["attempt"])
            times[place] = times.get(place, 0) + 1
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/kills")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = pathlib.Path(arguments.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = folder / "rows.jsonl"
    rows(data, arguments.rows)

    calm, killed = folder / "undisturbed", folder / "killed"
    undisturbed = killing.undisturbed(command(arguments.binary, data, calm, 64))
    print(f"undisturbed: {undisturbed:.1f} s")

    start = time.monotonic()
    kills = 0
    while kills < arguments.kills:
        shards = chance.choice([1, 1, 2, 3])
        batch_size = chance.choice([8, 32, 64])
        names = [f"{i + 1}/{shards}" for i in range(shards)] if shards > 1 else [None]
        running = [
            subprocess.Popen(command(arguments.binary, data, killed, batch_size, name)) for name in names
        ]
        # On average the kills are spread over the whole of the work.
        kills += killing.kill_after(running, chance.uniform(0, 2.0 * undisturbed / arguments.kills))
    before = sum(answered(killed).values())
    subprocess.run(command(arguments.binary, data, killed, 64), check=True)
    disturbed = time.monotonic() - start

    names = ["dataset.jsonl", "manifest.json"]
    killing.same(*({name: (output / "data" / name).read_bytes() for name in names} for output in (calm, killed)))
    times = answered(killed)
    twice = [place for place, count in times.items() if count > 1]
    if twice or set(times) != set(answered(calm)):
        raise SystemExit(f"{len(twice)} requests were answered twice, {twice[:3]}")
    print(f"{kills} kills; {before} of {len(times)} answers were there before the last start; none is there twice")
    print(f"disturbed: {disturbed:.1f} s; lost for each kill: {(disturbed - undisturbed) / kills:.2f} s, start included")


if __name__ == "__main__":
    main()
