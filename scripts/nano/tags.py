"""What the phrases of a system message say, tag by tag.

A `Wish` is one thing a system message asks for: the tag it belongs under, its kind, the words that are to
show up in the answer, and the phrase that says so. `answers.py` gives every kind its visible consequence.
"""

from dataclasses import dataclass

import domains

# The order of the labels in a verification, and the order in which a filtered message is written.
PROMPT_ORDER = ["Task", "Tool", "Style", "Action", "Content", "Background", "Role", "Format"]
CANONICAL_ORDER = ["Role", "Content", "Task", "Action", "Style", "Background", "Tool", "Format"]

ADJECTIVES = "patient careful skilled kind wise calm cheerful modern".split()
COMPANY_FIRST = "Green Blue Silver Golden Bright North River Sunny Maple Happy".split()
COMPANY_LAST = "Kitchen Lantern Bridge Garden School Studio Harbor Academy Market Valley".split()

FIXED_SENTENCES = """Stay curious. Keep practicing. Take your time. Have a good day. Stay safe. Good luck. Never give up. Small steps count.
Practice makes perfect. Ask me again any time. Learning is fun. Be kind to others. Share this with a friend. Drink enough water.
Mistakes are welcome. Thank you for asking. See you soon. Remember to smile.""".replace("\n", " ").split(". ")
FIXED_SENTENCES = [sentence.rstrip(".") + "." for sentence in FIXED_SENTENCES]

STYLES = {
    "brief": ["Keep the answer short.", "Be brief.", "Answer in one short sentence.", "Use as few words as possible.", "Stay concise."],
    "friendly": ["Use a friendly tone.", "Be warm and friendly.", "Write in a friendly and open manner.", "Sound friendly."],
    "formal": ["Use a formal tone.", "Write in a formal and polite manner.", "Stay formal.", "Keep a formal style."],
    "simple": ["Use easy words.", "Write in plain and easy language.", "Keep the wording easy.", "Use words that a child knows."],
    "excited": ["Sound excited.", "Use an excited tone.", "Write with a lot of energy.", "Be lively and excited."],
}
ACTIONS = {
    "steps": ["Think step by step.", "Go through it step by step.", "Work in clear steps.", "Explain one step after the other."],
    "check": ["Check your answer before you reply.", "Double-check the result.", "Make sure to verify your answer.", "Check everything twice."],
    "followup": ["End with a follow-up question.", "Ask whether the user wants to know more.", "Offer more help at the end.", "Ask a question back at the end."],
    "restate": ["Repeat the topic of the user first.", "First say what the user asked about.", "Begin by naming the topic of the user.", "Restate the topic before you answer."],
    "encourage": ["Encourage the user.", "Cheer the user up.", "Motivate the user at the end.", "Give the user some courage."],
}
FORMATS = {
    "bullets": ["Write a bullet list.", "Use bullet points.", "Give the answer as bullet points.", "Format the answer as a bullet list."],
    "numbered": ["Write a numbered list.", "Number the lines of the answer.", "Give the answer as a numbered list.", "Use a numbered list."],
    "json": ["Return JSON.", "Reply with a JSON object.", "Format the answer as JSON.", "The output must be a JSON object."],
    "answer_line": ["Put the result on a last line that begins with Answer.", "Finish with a line that begins with Answer.", "The last line is the answer alone."],
    "title": ["Put a title above the answer.", "Start with a title line.", "Write a title line first.", "The answer has a title."],
    "paragraph": ["Write a single paragraph.", "Use one paragraph.", "Format the answer as one paragraph.", "The output is one plain paragraph."],
}
CONTENTS = {
    "equation": ["Include the equation.", "Show the equation in the answer.", "The equation must appear."],
    "rule": ["Include the conversion rule.", "State the rule for the units.", "The conversion rule must appear."],
    "minutes": ["Mention how many minutes it takes.", "Include the cooking time.", "State the time in minutes."],
    "continent": ["Mention the continent.", "Include the name of the continent.", "State the continent as well."],
    "capital": ["Mention the capital.", "Include the name of the capital.", "State the capital as well."],
    "language": ["Mention the language.", "Include the name of the language.", "State the language as well."],
    "class": ["Mention the kind of animal.", "Include the animal group.", "State the animal group as well."],
    "fact": ["Mention one interesting fact.", "Include a special fact.", "Add a fact that few people know."],
    "word": ["Mention the key word.", "Include the scientific key word.", "State the key word as well."],
    "sentence": ["Include an example sentence.", "Add a sentence with the word.", "Show the word in a sentence."],
    "returns": ["Mention what the code gives back.", "Include the kind of result.", "State what comes back."],
    "weather": ["Mention the weather.", "Include the usual weather.", "State what the weather is like."],
    "family": ["Mention the instrument family.", "Include the family of the instrument.", "State the family as well."],
    "light": ["Mention how much light is needed.", "Include the right light.", "State the light for the plants."],
    "water": ["Mention the water.", "Include how often to water.", "State the watering rhythm."],
    "subject": ["Mention the subject.", "Include a subject line.", "State the subject of the note."],
}
EXACT_SENTENCE = ['Include the sentence "{}"', 'Always say "{}"', 'The answer must contain "{}"', 'Do not forget the words "{}"']
ROLES = ["You are a {}.", "Act as a {}.", "You work as a {}.", "Take the role of a {}.", "Play the part of a {}."]
TASKS = ["Your task is to {}.", "You have to {}.", "You are asked to {}.", "The task is to {}.", "Your job is to {}."]
TOOLS = ["Use the {}.", "You can use the {}.", "Work with the {}.", "Look things up with the {}.", "The {} is available to you."]
AUDIENCES = ["The reader is {}.", "The user is {}.", "This is for {}.", "You are talking to {}."]
COMPANIES = ["This chat belongs to {}.", "The service is run by {}.", "{} offers this help.", "The user is a guest of {}."]
USERS = ["The user is called {}.", "The name of the user is {}.", "You are talking to a person named {}."]


@dataclass
class Wish:
    tag: str
    kind: str
    words: str      # what is copied into the answer; empty where the kind says it all
    phrase: str


def wish(tag, item, rng, kind=None, elsewhere_rate=0.0):
    """One wish under `tag` that suits the item; `kind` where the caller already knows it. Role, tool and audience
    come from some other domain at `elsewhere_rate`."""
    domain = domains.DOMAINS[item.domain]
    elsewhere = domains.DOMAINS[rng.choice(sorted(domains.DOMAINS))] if rng.random() < elsewhere_rate else domain
    if tag == "Role":
        role = rng.choice(elsewhere.roles)
        if rng.random() < 0.5:
            role = f"{rng.choice(ADJECTIVES)} {role}"
        phrase = rng.choice(ROLES).format(role)
        return Wish(tag, "role", role, phrase.replace(" a editor", " an editor"))
    if tag == "Task":
        return Wish(tag, "task", "", rng.choice(TASKS).format(item.task))
    if tag == "Tool":
        tool = rng.choice(elsewhere.tools)
        return Wish(tag, "tool", tool, rng.choice(TOOLS).format(tool))
    if tag == "Background":
        kind = kind or rng.choice(["audience", "audience", "company", "user"])
        if kind == "audience":
            words = rng.choice(elsewhere.audiences)
            return Wish(tag, kind, words, rng.choice(AUDIENCES).format(words))
        if kind == "company":
            words = f"{rng.choice(COMPANY_FIRST)} {rng.choice(COMPANY_LAST)}"
            return Wish(tag, kind, words, rng.choice(COMPANIES).format(words))
        words = rng.choice(domains.facts.NAMES)
        return Wish(tag, kind, words, rng.choice(USERS).format(words))
    if tag == "Content":
        kind = kind or rng.choice(sorted(item.extras) + ["exact"])
        if kind == "exact":
            words = rng.choice(FIXED_SENTENCES)
            return Wish(tag, kind, words, rng.choice(EXACT_SENTENCE).format(words))
        return Wish(tag, kind, "", rng.choice(CONTENTS[kind]))
    if tag == "Action":
        kinds = [kind for kind in ACTIONS if kind != "steps" or domain.procedural]
        kind = kind or rng.choice(kinds)
        return Wish(tag, kind, "", rng.choice(ACTIONS[kind]))
    if tag == "Style":
        kind = kind or rng.choice(list(STYLES))
        return Wish(tag, kind, "", rng.choice(STYLES[kind]))
    kind = kind or rng.choice(list(FORMATS))
    return Wish("Format", kind, "", rng.choice(FORMATS[kind]))


def compatible(wishes):
    """No answer can be one short sentence and a procedure, or a numbered list of numbered steps."""
    kinds = {w.kind for w in wishes}
    if "brief" in kinds and kinds & {"steps", "bullets", "numbered"}:
        return False
    return not ("steps" in kinds and kinds & {"bullets", "numbered"})


def second_content(wishes, item, rng):
    """Now and then a message asks for two contents: an exact sentence beside something of the topic."""
    kinds = {w.kind for w in wishes if w.tag == "Content"}
    if not kinds or rng.random() > 0.15:
        return []
    return [wish("Content", item, rng, rng.choice(sorted(item.extras)) if "exact" in kinds else "exact")]


def wishes_for(item, tags, rng):
    """Compatible wishes under the given tags. Some suit another domain: their words must be read, not guessed."""
    while True:
        wishes = [wish(tag, item, rng, elsewhere_rate=0.2) for tag in tags]
        wishes += second_content(wishes, item, rng)
        if compatible(wishes):
            return wishes


def ordered(wishes):
    return sorted(wishes, key=lambda w: CANONICAL_ORDER.index(w.tag))


def system_text(wishes):
    """A verified message as the respond phase writes it: tags stripped, canonical order, single spaces."""
    return " ".join(w.phrase for w in ordered(wishes))


def annotated(wishes):
    return " ".join(f"<<{w.tag}>>{w.phrase}<</{w.tag}>>" for w in wishes)
