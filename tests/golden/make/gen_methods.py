"""Ways of training: adapters (rsLoRA, DoRA, fused projections, four-bit bases), NF4, and AdamW with 8-bit states.
output: golden/methods/<case>/{case.json,case.safetensors,adapter_init/,adapter_final/}, golden/methods/{nf4,adamw_8bit}.safetensors
usage: gen_methods.py; needs bitsandbytes beside peft (0.50.2 was used, on the CPU).
The numbers of NF4 and of the 8-bit states are those of plain numpy here. bitsandbytes' four-bit codes are the same; of its
8-bit codes on the CPU about one in a hundred is the neighbour of the nearest one, where a number lies close to the middle.
"""
import numpy as np
import bitsandbytes
import bitsandbytes.functional as bf
from peft import LoraConfig, get_peft_model

from common import *
from gen_train import make_batches, train, lora_params, lr_at

GOLDEN = ROOT
STEPS, BATCH, SEQ = 8, 4, 24
CASES = {
    "rslora_phi4": dict(base="phi4", lora=dict(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear")),
    "dora_qwen2": dict(base="qwen2", lora=dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"])),
    "dora_gemma2": dict(base="gemma2", lora=dict(r=4, lora_alpha=8, use_dora=True, use_rslora=True, target_modules="all-linear")),
    "qlora_llama31": dict(base="llama31", nf4=True, lora=dict(r=4, lora_alpha=8, target_modules="all-linear")),
}


def load(name):
    return AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation="eager")


def nf4(weight):
    """Quantised and made whole again by bitsandbytes, double quantisation included. Blocks run through the rows, as on a
    GPU; the CPU version of bitsandbytes mixes them up where a row is no multiple of 64, so it is given rows of 64."""
    flat = weight.reshape(-1, 64) if weight.numel() % 64 == 0 else weight.reshape(1, -1)
    codes, state = bf.quantize_4bit(flat.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    return codes, state, bf.dequantize_4bit(codes, state).reshape(weight.shape)


def numpy_nf4(weight):
    """The same from the two papers, in float64."""
    table = np.array(bf.get_4bit_type("nf4", device="cpu").tolist(), dtype=np.float64)
    signed = np.array(sorted(numpy_dynamic(True)))
    flat = weight.double().numpy().reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
    scales = np.abs(blocks).max(1)
    codes = np.abs(blocks[:, :, None] / scales[:, None, None] - table).argmin(2)
    mean = scales.mean()
    padded = np.pad(scales - mean, (0, -len(scales) % 256)).reshape(-1, 256)
    outer = np.abs(padded).max(1, keepdims=True)
    kept = signed[np.abs((padded / outer)[:, :, None] - signed).argmin(2)] * outer + mean
    return (table[codes] * kept.reshape(-1)[: len(scales), None]).reshape(-1)[: len(flat)].reshape(weight.shape)


def numpy_dynamic(signed):
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2 ** (exponent + (not signed)) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += list(middles) + ([-x for x in middles] if signed else [])
    return values


def adapter_case(name, case):
    out = GOLDEN / "methods" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    base = load(case["base"])
    if case.get("nf4"):
        for path, module in base.named_modules():
            if isinstance(module, torch.nn.Linear) and path != "lm_head":
                module.weight.data = torch.from_numpy(numpy_nf4(module.weight.data)).float()
    vocab, pad = base.config.vocab_size, base.config.pad_token_id or 0
    batches = make_batches(77 + len(name), STEPS, BATCH, SEQ, vocab, pad)
    torch.manual_seed(5)
    model = get_peft_model(base, LoraConfig(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **case["lora"]))
    save = lambda part: (model.save_pretrained(out / part), (out / part / "README.md").unlink(missing_ok=True))
    save("adapter_init")
    log, evaluated = train(model, batches, lora_params(model))
    save("adapter_final")
    for part in ("adapter_init", "adapter_final"):
        path = out / part / "adapter_config.json"
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = case["base"]
        config["target_modules"] = sorted(config["target_modules"])
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    probe = batches[0][0, :1]
    tensors = dict(zip(("batches.input_ids", "batches.attention_mask", "batches.labels"), batches))
    with torch.no_grad():
        tensors["final_probe_logits"] = model(probe).logits
        merged = model.merge_and_unload()
        tensors["merged_probe_logits"] = merged(probe).logits
    keep = next(n for n, _ in merged.named_parameters() if n.endswith(("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.qkv_proj.weight")))
    tensors[f"merged.{keep}"] = dict(merged.named_parameters())[keep].detach()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "case.safetensors")
    (out / "case.json").write_text(json.dumps(dict(
        base=case["base"], nf4=bool(case.get("nf4")), lora=case["lora"], steps=log, final_eval_loss_on_batches=dict(first=evaluated[0], last=evaluated[1]),
        recipe="as train/: AdamW lr 1e-3, betas .9/.95, eps 1e-8, decay 0.1 on parameters of two dimensions, clip 1.0, 4 warm-up steps, cosine; the bases' frozen weights in float32, or what bitsandbytes makes of their NF4"), indent=1) + "\n")
    print(name, [round(x["loss"], 5) for x in log])


def nf4_case():
    g = gen(11)
    tensors = {}
    for name, weight in dict(small=torch.randn(3, 33, generator=g) * 0.05, wide=torch.randn(160, 176, generator=g) * torch.rand(160, 1, generator=g)).items():
        codes, state, whole = nf4(weight)
        ours = torch.from_numpy(numpy_nf4(weight)).float()
        differing = ((ours - whole).abs() > 1e-6).double().mean().item()
        assert differing < 0.02, differing
        tensors |= {f"{name}.weight": weight, f"{name}.codes": codes.flatten(), f"{name}.dequantised": ours}
    save_file({k: v.contiguous() for k, v in tensors.items()}, GOLDEN / "methods" / "nf4.safetensors")


def numpy_adamw_8bit(parameter, gradients, lr, betas, eps, decay):
    signed, unsigned = (np.array(sorted(numpy_dynamic(s)), dtype=np.float32) for s in (True, False))
    p = parameter.numpy().reshape(-1, 256).copy()
    codes, scales = [np.full(p.shape, 127), np.zeros(p.shape, int)], [np.zeros((len(p), 1), np.float32)] * 2
    nearest = lambda x, table: np.abs(x[:, :, None] - table).argmin(2)
    for step, g in enumerate(gradients.numpy().reshape(len(gradients), -1, 256), 1):
        m = betas[0] * signed[codes[0]] * scales[0] + (1 - betas[0]) * g
        v = betas[1] * unsigned[codes[1]] * scales[1] + (1 - betas[1]) * g * g
        c1, c2 = 1 - betas[0] ** step, 1 - betas[1] ** step
        p -= p * lr * decay
        p -= lr / c1 * m / (np.sqrt(v) / np.sqrt(c2) + eps)
        scales = [np.abs(m).max(1, keepdims=True), np.abs(v).max(1, keepdims=True)]
        codes = [nearest(m / scales[0], signed), nearest(v / scales[1], unsigned)]
    return p.reshape(parameter.shape), codes, scales


def adamw_case():
    g, lr, betas, eps, decay = gen(12), 1e-2, (0.9, 0.95), 1e-8, 0.1
    start = torch.randn(24, 64, generator=g) * 0.1
    gradients = torch.randn(10, 24, 64, generator=g) * torch.rand(10, 24, 1, generator=g)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=lr, betas=betas, eps=eps, weight_decay=decay, min_8bit_size=1)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    ours, codes, scales = numpy_adamw_8bit(start, gradients, lr, betas, eps, decay)
    difference = np.abs(ours - parameter.detach().numpy())
    print("adamw_8bit: bitsandbytes differs in", (difference > 1e-5).mean(), "of the numbers, at most by", difference.max())
    kept = dict(zip(("first", "second"), zip(codes, scales)))
    tensors = {f"{name}_{part}": torch.from_numpy(np.ascontiguousarray(x)).to(dtype) for name, both in kept.items() for part, x, dtype in zip(("codes", "scales"), both, (torch.uint8, torch.float32))}
    save_file(dict(start=start, gradients=gradients, final=torch.from_numpy(ours), bitsandbytes=parameter.detach(), settings=torch.tensor([lr, *betas, eps, decay]), **tensors),
              GOLDEN / "methods" / "adamw_8bit.safetensors")


if __name__ == "__main__":
    for name, case in CASES.items():
        adapter_case(name, case)
    nf4_case()
    adamw_case()
