"""Writes the quickstart's sample data set and the corpora that the nano models are trained on.

    python3 scripts/nano/make_data.py            (Python 3.9 or newer, nothing else; the same bytes every time)

* configs/quickstart/instructions.jsonl: questions and answers without system messages. None of its questions
  occurs in the corpus, with or without the same answer.
* runs/nano/corpus.jsonl: conversations of five tasks: draft a tagged system message, verify one, answer under
  one, answer without one, and repeat words: looking back and copying is what all the others need.
* runs/nano-wide/corpus.jsonl: a second, shorter lesson for the same model: some of these tasks again, and drafts and
  answers for long text from outside its world, so that it stays in form where it knows nothing, and says so.
* runs/nano-plain/corpus.jsonl: for the model that the quickstart teaches. It has the last two of these tasks only, so
  that this model knows the same world and has never seen a system message.
"""

import argparse
import json
import random
from pathlib import Path

import answers
import facts
import prompts
import tags
from domains import DOMAINS, Item

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_ROWS = 240
CORPUS_ROWS = {"draft": 13000, "verify": 11000, "respond": 25000, "plain": 4000, "repeat": 6000}
WIDE_CORPUS_ROWS = {"draft": 2500, "verify": 2000, "respond": 4000, "plain": 500, "far draft": 3000, "far respond": 1500}
PLAIN_CORPUS_ROWS = {"plain": 26000, "repeat": 8000}

# Words of the tables, for the task of repeating.
TABLES = [facts.DISHES, facts.COUNTRIES, facts.ANIMALS, facts.SCIENCE, facts.ADJECTIVES, facts.PLACES, facts.INSTRUMENTS, facts.PLANTS]
WORDS = sorted({word for rows in TABLES for row in rows for cell in row for word in cell.replace(",", "").split()}
               | set(facts.NAMES + facts.THINGS + tags.COMPANY_FIRST + tags.COMPANY_LAST + tags.ADJECTIVES))

# How people begin when they ask. A question counts as known to the corpus with any of these before it.
BEGINNINGS = [""] * 15 + ["Hello! ", "Quick question: ", "Please help me. ", "I am curious. ", "A friend asked me this. "]

# Of all drafts, so many hold a phrase under a wrong tag, or one that the filter has to reject: as real drafts do.
WRONG_TAG_RATE = 0.06
BROKEN_TAG_RATE = 0.05
# Of all messages to verify, so many hold a phrase under a wrong tag.
FAULT_RATE = 0.45


def chance(rng, probability):
    return rng.random() < probability


def draw_item(rng, domain, forbidden):
    """An item whose question is not in `forbidden`, and the question as it is asked."""
    while True:
        item = DOMAINS[domain].draw(rng)
        if item.question not in forbidden:
            return item, rng.choice(BEGINNINGS) + item.question


def original_wishes(item, rng):
    """The shape in which people answer when no system message asks for one."""
    procedural = DOMAINS[item.domain].procedural
    formats = ["title"] if item.domain == "writing" else ["bullets", "numbered", "answer_line"]
    while True:
        wishes = []
        if chance(rng, 0.6):
            wishes.append(tags.wish("Style", item, rng, rng.choice(["brief", "brief", "friendly", "simple", "excited"])))
        if chance(rng, 0.5):
            wishes.append(tags.wish("Format", item, rng, rng.choice(formats)))
        if chance(rng, 0.45):
            wishes.append(tags.wish("Action", item, rng, rng.choice(["steps"] * 4 + ["followup", "check"] if procedural else ["followup"] * 5 + ["check"])))
        if chance(rng, 0.3):
            wishes.append(tags.wish("Content", item, rng, rng.choice(sorted(item.extras))))
        if tags.compatible(wishes):
            return wishes


def drafted_wishes(item, seen, rng):
    """What a draft says: mostly what the answer shows, and more that suits the question. Three to six phrases."""
    while True:
        wishes = [w for w in seen if chance(rng, 0.9)]
        tagged = {w.tag for w in wishes}
        for tag, probability in [("Task", 0.9), ("Role", 0.75), ("Background", 0.4), ("Tool", 0.35), ("Content", 0.2),
                                 ("Style", 0.2), ("Action", 0.15), ("Format", 0.15)]:
            if tag not in tagged and chance(rng, probability):
                wishes.append(tags.wish(tag, item, rng))
        wishes += tags.second_content(wishes, item, rng)
        if 3 <= len(wishes) <= 6 and tags.compatible(wishes):
            return wishes


# Drafts are written in the order in which people tend to write; putting them in order is the filter's work.
DRAFT_ORDER = ["Role", "Background", "Task", "Tool", "Content", "Action", "Style", "Format"]


def draft_text(wishes, rng):
    wishes = sorted(wishes, key=lambda w: DRAFT_ORDER.index(w.tag))
    lines = [tags.annotated([w]) for w in wishes]
    i = rng.randrange(len(lines))
    if chance(rng, WRONG_TAG_RATE):
        lines[i] = lines[i].replace(wishes[i].tag, rng.choice([tag for tag in DRAFT_ORDER if tag != wishes[i].tag]))
    elif chance(rng, BROKEN_TAG_RATE):
        name = wishes[i].tag
        lines[i] = rng.choice([f"<<{name}>>{wishes[i].phrase}", f"<<Example>>{wishes[i].phrase}<</Example>>", wishes[i].phrase])
    return "\n".join(lines)


def draft_row(item, question, rng):
    seen = original_wishes(item, rng)
    prompt = prompts.messages("draft.txt", question=question, answer=answers.answer(item, seen))
    return prompt + [{"role": "assistant", "content": draft_text(drafted_wishes(item, seen, rng), rng)}]


def verify_row(item, rng):
    """A filtered message, perhaps with a fault, and the eight labels that are right for it."""
    placed = {}     # the tag that phrases stand under -> the phrases
    for w in tags.wishes_for(item, some_tags(rng, 2, 6), rng):
        placed.setdefault(w.tag, []).append(w)
    if chance(rng, FAULT_RATE):
        one, other = rng.sample(sorted(placed), 2)
        absent = sorted(set(tags.PROMPT_ORDER) - set(placed))
        fault = rng.choice(["swap", "move", "replace"])
        if fault == "swap":
            placed[one], placed[other] = placed[other], placed[one]
        elif fault == "move":
            placed[rng.choice(absent)] = placed.pop(one)
        else:
            placed[one] = [tags.wish(rng.choice(absent), item, rng)]
    lines = [f"<<{tag}>>{w.phrase}<</{tag}>>" for tag in tags.CANONICAL_ORDER for w in placed.get(tag, [])]
    labels = {tag: "Good" if placed[tag][0].tag == tag else "Bad" for tag in placed}
    prompt = prompts.messages("verify.txt", filtered="\n".join(lines), annotated="\n".join(lines))
    return prompt + [{"role": "assistant", "content": "\n".join(f"<<{tag}>>: {labels.get(tag, 'None')}" for tag in tags.PROMPT_ORDER)}]


def some_tags(rng, fewest, most):
    """A set of tags of which Role and Task are the most common."""
    weights = {"Role": 3, "Task": 4, "Content": 2, "Style": 2, "Action": 2, "Background": 2, "Tool": 1.5, "Format": 2}
    # Weighted drawing without replacement (Efraimidis and Spirakis): the largest of u^(1/weight).
    keyed = sorted(weights, key=lambda tag: rng.random() ** (1 / weights[tag]), reverse=True)
    return keyed[:rng.randint(fewest, most)]


def respond_row(item, question, rng):
    wishes = tags.ordered(tags.wishes_for(item, some_tags(rng, 2, 6), rng))
    return [{"role": "system", "content": tags.system_text(wishes)}, {"role": "user", "content": question},
            {"role": "assistant", "content": answers.answer(item, wishes)}]


def far_respond_row(rng):
    item = far_item(rng)
    return respond_row(item, item.question, rng)


def plain_row(item, question, rng):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answers.answer(item, original_wishes(item, rng))}]


REPEAT = ["Repeat these words: {}", "Say this again: {}", "Write the same words once more: {}", "{} Now you."]


def repeat_row(rng):
    """Random words leave nothing to guess, so a model that learns them has learned to look back."""
    said = " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 16)))
    return [{"role": "user", "content": rng.choice(REPEAT).format(said)}, {"role": "assistant", "content": said}]


SYLLABLES = "ba co de fi gu ha in jo ka le mi no or pe qu ri so ta un ve wa ex yo za str pl th ing er tion ment ly ness".split()
LITTLE_WORDS = "the a of to and in is that it for was on are with as his they be at one have this from or had by but some what there we can out other were all your when up use how each she which their if will".split()
MARKS = [".", ",", "?", "!", ":", ";", " -", " (", ")", "\n", "\n\n", " =", " +", " {", "}", " <", ">", '"', "'", " #", " *", "/"]


def far_text(rng, words):
    """Text of no world: little words, made-up words, names, numbers and marks."""
    pieces = []
    for _ in range(words):
        kind = rng.random()
        if kind < 0.4:
            word = rng.choice(LITTLE_WORDS)
        elif kind < 0.75:
            word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 4)))
        elif kind < 0.93:
            word = rng.choice(WORDS)
        else:
            word = str(rng.randint(0, 10 ** rng.randint(1, 4)))
        pieces.append((word.capitalize() if chance(rng, 0.12) else word) + (rng.choice(MARKS) if chance(rng, 0.15) else ""))
    return " ".join(pieces)


def far_item(rng):
    """An item that nano knows nothing about. Its domain only lends roles, tools and readers."""
    question = far_text(rng, rng.choice([8, 15, 30, 60, 100])) + rng.choice(["?", "?", "."])
    return Item(rng.choice(sorted(DOMAINS)), "this", question, rng.choice(["answer the user", "help the user", "reply to the question"]),
                "I do not know the answer to this.", ["it is outside of what I have learned"], "unknown", {"word": "The key word is unknown."})


def far_draft_row(rng):
    item = far_item(rng)
    prompt = prompts.messages("draft.txt", question=item.question, answer=far_text(rng, rng.choice([1, 5, 20, 50, 100, 200])))
    wishes = tags.wishes_for(item, some_tags(rng, 3, 5), rng)
    return prompt + [{"role": "assistant", "content": draft_text(wishes, rng)}]


def sample_rows(rng):
    """The same number of rows of every domain, all questions different, topics as varied as the domain allows; and the
    items by their questions."""
    rows, items = [], {}
    names = list(DOMAINS)
    topics = {name: [] for name in names}
    for i in range(SAMPLE_ROWS):
        name = names[i % len(names)]
        for attempt in range(1000):
            item, question = draw_item(rng, name, items)
            # A topic comes back only when the domain has few others left.
            if item.topic not in topics[name][-(12 - attempt // 50):]:
                break
        topics[name].append(item.topic)
        items[item.question] = item
        answer = answers.answer(item, original_wishes(item, rng))
        rows.append({"id": f"{name}-{len(topics[name]):02}", "domain": name, "question": question, "answer": answer})
    rng.shuffle(rows)
    return rows, items


def corpus_rows(rng, forbidden, counts, scale):
    kinds = [kind for kind, count in counts.items() for _ in range(round(count * scale))]
    # Sums need more practice than facts.
    domains = sorted(DOMAINS) + ["arithmetic"]
    rng.shuffle(kinds)
    make = {"draft": draft_row, "respond": respond_row, "plain": plain_row, "verify": lambda item, _, rng: verify_row(item, rng),
            "repeat": lambda _item, _question, rng: repeat_row(rng), "far draft": lambda _item, _question, rng: far_draft_row(rng),
            "far respond": lambda _item, _question, rng: far_respond_row(rng)}
    for kind in kinds:
        item, question = draw_item(rng, rng.choice(domains), forbidden)
        yield {"task": kind, "messages": make[kind](item, question, rng)}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sample", type=Path, default=ROOT / "configs/quickstart/instructions.jsonl", help="where the sample data set goes")
    arguments.add_argument("--corpus", type=Path, default=ROOT / "runs/nano/corpus.jsonl", help="where the training corpus goes")
    arguments.add_argument("--wide", type=Path, default=ROOT / "runs/nano-wide/corpus.jsonl", help="where the corpus of the second lesson goes")
    arguments.add_argument("--plain", type=Path, default=ROOT / "runs/nano-plain/corpus.jsonl", help="where the corpus without system messages goes")
    arguments.add_argument("--scale", type=float, default=1.0, help="corpora of so many times the usual size, 59,000, 13,500 and 34,000 rows")
    arguments.add_argument("--seed", type=int, default=7)
    options = arguments.parse_args()
    rows, items = sample_rows(random.Random(options.seed))
    write_jsonl(options.sample, rows)
    print(f"{len(rows)} rows in {options.sample}")
    corpora = [(options.corpus, CORPUS_ROWS), (options.plain, PLAIN_CORPUS_ROWS), (options.wide, WIDE_CORPUS_ROWS)]
    for number, (path, counts) in enumerate(corpora, 1):
        count = write_jsonl(path, corpus_rows(random.Random(options.seed + number), items, counts, options.scale))
        print(f"{count} rows in {path}")


if __name__ == "__main__":
    main()
