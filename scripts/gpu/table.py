"""The figures of a results file as a Markdown table, ours beside PyTorch's. usage: table.py FILE.jsonl"""
import json, pathlib, sys

# The number that a figure is about, by what a record holds: key, unit.
ABOUT = [("tokens_per_s_median", "tokens/s"), ("tflops_median", "TFLOP/s")]


def records(path):
    """The lines of a results file; one that was cut off is left out."""
    path, found = pathlib.Path(path), []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def name(record):
    return record["figure"] + ("/" + "x".join(map(str, record["matmul"])) if "matmul" in record else "")


def number(record):
    if record is None or record["status"] != "ok":
        return None
    return next((record[key] for key, _ in ABOUT if key in record), None)


def cell(record):
    if record is None:
        return "-"
    if record["status"] != "ok":
        return f"{record['status']}: {record['reason'][:60]}"
    unit = next((unit for key, unit in ABOUT if key in record), None)
    if unit is None:
        return f"{record['checked']} checked, {record['out_of_tolerance']} wrong"
    parts = [f"{number(record):,} {unit}"]
    if record.get("gradient_checkpointing") is False:
        parts.append("all activations kept")
    if record.get("mfu"):
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    if record.get("peak_device_memory_mib"):
        parts.append(f"{record['peak_device_memory_mib'] / 1024:.1f} GiB")
    return ", ".join(parts)


def table(path):
    """One row for each figure; of each side the newest record."""
    rows = {}
    for record in records(path):
        rows.setdefault(name(record), {})[record["side"]] = record
    # A matmul that failed as a whole has no shape; its shapes were measured later.
    measured = {n.rsplit("/", 1)[0] for n in rows if n.count("/") == 2 and n.startswith("matmul")}
    lines = ["| figure | SysGen | PyTorch | ratio |", "|---|---|---|---|"]
    for figure, sides in rows.items():
        if figure in measured:
            continue
        ours, theirs = number(sides.get("sysgen")), number(sides.get("torch"))
        ratio = f"{ours / theirs:.2f}" if ours is not None and theirs else "-"
        lines.append(f"| {figure} | {cell(sides.get('sysgen'))} | {cell(sides.get('torch'))} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1]))
