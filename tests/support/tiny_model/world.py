"""Invented worlds for the tiny test model: names, things, and facts in many wordings.

Boundary: knows nothing of chat or tokens (`corpus` does). Every word here is our own; any likeness of
an invented name to a real one is chance. All draws come from the `random.Random` that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

FIRST_NAMES = [
    "Odile",
    "Anna",
    "Maren",
    "Tobias",
    "Ines",
    "Jonas",
    "Clara",
    "Viktor",
    "Lena",
    "Oskar",
    "Greta",
    "Emil",
    "Petra",
    "Hugo",
    "Nora",
    "Felix",
    "Ida",
    "Samuel",
    "Vera",
    "Anton",
    "Mila",
    "Edgar",
    "Rosa",
    "Casper",
    "Elin",
    "Bruno",
    "Thea",
    "Milan",
    "Agnes",
    "Rufus",
    "Celia",
    "Otto",
    "Wilma",
    "Silas",
    "Dora",
    "Ivo",
    "Livia",
    "Magnus",
    "Hanna",
    "Pavel",
    "Selma",
    "Arne",
    "Tilda",
    "Conrad",
    "Yara",
    "Leopold",
    "Iris",
    "Matteo",
    "Runa",
    "Gideon",
    "Fenna",
    "Basil",
    "Alma",
    "Darius",
    "Ottilie",
    "Kasimir",
    "Berta",
    "Lorenz",
    "Marit",
    "Ansel",
    "Juna",
    "Severin",
    "Ada",
    "Theo",
    "Linnea",
    "Ruben",
    "Salome",
    "Niels",
    "Edda",
    "Corin",
    "Mira",
    "Balthasar",
    "Svea",
    "Igor",
    "Paula",
    "Henrik",
    "Delia",
    "Amos",
    "Rika",
    "Julian",
    "Tessa",
    "Gustav",
    "Nadia",
    "Elias",
    "Ronja",
    "Florian",
    "Karin",
    "Joris",
    "Helga",
    "Tomas",
    "Eva",
    "Anders",
]
_ONSETS = [
    "B",
    "Br",
    "C",
    "Cl",
    "D",
    "Dr",
    "F",
    "Fl",
    "G",
    "Gr",
    "H",
    "J",
    "K",
    "Kr",
    "L",
    "M",
    "N",
    "O",
    "P",
    "Pr",
    "Qu",
    "R",
    "S",
    "St",
    "T",
    "Tr",
    "V",
    "W",
    "Z",
    "Th",
    "Sh",
    "E",
    "A",
    "I",
    "U",
    "El",
    "Or",
    "An",
    "Al",
    "Ar",
    "Sk",
    "Bl",
    "Ch",
    "Vr",
    "Ost",
]
_NUCLEI = [
    "a",
    "e",
    "i",
    "o",
    "u",
    "ar",
    "er",
    "or",
    "en",
    "an",
    "in",
    "on",
    "al",
    "el",
    "il",
    "ei",
    "ou",
    "au",
    "ie",
    "oo",
    "ea",
]
_MIDS = [
    "b",
    "d",
    "g",
    "l",
    "m",
    "n",
    "r",
    "s",
    "t",
    "v",
    "z",
    "ll",
    "nn",
    "rr",
    "st",
    "nd",
    "rn",
    "lm",
    "rd",
    "nt",
    "lk",
    "sk",
    "ss",
    "th",
    "ck",
    "rt",
    "ld",
    "mb",
]
_LAST_ENDS = [
    "er",
    "man",
    "sen",
    "ek",
    "ova",
    "ini",
    "ard",
    "well",
    "berg",
    "ström",
    "ford",
    "ley",
    "son",
    "dt",
    "nt",
    "ick",
    "ow",
    "ett",
    "is",
    "o",
    "a",
    "us",
    "en",
    "quist",
    "gaard",
    "mont",
    "stein",
    "kamp",
]
_PLACE_ENDS = [
    "ow",
    "in",
    "a",
    "o",
    "burg",
    "ton",
    "ham",
    "by",
    "sund",
    "vik",
    "au",
    "mere",
    "wick",
    "holm",
    "stad",
    "ia",
    "ey",
    "port",
    "dale",
    "field",
    "mouth",
    "ora",
    "ento",
    "ar",
    "un",
    "ness",
    "brook",
]

THINGS = [
    "lighthouse",
    "bridge",
    "mill",
    "tower",
    "library",
    "school",
    "museum",
    "harbour",
    "ship",
    "inn",
    "bakery",
    "castle",
    "abbey",
    "garden",
    "farm",
    "mine",
    "station",
    "theatre",
    "market",
    "orchestra",
    "festival",
    "workshop",
    "observatory",
    "club",
    "newspaper",
    "factory",
    "hospital",
    "chapel",
    "ferry",
    "vineyard",
    "hotel",
    "gallery",
    "archive",
    "brewery",
    "academy",
    "palace",
    "fountain",
    "clinic",
    "orchard",
    "laboratory",
    "shop",
    "gate",
    "canal",
    "dam",
    "hall",
    "college",
    "choir",
]
ROLES = [
    "keeper",
    "owner",
    "founder",
    "builder",
    "captain",
    "cook",
    "baker",
    "teacher",
    "head",
    "director",
    "manager",
    "gardener",
    "clerk",
    "guard",
    "doctor",
    "painter",
    "architect",
    "librarian",
    "mayor",
    "miller",
    "master",
    "pilot",
    "porter",
    "singer",
    "treasurer",
    "inventor",
    "designer",
    "leader",
    "secretary",
    "patron",
    "carpenter",
    "engineer",
    "chief",
    "editor",
    "warden",
    "conductor",
    "astronomer",
    "neighbour",
    "president",
    "host",
    "curator",
    "printer",
    "weaver",
    "smith",
]
DEEDS = [
    "built",
    "founded",
    "painted",
    "designed",
    "discovered",
    "repaired",
    "bought",
    "sold",
    "opened",
    "restored",
    "saved",
    "planned",
    "drew",
    "visited",
    "described",
    "led",
]
EVENTS = [
    "built",
    "founded",
    "opened",
    "closed",
    "flooded",
    "burned",
    "rebuilt",
    "painted",
    "sold",
    "restored",
    "planned",
    "repaired",
    "moved",
    "named",
    "finished",
    "discovered",
]
COUNTED = [
    "steps",
    "rooms",
    "windows",
    "doors",
    "books",
    "bells",
    "boats",
    "trees",
    "workers",
    "members",
    "lamps",
    "beds",
    "tables",
    "pupils",
    "seats",
    "paintings",
    "wells",
    "barrels",
    "ropes",
    "stairs",
    "horses",
    "chimneys",
    "arches",
    "visitors",
    "flags",
]
MEASURES = (
    ("high", "metres"), ("long", "metres"), ("wide", "metres"), ("deep", "metres"), ("old", "years"),
    ("heavy", "tonnes"),
)  # fmt: skip
PARTS = [
    "roof",
    "door",
    "flag",
    "wall",
    "gate",
    "lamp",
    "tower",
    "floor",
    "sign",
    "sail",
    "curtain",
    "bell",
    "boat",
    "coat",
    "clock",
    "hat",
]
COLOURS = [
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "black",
    "grey",
    "brown",
    "orange",
    "purple",
    "pink",
    "golden",
    "silver",
    "violet",
]
MATERIALS = [
    "stone",
    "wood",
    "brick",
    "glass",
    "iron",
    "copper",
    "clay",
    "marble",
    "steel",
    "straw",
    "granite",
    "oak",
    "slate",
    "sand",
]
ANIMALS = [
    "dog",
    "cat",
    "horse",
    "goat",
    "parrot",
    "donkey",
    "owl",
    "raven",
    "pony",
    "goose",
    "cow",
    "pig",
]
NAMED_PARTS = [
    "song",
    "bell",
    "boat",
    "street",
    "hill",
    "river",
    "square",
    "ship",
    "book",
    "newspaper",
    "lake",
    "hymn",
    "play",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_DISH_HEADS = [
    "honey",
    "plum",
    "smoked",
    "sweet",
    "bitter",
    "pepper",
    "ginger",
    "salted",
    "almond",
    "apple",
    "onion",
    "pear",
    "cherry",
    "walnut",
    "mint",
]
_DISH_TAILS = [
    "cake",
    "cheese",
    "bread",
    "beer",
    "soup",
    "tea",
    "pie",
    "jam",
    "sausage",
    "wine",
    "butter",
    "biscuits",
    "fish",
    "vinegar",
    "candles",
]
JOBS = [
    "sailor",
    "teacher",
    "painter",
    "doctor",
    "baker",
    "clerk",
    "smith",
    "pilot",
    "singer",
    "weaver",
    "nurse",
    "tailor",
    "printer",
    "carpenter",
]
INSTRUMENTS = [
    "violin",
    "flute",
    "piano",
    "cello",
    "harp",
    "trumpet",
    "drum",
    "guitar",
    "organ",
    "horn",
]


@dataclass(frozen=True, slots=True)
class Fact:
    """One invented fact: what it is about, its answer, and ways to say and to ask it."""

    subject: str
    answer: str
    statements: tuple[str, ...]
    """Whole sentences; each holds `answer`."""
    short: str
    """The statement with a pronoun for its subject, as running text has it."""
    questions: tuple[str, ...]
    asked_by: str
    """The question word that can stand in the answer's place: "The keeper is who?"."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A titled bundle of facts about one thing and the people around it."""

    title: str
    facts: tuple[Fact, ...]


def make_topic(rng: Random, *, facts: int) -> Topic:
    """Invent a thing with `facts` facts; about a fifth of them are about a person named in others."""
    noun = rng.choice(THINGS)
    place = place_name(rng)
    proper = f"{place} {_capital(noun)}"
    names = (
        proper,
        f"the {proper}",
        f"the {place} {noun}",
        f"the {noun} of {place}",
        f"the {noun} {place}",
    )
    subject = rng.choices(names, (5, 2, 5, 3, 1))[0]
    made: dict[str, Fact] = {}
    people: list[str] = []
    while len(made) < facts:
        if people and rng.random() < 0.2:
            who = rng.choice(people)
            key, fact = _about_person(rng, who)
        else:
            key, fact = rng.choice(_ABOUT_THING)(rng, subject)
            if key.startswith(("role", "deed")):
                people.append(fact.answer)
        made.setdefault(key, fact)
    order = list(made.values())
    order.sort(key=lambda fact: fact.subject != subject)
    return Topic(title=_capital(subject), facts=tuple(order))


def person_name(rng: Random) -> str:
    """A first and a last name, sometimes both made of syllables nobody has seen together."""
    first = (
        rng.choice(FIRST_NAMES)
        if rng.random() < 0.6
        else _word(rng, ("a", "o", "e", "us", "in", "el", "is", "ia"))
    )
    return f"{first} {_word(rng, _LAST_ENDS)}"


def place_name(rng: Random) -> str:
    """One made-up word for a place."""
    return _word(rng, _PLACE_ENDS)


def _word(rng: Random, ends: tuple[str, ...] | list[str]) -> str:
    stem = rng.choice(_ONSETS) + rng.choice(_NUCLEI)
    if rng.random() < 0.6:
        stem += rng.choice(_MIDS)
        if rng.random() < 0.25:
            stem += rng.choice(_NUCLEI) + rng.choice(_MIDS)
    word = stem + (rng.choice(ends) if rng.random() < 0.85 else "")
    return word if len(word) > 2 else word + rng.choice(ends)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _fact(
    subject: str,
    answer: str,
    statements: list[str],
    short: str,
    questions: list[str],
    wh: str = "what",
) -> Fact:
    if short.startswith("its "):
        statements = [*statements, f"{subject}'s {short[4:]}"]
    said, asked = tuple(map(_capital, statements)), tuple(map(_capital, questions))
    return Fact(subject, answer, said, _capital(short), asked, wh)


def _role(rng: Random, e: str) -> tuple[str, Fact]:
    role, p = rng.choice(ROLES), person_name(rng)
    said = [
        f"the {role} of {e} is {p}.", f"{p} is the {role} of {e}.", f"the name of the {role} of {e} is {p}.",
        f"{e} has a {role} named {p}.",
    ]  # fmt: skip
    asked = [
        f"who is the {role} of {e}?", f"what is the name of the {role} of {e}?", f"name the {role} of {e}.",
        f"which person is the {role} of {e}?", f"what is the {role} of {e} called?",
    ]  # fmt: skip
    return f"role {role}", _fact(e, p, said, f"its {role} is {p}.", asked, "who")


def _deed(rng: Random, e: str) -> tuple[str, Fact]:
    deed, p = rng.choice(DEEDS), person_name(rng)
    said = [f"{e} was {deed} by {p}.", f"{p} {deed} {e}.", f"the person who {deed} {e} is {p}."]
    asked = [f"who {deed} {e}?", f"by whom was {e} {deed}?", f"which person {deed} {e}?"]
    return f"deed {deed}", _fact(e, p, said, f"it was {deed} by {p}.", asked, "who")


def _event(rng: Random, e: str) -> tuple[str, Fact]:
    event, y = rng.choice(EVENTS), str(rng.randint(1500, 2024))
    said = [
        f"{e} was {event} in {y}.",
        f"in {y} {e} was {event}.",
        f"the year in which {e} was {event} is {y}.",
    ]
    asked = [
        f"when was {e} {event}?",
        f"in which year was {e} {event}?",
        f"what year was {e} {event}?",
        f"in what year was {e} {event}?",
    ]
    return f"event {event}", _fact(e, y, said, f"it was {event} in {y}.", asked, "what year")


def _place(rng: Random, e: str) -> tuple[str, Fact]:
    verb, base = rng.choice((("stands", "stand"), ("lies", "lie")))
    p = place_name(rng)
    where = rng.choice(("in", "near", "in the town of", "on the island of", "in the village of"))
    said = [f"{e} {verb} {where} {p}.", f"{e} is {where} {p}.", f"{e} can be found {where} {p}."]
    asked = [
        f"where is {e}?",
        f"where does {e} {base}?",
        f"where can {e} be found?",
        f"in which place is {e}?",
    ]
    return "place", _fact(e, p, said, f"it {verb} {where} {p}.", asked)


def _count(rng: Random, e: str) -> tuple[str, Fact]:
    things, n = (
        rng.choice(COUNTED),
        str(rng.randint(3, 99) if rng.random() < 0.5 else rng.randint(100, 999)),
    )
    said = [
        f"{e} has {n} {things}.",
        f"there are {n} {things} in {e}.",
        f"the number of {things} of {e} is {n}.",
    ]
    asked = [
        f"how many {things} does {e} have?", f"what is the number of {things} of {e}?",
        f"how many {things} are there in {e}?",
    ]  # fmt: skip
    return f"count {things}", _fact(e, n, said, f"it has {n} {things}.", asked, "how many")


def _measure(rng: Random, e: str) -> tuple[str, Fact]:
    (how, unit), n = rng.choice(MEASURES), str(rng.randint(3, 480))
    said = [f"{e} is {n} {unit} {how}.", f"it is known that {e} is {n} {unit} {how}."]
    asked = [f"how {how} is {e}?", f"how many {unit} {how} is {e}?"]
    return f"measure {how}", _fact(e, n, said, f"it is {n} {unit} {how}.", asked, "how many")


def _colour(rng: Random, e: str) -> tuple[str, Fact]:
    part, c = rng.choice(PARTS), rng.choice(COLOURS)
    said = [
        f"the {part} of {e} is {c}.",
        f"{e} has a {c} {part}.",
        f"the colour of the {part} of {e} is {c}.",
    ]
    asked = [f"what colour is the {part} of {e}?", f"what is the colour of the {part} of {e}?"]
    return f"colour {part}", _fact(e, c, said, f"its {part} is {c}.", asked)


def _material(rng: Random, e: str) -> tuple[str, Fact]:
    m = rng.choice(MATERIALS)
    said = [f"{e} is made of {m}.", f"{e} was made from {m}.", f"the material of {e} is {m}."]
    asked = [
        f"what is {e} made of?",
        f"of which material is {e} made?",
        f"what is the material of {e}?",
    ]
    return "material", _fact(e, m, said, f"it is made of {m}.", asked)


def _animal(rng: Random, e: str) -> tuple[str, Fact]:
    animal, n = (
        rng.choice(ANIMALS),
        _word(rng, _PLACE_ENDS) if rng.random() < 0.6 else rng.choice(FIRST_NAMES),
    )
    said = [
        f"the {animal} of {e} is called {n}.",
        f"{n} is the {animal} of {e}.",
        f"{e} has a {animal} called {n}.",
    ]
    asked = [f"what is the {animal} of {e} called?", f"what is the name of the {animal} of {e}?"]
    return f"animal {animal}", _fact(e, n, said, f"its {animal} is called {n}.", asked)


def _named_part(rng: Random, e: str) -> tuple[str, Fact]:
    part, n = rng.choice(NAMED_PARTS), _word(rng, _PLACE_ENDS)
    said = [
        f"the {part} of {e} is called {n}.",
        f"{n} is the {part} of {e}.",
        f"the name of the {part} of {e} is {n}.",
    ]
    asked = [f"what is the {part} of {e} called?", f"what is the name of the {part} of {e}?"]
    return f"part {part}", _fact(e, n, said, f"its {part} is called {n}.", asked)


def _day(rng: Random, e: str) -> tuple[str, Fact]:
    d, state = rng.choice(DAYS), rng.choice(("closed", "open", "busy", "quiet"))
    said = [
        f"{e} is {state} on {d}.",
        f"on {d} {e} is {state}.",
        f"the day on which {e} is {state} is {d}.",
    ]
    asked = [f"on which day is {e} {state}?", f"when is {e} {state}?", f"what day is {e} {state}?"]
    return f"day {state}", _fact(e, d, said, f"it is {state} on {d}.", asked)


def _month(rng: Random, e: str) -> tuple[str, Fact]:
    m = rng.choice(MONTHS)
    said = [
        f"{e} holds its feast in {m}.",
        f"the feast of {e} is in {m}.",
        f"in {m} {e} holds its feast.",
    ]
    asked = [
        f"in which month is the feast of {e}?",
        f"when does {e} hold its feast?",
        f"when is the feast of {e}?",
    ]
    return "month", _fact(e, m, said, f"its feast is in {m}.", asked)


def _dish(rng: Random, e: str) -> tuple[str, Fact]:
    d = f"{rng.choice(_DISH_HEADS)} {rng.choice(_DISH_TAILS)}"
    said = [
        f"{e} is known for its {d}.",
        f"{e} is famous for its {d}.",
        f"people know {e} for its {d}.",
    ]
    asked = [f"what is {e} known for?", f"what is {e} famous for?", f"for what is {e} known?"]
    return "dish", _fact(e, d, said, f"it is known for its {d}.", asked)


def _about_person(rng: Random, p: str) -> tuple[str, Fact]:
    kind = rng.choice(("born in", "born on", "job", "plays", "lives", "married"))
    match kind:
        case "born in":
            a = place_name(rng)
            said = [
                f"{p} was born in {a}.",
                f"{p} comes from {a}.",
                f"the birthplace of {p} is {a}.",
            ]
            asked = [
                f"where was {p} born?",
                f"where does {p} come from?",
                f"what is the birthplace of {p}?",
            ]
        case "born on":
            a = str(rng.randint(1500, 2010))
            said = [
                f"{p} was born in {a}.",
                f"in {a} {p} was born.",
                f"the birth year of {p} is {a}.",
            ]
            asked = [
                f"when was {p} born?",
                f"in which year was {p} born?",
                f"what is the birth year of {p}?",
            ]
        case "job":
            a = rng.choice(JOBS)
            said = [f"{p} works as a {a}.", f"{p} is a {a}.", f"the job of {p} is {a}."]
            asked = [
                f"what is the job of {p}?",
                f"what does {p} work as?",
                f"what job does {p} have?",
            ]
        case "plays":
            a = rng.choice(INSTRUMENTS)
            said = [f"{p} plays the {a}.", f"the instrument of {p} is the {a}."]
            asked = [
                f"what does {p} play?",
                f"which instrument does {p} play?",
                f"what is the instrument of {p}?",
            ]
        case "lives":
            a = place_name(rng)
            said = [f"{p} lives in {a}.", f"the home of {p} is {a}.", f"{p} has a house in {a}."]
            asked = [
                f"where does {p} live?",
                f"where is the home of {p}?",
                f"in which place does {p} live?",
            ]
        case _:
            a = person_name(rng)
            said = [
                f"{p} is married to {a}.",
                f"{a} is married to {p}.",
                f"the partner of {p} is {a}.",
            ]
            asked = [
                f"who is married to {p}?",
                f"who is the partner of {p}?",
                f"to whom is {p} married?",
            ]
    return f"{p} {kind}", _fact(p, a, said, said[0], asked)


_ABOUT_THING: tuple[Callable[[Random, str], tuple[str, Fact]], ...] = (
    _role, _role, _role, _deed, _deed, _event, _event, _place, _count, _count, _measure, _colour, _material,
    _animal, _named_part, _named_part, _day, _month, _dish,
)  # fmt: skip
