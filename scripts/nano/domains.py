"""Twelve domains: how a fact becomes a question and the building blocks of its answer.

An `Item` is one question with everything an answer may be made of. Which blocks an answer uses, and in
what shape, is decided in `answers.py`; who speaks, with which tool and for whom, in `tags.py`.
"""

from dataclasses import dataclass, field

import facts


@dataclass
class Item:
    domain: str
    topic: str                  # the words copied into tasks and follow-up questions
    question: str
    task: str                   # what is asked, as an imperative: "explain how to make rice"
    core: str                   # the sentence that answers the question
    details: list               # clauses in lower case; in a procedural domain the steps to take
    short: str                  # the answer in a word or two
    extras: dict = field(default_factory=dict)   # what may be asked for -> the sentence that gives it
    remarks: list = None        # clauses that follow the core in running text; None: the details
    core_last: bool = False     # do the steps lead to the core (a calculation), or hold it already (a recipe)?


@dataclass
class Domain:
    draw: object                # rng -> Item
    procedural: bool            # do the details make sense after "First, … Then, …"?
    roles: list
    tools: list
    audiences: list


def arithmetic(rng):
    kind = rng.choice(["add", "add", "subtract", "subtract", "multiply", "multiply", "order"])
    name, thing = rng.choice(facts.NAMES), rng.choice(facts.THINGS)
    if kind == "add":
        a, b = rng.randint(3, 20), rng.randint(2, 9)
        total = a + b
        question, core = rng.choice([
            (f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", f"{name} has {total} {thing} now."),
            (f"{name} had {a} {thing}. A friend gave {name} {b} more. How many {thing} are there in all?", f"There are {total} {thing} in all."),
            (f"There are {a} {thing} on the table and {name} adds {b}. How many {thing} are on the table?", f"There are {total} {thing} on the table."),
        ])
        equation, steps = f"{a} + {b} = {total}", [f"start with {a} {thing}", f"add {b} {thing}"]
    elif kind == "subtract":
        b, total = rng.randint(2, 9), rng.randint(2, 16)
        a = b + total
        question, core = rng.choice([
            (f"{name} had {a} {thing} and gave away {b}. How many {thing} are left?", f"{name} has {total} {thing} left."),
            (f"There were {a} {thing} in a drawer. {name} took {b} of them. How many {thing} are still there?", f"There are {total} {thing} left."),
            (f"{name} needs {a} {thing} but has only {b}. How many {thing} are missing?", f"There are {total} {thing} missing."),
        ])
        equation, steps = f"{a} - {b} = {total}", [f"start with {a} {thing}", f"take away {b} {thing}"]
    elif kind == "multiply":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        total, container = a * b, rng.choice(facts.CONTAINERS)
        question, core = rng.choice([
            (f"{name} has {a} {container} with {b} {thing} each. How many {thing} does {name} have?", f"{name} has {total} {thing}."),
            (f"There are {b} {thing} in each of {a} {container}. How many {thing} are there together?", f"There are {total} {thing} together."),
        ])
        equation, steps = f"{a} x {b} = {total}", [f"count {a} {container}", f"take {b} {thing} for each"]
    else:
        numbers = rng.sample(range(1, 10), 3)
        low, middle, high = sorted(numbers)
        listed = f"{numbers[0]}, {numbers[1]} and {numbers[2]}"
        question = rng.choice([f"Put the numbers {listed} in order, please.", f"How do you sort {listed} from small to large?"])
        return Item("arithmetic", "the numbers", question, "put the numbers in order", f"The right order is {low}, {middle}, {high}.",
                    [f"find the smallest number, {low}", f"look for the largest number, {high}"], f"{low}, {middle}, {high}",
                    {"equation": f"{low} < {middle} < {high}."}, [f"{low} is the smallest and {high} is the largest"], core_last=True)
    return Item("arithmetic", f"the {thing}", question, f"find the number of {thing}", core, steps, f"{total} {thing}",
                {"equation": f"{equation}."}, [f"you {' and '.join(steps)}"], core_last=True)


def units(rng):
    one, many, small, factor = rng.choice(facts.UNITS)
    n = rng.randint(2, 9)
    total = n * int(factor)
    question = rng.choice([
        f"How many {small} are in {n} {many}?", f"What is {n} {many} in {small}?", f"Convert {n} {many} to {small}.",
        f"I need {n} {many} in {small}. How much is that?"])
    return Item("units", f"{many} and {small}", question, f"convert {many} to {small}", f"{n} {many} are {total} {small}.",
                [f"one {one} is {factor} {small}", f"multiply {n} by {factor}"], f"{total} {small}",
                {"rule": f"The rule is one {one} for {factor} {small}."}, [f"one {one} is {factor} {small}"], core_last=True)


def cooking(rng):
    dish, how, minutes, before, after = rng.choice(facts.DISHES)
    for_whom = rng.choice(["", "", " for two people", " for my family", " for a party", " for lunch"])
    extras = {"minutes": f"It takes {minutes} minutes."}
    steps, remarks = [before, f"{how} for {minutes} minutes", after], [f"{before} first", f"{after} at the end"]
    if rng.random() < 0.25:
        question = rng.choice([f"How long does it take to make {dish}{for_whom}?", f"How many minutes should I plan for {dish}{for_whom}?"])
        return Item("cooking", dish, question, f"say how long {dish} takes", f"Plan about {minutes} minutes for {dish}.",
                    steps, f"{minutes} minutes", extras, remarks)
    question = rng.choice([
        f"How do I make {dish}{for_whom}?", f"What is a simple way to make {dish}{for_whom}?",
        f"I want to make {dish}{for_whom}. What should I do?", f"Can you tell me how to prepare {dish}{for_whom}?"])
    return Item("cooking", dish, question, f"explain how to make {dish}", f"For {dish}, {how} for {minutes} minutes.",
                steps, f"{minutes} minutes", extras, remarks)


def geography(rng):
    country, capital, continent, language = rng.choice(facts.COUNTRIES)
    extras = {"continent": f"The country is in {continent}.", "language": f"The main language is {language}."}
    if rng.random() < 0.6:
        question = rng.choice([f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                               f"Do you know the capital of {country}?", f"I am writing about {country}. What is its capital?"])
        return Item("geography", country, question, f"name the capital of {country}", f"The capital of {country} is {capital}.",
                    [f"the country is in {continent}", f"the main language is {language}"], capital, extras)
    question = rng.choice([f"On which continent is {country}?", f"Where in the world is {country}?", f"Which continent does {country} belong to?"])
    return Item("geography", country, question, f"say where {country} is", f"{country} is in {continent}.",
                [f"the capital is {capital}", f"the main language is {language}"], continent, {"capital": f"The capital is {capital}.", "language": extras["language"]})


def animals(rng):
    animal, group, food, home, more = rng.choice(facts.ANIMALS)
    capital = animal[0].upper() + animal[1:]
    extras = {"class": f"{capital} are {group}.", "fact": f"{more[0].upper()}{more[1:]}."}
    kind = rng.choice(["food", "home", "class"])
    if kind == "food":
        question = rng.choice([f"What do {animal} eat?", f"What is the main food of {animal}?", f"What should I know about the food of {animal}?"])
        return Item("animals", animal, question, f"say what {animal} eat", f"{capital} mostly eat {food}.", [f"they live {home}", more], food, extras)
    if kind == "home":
        question = rng.choice([f"Where do {animal} live?", f"In which places can I find {animal}?", f"What kind of home do {animal} have?"])
        return Item("animals", animal, question, f"say where {animal} live", f"{capital} live {home}.", [f"they eat {food}", more], home, extras)
    question = rng.choice([f"What kind of animals are {animal}?", f"Which group of animals do {animal} belong to?"])
    return Item("animals", animal, question, f"say what kind of animals {animal} are", f"{capital} are {group}.",
                [f"they live {home}", f"they eat {food}"], group, {"fact": extras["fact"]})


def science(rng):
    why, fact, reason, first, second, word = rng.choice(facts.SCIENCE)
    question = rng.choice([f"Why {why}?", f"Can you explain why {fact}?", f"My son wants to know why {fact}.",
                           f"What is the reason that {fact}?", f"Please tell me in your own words why {fact}."])
    return Item("science", f"why {fact}", question, f"explain why {fact}", f"{fact[0].upper()}{fact[1:]} because {reason}.",
                [first, second], reason, {"word": f"The key word is {word}."})


def words(rng):
    if rng.random() < 0.35:
        one, many, sentence = rng.choice(facts.PLURALS)
        question = rng.choice([f"What is the plural of {one}?", f"How do I write {one} when there are two of them?", f"Which form is right for more than one {one}?"])
        return Item("words", f"the word {one}", question, f"give the plural of {one}", f"The plural of {one} is {many}.",
                    [f"we say one {one}", f"we say two {many}"], many, {"sentence": f"For example: {sentence}."})
    word, opposite, same, sentence = rng.choice(facts.ADJECTIVES)
    extras = {"sentence": f"For example: {sentence}."}
    if rng.random() < 0.6:
        question = rng.choice([f"What is the opposite of {word}?", f"Which word means the opposite of {word}?", f"I need a word that is the contrary of {word}."])
        return Item("words", f"the word {word}", question, f"find the opposite of {word}", f"The opposite of {word} is {opposite}.",
                    [f"a word for {word} is {same}", f"{word} and {opposite} are opposites"], opposite, extras)
    question = rng.choice([f"What is another word for {word}?", f"Which word can I use instead of {word}?", f"Help me find a word that means {word}."])
    return Item("words", f"the word {word}", question, f"find another word for {word}", f"Another word for {word} is {same}.",
                [f"the meaning is close to {word}", f"the opposite is {opposite}"], same, extras)


def code(rng):
    job, expression, result = rng.choice(facts.PYTHON)
    question = rng.choice([f"How do I {job} in Python?", f"What is the Python code to {job}?", f"Show me how to {job} in Python.",
                           f"Which Python expression can I use to {job}?", f"In Python, what is the best way to {job}?"])
    return Item("code", f"how to {job}", question, f"show how to {job}", f"Use `{expression}` to {job}.",
                ["open your program", f"write `{expression}`", "run it with a small example"], f"`{expression}`",
                {"returns": f"It gives you {result}.", "language": "The language is Python."}, ["try it with a small example"])


def travel(rng):
    place, things, weather, tip = rng.choice(facts.PLACES)
    tail = rng.choice(["", " with my family", " with two friends", " for a week", " in spring", " on my own"])
    question = rng.choice([f"What should I pack for a trip to the {place}{tail}?", f"I am going to the {place}{tail}. What do I need?",
                           f"Which things should I take to the {place}{tail}?", f"How do I get ready for a trip to the {place}{tail}?"])
    return Item("travel", f"the {place}", question, f"say what to pack for the {place}", f"For the {place}, pack {things}.",
                ["make a list of your things", f"pack {things}", tip], things,
                {"weather": f"The weather there is often {weather}."}, [tip])


def music(rng):
    instrument, family, played, first, second = rng.choice(facts.INSTRUMENTS)
    extras = {"family": f"It is a {family} instrument.", "fact": f"{first[0].upper()}{first[1:]}."}
    if rng.random() < 0.6:
        question = rng.choice([f"How do you play the {instrument}?", f"How is a {instrument} played?", f"I got a {instrument} as a gift. How is it played?"])
        return Item("music", f"the {instrument}", question, f"explain how the {instrument} is played", f"The {instrument} is played {played}.",
                    [second, first], played, extras)
    question = rng.choice([f"What kind of instrument is the {instrument}?", f"Which family does the {instrument} belong to?"])
    return Item("music", f"the {instrument}", question, f"name the family of the {instrument}", f"The {instrument} is a {family} instrument.",
                [first, f"it is played {played}"], family, {"fact": extras["fact"]})


def garden(rng):
    plant, light, water, harvest, step = rng.choice(facts.PLANTS)
    place = rng.choice(["", "", " in a pot", " on my balcony", " in the garden"])
    extras = {"light": f"They need {light}.", "water": f"Water them {water}."}
    if rng.random() < 0.4:
        question = rng.choice([f"How often should I water {plant}{place}?", f"How much water should I give {plant}{place}?"])
        return Item("garden", plant, question, f"say how often to water {plant}", f"Water {plant} {water}.",
                    [f"choose a spot with {light}", f"water them {water}", step], water, {"light": extras["light"]}, [step])
    question = rng.choice([f"How do I grow {plant}{place}?", f"What is needed to grow {plant}{place}?", f"Can you help me to grow {plant}{place}?"])
    core = f"Grow {plant} in {light} and water them {water}."
    return Item("garden", plant, question, f"explain how to grow {plant}", core, [f"choose a spot with {light}", f"water them {water}", step], light, extras, [step])


def writing(rng):
    note = rng.choice(sorted(facts.NOTES))
    asked, sentence, details, whats = facts.NOTES[note]
    who, what = rng.choice(facts.RECIPIENTS), rng.choice(whats)
    asked, sentence = asked.format(who=who, what=what), sentence.format(who=who, what=what)
    question = rng.choice([f"Write a short note to {asked}.", f"Help me {asked} in a few words.", f"I would like to {asked}. What can I write?"])
    return Item("writing", f"the {note}", question, f"write the {note} to the {who}", sentence, list(details), what,
                {"subject": f"The subject is {what}."})


DOMAINS = {
    "arithmetic": Domain(arithmetic, True, ["math tutor", "school teacher", "number coach"], ["calculator", "number line"],
                         ["a young pupil", "a busy parent", "a class of beginners"]),
    "units": Domain(units, True, ["physics teacher", "lab assistant", "shop clerk"], ["unit table", "calculator"],
                    ["a new lab worker", "a young pupil", "a builder"]),
    "cooking": Domain(cooking, True, ["chef", "cooking teacher", "kitchen helper"], ["recipe book", "kitchen timer"],
                      ["a beginner cook", "a busy parent", "a student with a small kitchen"]),
    "geography": Domain(geography, False, ["geography teacher", "map expert", "tour guide"], ["world map", "atlas"],
                        ["a traveler", "a school class", "a quiz player"]),
    "animals": Domain(animals, False, ["zoo guide", "biologist", "park ranger"], ["animal guide", "field notes"],
                      ["a curious child", "a school class", "a visitor of the zoo"]),
    "science": Domain(science, False, ["science teacher", "physicist", "museum guide"], ["science book", "diagram"],
                      ["a curious child", "a visitor of the museum", "a school class"]),
    "words": Domain(words, False, ["language teacher", "editor", "librarian"], ["dictionary", "word list"],
                    ["a language learner", "a young writer", "a quiz player"]),
    "code": Domain(code, True, ["programmer", "software engineer", "coding coach"], ["Python shell", "code editor"],
                   ["a new programmer", "a data analyst", "a class of beginners"]),
    "travel": Domain(travel, True, ["travel agent", "tour guide", "mountain guide"], ["weather report", "packing list"],
                     ["a first traveler", "a family with children", "a group of friends"]),
    "music": Domain(music, False, ["music teacher", "conductor", "band leader"], ["music book", "sound archive"],
                    ["a young player", "a choir", "a visitor of the concert"]),
    "garden": Domain(garden, True, ["gardener", "plant expert", "farmer"], ["garden calendar", "plant guide"],
                     ["a new gardener", "a family with children", "a busy person"]),
    "writing": Domain(writing, False, ["secretary", "editor", "writing coach"], ["letter template", "spell checker"],
                      ["an office worker", "a shy person", "a young writer"]),
}
