#!/bin/sh
# Makes checkpoints/sysgen-nano from nothing: corpus and sample data, tokenizer, training (about 20 minutes on two
# cores), weights. Needs cargo and a Python with `pip install tokenizers==0.23.3`; PYTHON names it.
set -eu
cd "$(dirname "$0")/../.."
: "${PYTHON:=python3}"
"$PYTHON" -c 'import tokenizers' 2>/dev/null || { echo "train.sh: $PYTHON has no tokenizers: pip install tokenizers==0.23.3, or set PYTHON" >&2; exit 1; }
"$PYTHON" scripts/nano/make_data.py
"$PYTHON" scripts/nano/make_tokenizer.py
cargo run --release --bin sysgen-train -- --config configs/nano.toml "$@"
cp runs/nano/export/model.safetensors checkpoints/sysgen-nano/model.safetensors
du -sk checkpoints/sysgen-nano
