"""An answer to an item that grants a list of wishes, each in words one can see.

    role        "As a chef, I am glad to help."      audience   "This is for a beginner cook."
    tool        "I used the recipe book."            company    "Welcome to Green Kitchen."
    brief       only the core sentence               user       "Hello Mia."
    friendly    "Happy to help!"                    formal     "Good day." … "Kind regards."
    simple      "In easy words:"                     excited    every sentence of the body ends with "!"
    steps       "First, … Then, …"                   check      "I checked this twice."
    restate     "You asked about rice."              followup   "Would you like to know more about rice?"
    encourage   "You can do it!"                     exact      the sentence, word for word
"""

import json

from domains import DOMAINS


def sentence(clause):
    return clause[0].upper() + clause[1:] + "."


def article(words):
    return "an" if words[0] in "aeiou" else "a"


def body(item, kinds):
    """The sentences that hold the answer itself."""
    listed = kinds & {"bullets", "numbered"}
    procedural = DOMAINS[item.domain].procedural
    core = [item.core] if item.core_last else []
    if "brief" in kinds:
        sentences = [item.core]
    elif "steps" in kinds:
        words = ["First", "Then", "Finally"]
        sentences = [f"{word}, {clause}." for word, clause in zip(words, item.details)] + core
    elif listed and procedural:
        sentences = [sentence(clause) for clause in item.details] + core
    else:
        remarks = item.details if item.remarks is None or listed else item.remarks
        sentences = [item.core] + [sentence(clause) for clause in remarks]
    if "excited" in kinds:
        sentences = [text[:-1] + "!" for text in sentences]
    return sentences


def before(item, wishes):
    by_kind = {w.kind: w.words for w in wishes}
    sentences = []
    if "user" in by_kind:
        sentences.append(f"Hello {by_kind['user']}.")
    if "company" in by_kind:
        sentences.append(f"Welcome to {by_kind['company']}.")
    if "formal" in by_kind:
        sentences.append("Good day.")
    if "friendly" in by_kind:
        sentences.append("Happy to help!")
    if "role" in by_kind:
        role = by_kind["role"]
        sentences.append(f"As {article(role)} {role}, I am glad to help.")
    if "restate" in by_kind:
        sentences.append(f"You asked about {item.topic}.")
    if "audience" in by_kind:
        sentences.append(f"This is for {by_kind['audience']}.")
    if "tool" in by_kind:
        sentences.append(f"I used the {by_kind['tool']}.")
    if "simple" in by_kind:
        sentences.append("In easy words:")
    return sentences


def after(item, wishes, said):
    sentences = []
    for w in wishes:
        if w.tag == "Content":
            wanted = w.words if w.kind == "exact" else item.extras[w.kind]
            # What the answer holds already is not said twice.
            if wanted[:-1] not in said:
                sentences.append(wanted)
    kinds = {w.kind for w in wishes}
    if "check" in kinds:
        sentences.append("I checked this twice.")
    if "encourage" in kinds:
        sentences.append("You can do it!")
    if "followup" in kinds:
        sentences.append(f"Would you like to know more about {item.topic}?")
    if "formal" in kinds:
        sentences.append("Kind regards.")
    return sentences


def answer(item, wishes):
    kinds = {w.kind for w in wishes}
    opening, middle = before(item, wishes), body(item, kinds)
    closing = after(item, wishes, " ".join(middle))
    if "json" in kinds:
        fields = {"answer": " ".join(middle)}
        if opening + closing:
            fields["note"] = " ".join(opening + closing)
        return json.dumps(fields)
    if "bullets" in kinds or "numbered" in kinds:
        lines = [f"- {text}" if "bullets" in kinds else f"{n}. {text}" for n, text in enumerate(middle, 1)]
        return "\n".join(([" ".join(opening)] if opening else []) + lines + ([" ".join(closing)] if closing else []))
    text = " ".join(opening + middle + closing)
    if "title" in kinds:
        return f"{item.topic[0].upper()}{item.topic[1:]}\n{text}"
    if "answer_line" in kinds:
        return f"{text}\nAnswer: {item.short}"
    return text
