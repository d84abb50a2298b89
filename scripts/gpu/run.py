"""Runs the figures of scripts/gpu.sh one after the other, each in a process of its own with a time limit."""
import argparse, datetime, json, os, pathlib, re, subprocess, sys, time

from table import records, table

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
PARTS = ["parity", "matmul", "train", "decode"]
# Dense bfloat16 TFLOP/s of the data sheets; the first name that is part of the GPU's counts.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "RTX 5090": 209,
               "RTX 4090": 165, "L4": 121, "A10": 125}
ONE_FIGURE_S = 150  # the longest a figure may take; the first time most of it is compiling and choosing kernels, which are kept
LEAST_S = 15        # less than this is left: not begun
# What `sysgen-train doctor --only` checks, a process each: what was found stays found, and kernels that were chosen are kept.
CHECKS = dict(models="models", elementwise="rms_norm,rope,swiglu,geglu_tanh,dropout", optimizer="adamw_step,adamw_8bit_step,squared_norm",
              linear="linear", adapters="lora_linear,nf4_linear", loss="linear_cross_entropy", distillation="linear_distillation,distillation_of_spans",
              attention="attention", paged_attention="paged_attention")

ap = argparse.ArgumentParser()
ap.add_argument("part", nargs="?", default="all", choices=PARTS + ["all"])
ap.add_argument("--again", action="store_true", help="measure figures again that are there")
ap.add_argument("--tiny", action="store_true", help="tiny models on the CPU: proves the script, not the GPU")
A = ap.parse_args()


def binary(variable, name):
    built = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / name
    path = pathlib.Path(os.environ.get(variable) or built).resolve()
    if not path.is_file():
        sys.exit(f"error: {path} is not there; build it with `cargo build --release --features cuda --bin {name}`, or name it in {variable}")
    return str(path)


def gpu_name():
    if A.tiny:
        return "cpu"
    try:
        names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: `nvidia-smi` lists no GPU; use --tiny to try the script on the CPU")
    return names.stdout.splitlines()[0].strip()


def torch_problem():
    """Why the PyTorch side cannot run; None where it can."""
    test = "import torch, transformers, peft" + ("" if A.tiny else "; assert torch.cuda.is_available(), 'torch finds no GPU'")
    done = subprocess.run([sys.executable, "-c", test], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


TRAIN, DATA = binary("SYSGEN_TRAIN", "sysgen-train"), binary("SYSGEN_DATA", "sysgen-data")
GPU = gpu_name()
PEAK = os.environ.get("PEAK_TFLOPS") or next((str(v) for k, v in PEAK_TFLOPS.items() if k in GPU), None)
RESULTS = pathlib.Path(os.environ.get("OUT") or ROOT / "benches" / "results").resolve()
FILE = RESULTS / f"{datetime.date.today()}-{re.sub(r'[^A-Za-z0-9]+', '-', GPU).strip('-').lower()}.jsonl"
# Kernels that were compiled and chosen once are kept here: CubeCL reads cubecl.toml from the working directory.
CACHE = RESULTS / "cubecl"


def figures():
    """(figure, side, command) of everything, the cheap and the telling first."""
    torch_side = [sys.executable, str(HERE / "torch_side.py")]
    if A.tiny:
        device, seq, steps, new = "cpu", 32, 3, 8
        shapes, formats, batches = ["32x64x32"], ["f32"], [1, 4]
        models = [("llama31", ROOT / "tests/golden/llama31/config.json")]
    else:
        device, seq, steps, new = "cuda", 4096, 5, 128
        shapes = ["4096x4096x4096", "4096x4096x14336", "4096x14336x4096", "4096x4096x128256"]
        formats, batches = ["bf16", "f32"], [1, 32, 256]
        models = [(name, HERE / "configs" / f"{name}.json") for name in ("llama-3.1-8b", "gemma-2-9b", "phi-4")]
    peak = ["--peak-tflops", PEAK] if PEAK else []
    device = ["--device", device]
    doctor = [TRAIN, "doctor", *device, "--golden", str(ROOT / "tests/golden"), "--json"]
    checks = [(f"parity/{name}", "sysgen", [*doctor, "--only", only]) for name, only in CHECKS.items()]
    # Whole models say most in the least time; ops of many shapes take minutes while their kernels are compiled: last.
    yield from checks[:4]
    for dtype in formats:
        work = ["--matmul", ",".join(shapes), "--dtype", dtype, *device]
        yield f"matmul/{dtype}", "sysgen", [TRAIN, "bench", *work, "--json"]
        yield f"matmul/{dtype}", "torch", [*torch_side, "matmul", *work]
    for name, path in models:
        for method in ("lora", "full"):
            work = ["--model", str(path), "--batch", "1", "--seq", str(seq), "--steps", str(steps), "--method", method, *device, *peak]
            # Both sides' weights are bfloat16 on a GPU. PyTorch's moments are, too; ours are f32, or of 8 bits where these would
            # not fit: 14 bytes a parameter with a gradient of every one.
            ours = [] if A.tiny else ["--dtype", "bf16"]
            if method == "full" and name != "llama-3.1-8b":
                ours += ["--optim", "adamw_8bit", "--optimizer-in-backward"]
            yield f"train/{name}/{method}", "sysgen", [TRAIN, "bench", *work, *ours, "--gradient-checkpointing", "--json"]
            yield f"train/{name}/{method}", "torch", [*torch_side, "train", *work]
        for batch in batches if name == models[0][0] else []:
            work = ["--model", str(path), "--batch", str(batch), "--prompt", "32", "--new", str(new), "--repeats", "2", *device]
            yield f"decode/{name}/{batch}", "sysgen", [DATA, "bench", *work, "--json"]
            yield f"decode/{name}/{batch}", "torch", [*torch_side, "decode", *work]
            # The same with every kernel started by itself: what CUDA graphs are worth.
            yield f"decode/{name}/{batch}/eager", "sysgen", [DATA, "bench", *work, "--enforce-eager", "--json"]
    yield from checks[4:]


def summary_of_parity(lines):
    """The doctor's many figures as one; all of them are kept beside the results."""
    with FILE.with_suffix(".doctor.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    checked = [line for line in lines if line["check"] != "machine"]
    share = lambda line: (line["error"] if line["error"] is not None else float("inf")) / max(line["tolerance"], 1e-30)
    worst = max(checked, key=share, default=None)
    return [dict(checked=len(checked), out_of_tolerance=sum(not line["ok"] for line in checked),
                 worst=worst and f"{worst['name']} {worst['case']}: {worst['error']} of {worst['tolerance']}")]


def measure(figure, side, command, limit):
    """The lines of a command, or why there are none."""
    started, late = time.monotonic(), False
    # Hundreds of small shapes are checked once each: for them any kernel that is not slow will do.
    fewer = {"CUBECL_AUTOTUNE_LEVEL": "0"} if figure.startswith("parity") else {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CACHE, env={**os.environ, **fewer})
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()  # its memory on the GPU has to be free before the next one begins
        out, err = process.communicate()
        late = True
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    if figure.startswith("parity") and lines:
        lines = summary_of_parity(lines)
    took = dict(wall_s=round(time.monotonic() - started, 1))
    if late:  # what was measured until then tells something, too
        reason = f"not done after {limit:.0f} s; kernels chosen so far are kept, the same command goes on"
        return [dict(status="failed", reason=reason, **took, **line) for line in lines or [{}]]
    if process.returncode == 0 and lines:
        return [dict(status="ok", **took, **line) for line in lines]
    said = [line for line in err.splitlines() if line.strip()]
    reason = next((line for line in said if line.startswith("error: ")), said[-1] if said else f"exit code {process.returncode}")
    status = "skipped" if "not built yet" in reason else "failed"
    return [dict(status=status, reason=reason.removeprefix("error: "), **took, **line) for line in lines or [{}]]


def main():
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "cubecl.toml").write_text('[environment]\npath = "local"\n\n[compilation]\ncache = true\n')
    if FILE.exists() and not FILE.read_text().endswith("\n"):
        FILE.open("a").write("\n")  # the last line was cut off
    finished = {(r["figure"], r["side"]) for r in records(FILE) if r["status"] == "ok"}
    begun, budget = time.monotonic(), float(os.environ.get("BUDGET", 530))
    no_torch, failed = torch_problem(), 0
    if no_torch:
        print(f"SKIPPED: the PyTorch side: {no_torch} ({sys.executable}; PYTHON names another one)", flush=True)
    for figure, side, command in figures():
        if A.part not in ("all", figure.split("/")[0]) or ((figure, side) in finished and not A.again):
            continue
        left = budget - (time.monotonic() - begun)
        if left < LEAST_S:
            print(f"{left:.0f} s are left: the same command goes on with {figure}", flush=True)
            break
        if side == "torch" and no_torch:
            told = [dict(status="skipped", reason=no_torch)]
        else:
            told = measure(figure, side, command, min(left, ONE_FIGURE_S))
        # The newest line of a figure counts; the file is only ever appended to.
        with FILE.open("a") as file:
            for record in told:
                print(json.dumps(dict(figure=figure, side=side, gpu=GPU, **record)), file=file)
        first = told[0]
        failed += first["status"] == "failed" and side == "sysgen"
        print(f"{figure:32} {side:7} {first['status']:8} {first.get('reason', '')}", flush=True)
    print("\n" + table(FILE))
    if A.tiny:
        print("\nTiny models on the CPU: this shows that the script works, nothing else.")
    print(f"\n{FILE}")
    # On a GPU a figure may fail for want of memory and the rest still tell; tiny models must all go through.
    return 1 if failed and (A.tiny or A.part == "parity") else 0


sys.exit(main())
