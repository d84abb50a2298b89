#!/usr/bin/env bash
# The figures of sysgen-train on the work of a TRL run: supervised tokens per second, start to first step, peak memory.
#
#     scripts/bench_trl.sh target/release/sysgen-train WORK [full|lora|packed|packed-lora]…
#
# WORK holds what the TRL side wrote: model/ (config, weights, tokenizer, template) and rows.jsonl (messages). Prints one line of
# JSON for each variant. Rows and their order differ from TRL's sampler; batch, length, optimizer and what is learnt do not.
set -euo pipefail
program=$(realpath "$1")
work=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
variants=("$@")
[ ${#variants[@]} -gt 0 ] || variants=(full lora packed packed-lora)
for variant in "${variants[@]}"; do
  sets=()
  case $variant in
    full) ;;
    lora) sets=(--set train.method=lora) ;;
    packed) sets=(--set train.packing=true) ;;
    packed-lora) sets=(--set train.packing=true --set train.method=lora) ;;
    *) echo "unknown variant $variant; full, lora, packed or packed-lora" >&2; exit 2 ;;
  esac
  output=$(mktemp -d)
  "$program" -q --config scripts/bench_trl.toml --set "output_dir=$output" --set "model.path=$work/model" \
    --set "data.path=$work/rows.jsonl" "${sets[@]}" > /dev/null
  python3 - "$variant" "$output" <<'PYTHON'
import json, sys
variant, output = sys.argv[1:]
summary = json.load(open(f"{output}/summary.json"))
lines = [json.loads(line) for line in open(f"{output}/metrics.jsonl")]
steps = [line for line in lines if "loss" in line]
# The first step warms up, on both sides.
seconds = steps[-1]["seconds"] - steps[0]["seconds"]
print(json.dumps({
    "variant": variant,
    "supervised_tokens_per_s": round(sum(line["supervised_tokens"] for line in steps[1:]) / seconds, 1),
    "tokens_per_s": round((steps[-1]["num_tokens"] - steps[0]["num_tokens"]) / seconds, 1),
    "start_to_first_step_s": round(summary["start_to_first_step_seconds"], 2),
    "peak_rss_mib": summary["peak_memory_mib"],
    "losses": [round(line["loss"], 4) for line in steps[:4]],
}))
PYTHON
  rm -rf "$output"
done
