"""Fills the prompt files of the quickstart as `sysgen-data` does (crates/sysgen-data/src/prompt.rs), so that nano
learns the very prompts it will meet: a part after a line `--- system ---`, one after `--- user ---`, both trimmed,
and places such as `{question}` filled in one pass."""

import re
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "quickstart"


@lru_cache(maxsize=None)
def parts(name):
    lines = {"system": [], "user": []}
    part = "user"
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        mark = re.fullmatch(r"--- (system|user) ---", line.strip())
        if mark:
            part = mark[1]
        else:
            lines[part].append(line)
    return {role: "\n".join(text).strip() for role, text in lines.items()}


def messages(name, **values):
    """The chat messages of the prompt file `name` with its places filled in."""
    fill = lambda text: re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), text)
    return [{"role": role, "content": fill(text)} for role, text in parts(name).items() if text]
