#!/usr/bin/env bash
# What a GPU does with SysGen, beside PyTorch, transformers and peft on the same GPU: whether it computes right, and how fast.
#
#   scripts/gpu.sh                                all of it, at most nine minutes; the same command goes on where it stopped
#   scripts/gpu.sh parity|matmul|train|decode     one part of it; the first time most of it is compiling and choosing kernels
#   scripts/gpu.sh train --again                  figures that are there are measured again
#   scripts/gpu.sh --tiny                         the script itself, on the CPU with tiny models
#
# Needs: cargo build --release --features cuda --bin sysgen-train --bin sysgen-data (or SYSGEN_TRAIN and SYSGEN_DATA),
# the driver, CUDA 13, and a Python (PYTHON, else python3) with torch, transformers and peft. No network.
# Writes one JSON line for each figure to $OUT, else to benches/results/, and prints a table.
# PEAK_TFLOPS names what the GPU can do at best in bfloat16 where scripts/gpu/run.py does not know it; BUDGET the seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" scripts/gpu/run.py "$@"
