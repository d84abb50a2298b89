"""The same work with torch, transformers and peft: bfloat16 on a GPU, sdpa, gradient checkpointing. One JSON line each.
Random weights in the shapes of a bare config.json, made on the device. Flags as those of `sysgen-train bench` and `sysgen-data bench`."""
import argparse, json, time

ap = argparse.ArgumentParser()
ap.add_argument("part", choices=["matmul", "train", "decode"])
ap.add_argument("--model")
ap.add_argument("--device", default="cuda")
ap.add_argument("--matmul", default="")
ap.add_argument("--dtype", default="bf16")
ap.add_argument("--method", default="full")
ap.add_argument("--peak-tflops", type=float)
for flag, default in dict(batch=1, seq=4096, steps=5, prompt=32, new=128, repeats=2).items():
    ap.add_argument(f"--{flag}", type=int, default=default)
A = ap.parse_args()

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
CUDA = A.device.startswith("cuda")
DTYPE = torch.bfloat16 if CUDA else torch.float32
median = lambda numbers: sorted(numbers)[len(numbers) // 2]
say = lambda **figures: print(json.dumps(dict(device=torch.cuda.get_device_name() if CUDA else "cpu", torch=torch.__version__, **figures)), flush=True)
memory = lambda: dict(peak_device_memory_mib=torch.cuda.max_memory_reserved() >> 20) if CUDA else {}


def clock(work):
    """Seconds of a call, with everything that it started on the device."""
    if CUDA:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def model():
    config = AutoConfig.for_model(**json.load(open(A.model)))
    torch.manual_seed(0)
    with torch.device(A.device):
        try:
            return AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa")
        except ValueError:  # Gemma-2's soft-cap on the scores has no sdpa
            return AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="eager")


def about(m):
    return dict(model=A.model, parameters=sum(p.numel() for p in m.parameters()), weights="random", dtype=str(DTYPE).removeprefix("torch."),
                attention=m.config._attn_implementation, transformers=transformers.__version__)


def matmul():
    dtype = dict(bf16=torch.bfloat16, f32=torch.float32)[A.dtype]
    for product in A.matmul.split(","):
        rows, inner, columns = map(int, product.split("x"))
        x, w = (torch.randn(size, inner, device=A.device, dtype=dtype) for size in (rows, columns))
        work = lambda: [x @ w.T for _ in range(4)]
        clock(work)
        seconds = [clock(work) / 4 for _ in range(5)]
        tflops = lambda s: round(2 * rows * inner * columns / s / 1e12, 4)
        say(matmul=[rows, inner, columns], dtype=str(dtype).removeprefix("torch."), seconds_median=median(seconds), tflops_median=tflops(median(seconds)), tflops_best=tflops(min(seconds)))


def flops(config, tokens, method):
    """As crates/sysgen-train/src/flops.rs counts them: each matrix once a token, the table never, attention causally."""
    heads, dim = config.num_attention_heads, config.hidden_size
    head = getattr(config, "head_dim", None) or dim // heads
    layer = 2 * dim * heads * head + 2 * dim * config.num_key_value_heads * head + 3 * dim * config.intermediate_size
    weights = config.num_hidden_layers * layer * tokens + config.vocab_size * dim * (tokens - A.batch)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or A.seq
    seen = sum(sum(min(t, window if kind == "sliding_attention" else A.seq) for t in range(1, A.seq + 1)) / A.seq for kind in kinds)
    return (4 if method == "lora" else 6) * weights + 12 * heads * head * tokens * seen


def train():
    m = model().train()
    config, described = m.config, about(m)
    m.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    if A.method == "lora":
        from peft import LoraConfig, get_peft_model
        m = get_peft_model(m, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    learnt = [p for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=CUDA)
    ids = torch.randint(0, config.vocab_size, (4, A.batch, A.seq), device=A.device)
    losses, seconds = [], []

    def step():
        batch = ids[len(seconds) % 4]
        optimizer.zero_grad(set_to_none=True)
        loss = m(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for _ in range(A.steps):
        seconds.append(clock(step))
    timed, tokens = seconds[1:], A.batch * A.seq
    mfu = {} if A.peak_tflops is None else dict(mfu=round(flops(config, tokens, A.method) / median(timed) / (A.peak_tflops * 1e12), 4))
    say(**described, method=A.method, gradient_checkpointing=True, batch=[A.batch, A.seq], steps_timed=len(timed), all_step_s=[round(s, 4) for s in seconds],
        step_s_median=round(median(timed), 5), step_s_min=round(min(timed), 5), tokens_per_s_median=round(tokens / median(timed), 1),
        tokens_per_s_best=round(tokens / min(timed), 1), first_losses=losses[:4], **mfu, **memory())


def decode():
    m = model().eval()
    m.generation_config.eos_token_id = None
    m.generation_config.pad_token_id = 0
    prompt = torch.randint(0, m.config.vocab_size, (A.batch, A.prompt), device=A.device)
    work = lambda: m.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=A.new, do_sample=False)
    with torch.no_grad():
        clock(work)
        seconds = [clock(work) for _ in range(A.repeats)]
    written = A.batch * A.new
    say(**about(m), batch=A.batch, prompt=A.prompt, new=A.new, seconds=[round(s, 4) for s in seconds],
        tokens_per_s_best=round(written / min(seconds), 1), tokens_per_s_median=round(written / median(seconds), 1), **memory())


dict(matmul=matmul, train=train, decode=decode)[A.part]()
