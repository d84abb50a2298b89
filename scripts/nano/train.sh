#!/bin/sh
# Makes both nano models from nothing: corpora and sample data, tokenizer, training (about 45 minutes on two cores),
# weights. Needs cargo and a Python with `pip install tokenizers==0.23.3`; PYTHON names it.
set -eu
cd "$(dirname "$0")/../.."
: "${PYTHON:=python3}"
"$PYTHON" -c 'import tokenizers' 2>/dev/null || { echo "train.sh: $PYTHON has no tokenizers: pip install tokenizers==0.23.3, or set PYTHON" >&2; exit 1; }
"$PYTHON" scripts/nano/make_data.py
"$PYTHON" scripts/nano/make_tokenizer.py
cargo run --release --bin sysgen-train -- --config configs/nano.toml "$@"
cargo run --release --bin sysgen-train -- --config configs/nano-wide.toml "$@"
cp runs/nano-wide/export/model.safetensors checkpoints/sysgen-nano/model.safetensors
cargo run --release --bin sysgen-train -- --config configs/nano-plain.toml "$@"
mkdir -p checkpoints/sysgen-nano-plain
cp checkpoints/sysgen-nano/*.json checkpoints/sysgen-nano/chat_template.jinja checkpoints/sysgen-nano-plain/
cp runs/nano-plain/export/model.safetensors checkpoints/sysgen-nano-plain/model.safetensors
du -sk checkpoints/sysgen-nano checkpoints/sysgen-nano-plain
