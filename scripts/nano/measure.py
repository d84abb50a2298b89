"""How good is nano's generated data? Nano's world is small enough to know the truth.

    python3 scripts/nano/measure.py runs/quickstart/data/dataset.jsonl

For every row of a data set that `sysgen-data` made from the sample data: does the answer grant what each phrase of its
system message asks for, is it right, and did the verifier judge the tags as it should have?
"""

import json
import random
import re
import sys
from collections import Counter

import make_data
import tags


def patterns():
    """Every phrase the corpus can hold, as (regular expression, tag, kind)."""
    by_tag = {"Style": tags.STYLES, "Action": tags.ACTIONS, "Format": tags.FORMATS, "Content": tags.CONTENTS | {"exact": tags.EXACT_SENTENCE},
              "Role": {"role": tags.ROLES}, "Task": {"task": tags.TASKS}, "Tool": {"tool": tags.TOOLS},
              "Background": {"company": tags.COMPANIES, "user": tags.USERS, "audience": tags.AUDIENCES}}
    return [(re.compile(re.escape(phrase).replace(r"\ a\ \{\}", " an? {}").replace(r"\{\}", "{}").replace("{}", "(.+)")), tag, kind)
            for tag, kinds in by_tag.items() for kind, phrases in kinds.items() for phrase in phrases]


PATTERNS = patterns()


def meaning(phrase):
    """(tag, kind, words) of a phrase; None when nano made it up."""
    for pattern, tag, kind in PATTERNS:
        found = pattern.fullmatch(phrase)
        if found:
            return tag, kind, found[1] if found.groups() else ""
    return None


def granted(kind, words, item, answer):
    """Does the answer show what the phrase asked for? None where there is nothing to see."""
    lines = answer.splitlines()
    tests = {
        "role": lambda: f"{words}, I am glad to help" in answer,
        "tool": lambda: f"I used the {words}." in answer,
        "audience": lambda: f"This is for {words}." in answer,
        "company": lambda: f"Welcome to {words}." in answer,
        "user": lambda: f"Hello {words}." in answer,
        "exact": lambda: words in answer,
        "friendly": lambda: "Happy to help!" in answer,
        "formal": lambda: "Good day." in answer and "Kind regards." in answer,
        "simple": lambda: "In easy words:" in answer,
        "excited": lambda: "!" in answer,
        "steps": lambda: "First, " in answer and "Then, " in answer,
        "check": lambda: "I checked this twice." in answer,
        "followup": lambda: f"Would you like to know more about {item.topic}?" in answer,
        "restate": lambda: f"You asked about {item.topic}." in answer,
        "encourage": lambda: "You can do it!" in answer,
        "bullets": lambda: any(line.startswith("- ") for line in lines),
        "numbered": lambda: any(line.startswith("1. ") for line in lines),
        "json": lambda: is_json(answer),
        "answer_line": lambda: lines[-1].startswith("Answer: "),
        "title": lambda: lines[0].lower() == item.topic.lower(),
        "paragraph": lambda: len(lines) == 1,
    }
    if kind in item.extras:
        return item.extras[kind][:-1] in answer
    return tests[kind]() if kind in tests else None


def is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sample, items = make_data.sample_rows(random.Random(7))
    item_of = {row["question"]: items[question] for row in sample for question in items if row["question"].endswith(question)}
    rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
    yes, seen, verdicts, right, unknown = Counter(), Counter(), Counter(), 0, 0
    for row in rows:
        said = {message["role"]: message["content"] for message in row["messages"]}
        item, answer = item_of[said["user"]], said["assistant"]
        right += item.short in answer
        kept = {verdict["tag"]: verdict for verdict in row["sysgen"]["tags"]}
        for tag, phrase in re.findall(r"<<(\w+)>>([^<]+)<</\1>>", row["sysgen"].get("annotated") or ""):
            known = meaning(phrase)
            if known is None:
                unknown += 1
                continue
            if tag in kept:
                verdicts["fits" if known[0] == tag else "does not fit", kept[tag]["label"]] += 1
            if kept.get(tag, {}).get("kept"):
                grants = granted(*known[1:], item, answer)
                if grants is not None:
                    seen[known[0]] += 1
                    yes[known[0]] += grants
    print(f"{len(rows)} rows; the right fact is in {right / len(rows):.0%} of the answers")
    print("phrases whose wish the answer grants: " + ", ".join(f"{tag} {yes[tag]}/{seen[tag]}" for tag in tags.CANONICAL_ORDER if seen[tag])
          + f"; all {sum(yes.values()) / max(1, sum(seen.values())):.0%}")
    print("verdicts: " + ", ".join(f"a phrase that {fits}: {label} {count}" for (fits, label), count in sorted(verdicts.items())))
    print(f"phrases nano made up: {unknown}")


if __name__ == "__main__":
    main()
