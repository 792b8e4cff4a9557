"""A small invented world as text: what the `tiny` base model knows before any fine-tuning.

The world is fixed (its towns, rivers, animals, trades and things never change); only the choice and the wording
of a text are random. Four abilities are asked for in chat: facts, arithmetic, common sense and instructions.
Replies are worded at random, so that the best possible loss is above zero, as it is for real text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

Message = dict[str, str]
"""One chat message: `role` and `content`."""


def _table(text: str) -> tuple[dict[str, str], ...]:
    """Read a table: the first line names the columns, `_` in a cell stands for a space."""
    header, *rows = (line.split() for line in text.strip().splitlines())
    return tuple({name: cell.replace("_", " ") for name, cell in zip(header, row, strict=True)} for row in rows)


TOWNS = _table("""
    name      river    flag    craft     mayor
    Averby    Tindle   red     glass     Osk
    Bramford  Tindle   blue    rope      Lina
    Corvale   Tindle   green   bread     Tomas
    Dunmere   Sill     white   boats     Ida
    Elsin     Sill     black   candles   Bruno
    Farrow    Sill     yellow  cloth     Mira
    Garnet    Wend     red     knives    Pavel
    Hollis    Wend     green   honey     Runa
    Iskra     Wend     blue    cheese    Anton
    Jarrow    Ombra    brown   pots      Vera
    Kelder    Ombra    white   salt      Hugo
    Lorne     Ombra    grey    shoes     Petra
    Marsk     Fenn     black   coal      Ivo
    Norwood   Fenn     brown   chairs    Sanna
    Orlin     Fenn     purple  wine      Jonas
    Pelham    Quill    orange  paper     Greta
    Quarn     Quill    grey    bricks    Emil
    Ravel     Quill    pink    silk      Dora
    Selby     Yarrow   yellow  corn      Klaus
    Torvik    Yarrow   blue    fish      Nils
    Ulvik     Yarrow   purple  bells     Freya
    Vinden    Dale     orange  clocks    Otto
    Wexley    Dale     pink    flowers   Clara
    Yelland   Dale     green   apples    Simon
""")

RIVERS = _table("""
    name    course  hill   water
    Tindle  north   Grey_Hill   cold
    Sill    south   Bald_Hill   warm
    Wend    west    Iron_Hill   clear
    Ombra   east    Moon_Hill   dark
    Fenn    north   Pine_Hill   slow
    Quill   south   Fox_Hill    fast
    Yarrow  west    Snow_Hill   cold
    Dale    east    Rose_Hill   warm
""")

ANIMALS = _table("""
    name    legs  food     home
    fox     4     mice     den
    cow     4     grass    barn
    horse   4     hay      stable
    dog     4     meat     kennel
    cat     4     fish     house
    sheep   4     grass    field
    goat    4     leaves   field
    bear    4     honey    cave
    wolf    4     meat     den
    mouse   4     seeds    hole
    rabbit  4     carrots  hole
    frog    4     flies    pond
    hen     2     corn     barn
    duck    2     weeds    pond
    owl     2     mice     tree
    crow    2     seeds    tree
    ant     6     sugar    nest
    bee     6     nectar   hive
    spider  8     flies    web
    snake   0     eggs     hole
""")

TRADES = _table("""
    name        makes     tool
    baker       bread     oven
    smith       knives    hammer
    weaver      cloth     loom
    potter      pots      wheel
    carpenter   chairs    saw
    tailor      coats     needle
    cobbler     shoes     awl
    brewer      beer      barrel
    miller      flour     millstone
    mason       walls     trowel
    painter     pictures  brush
    writer      books     pen
    cook        soup      spoon
    farmer      corn      plough
    glazier     windows   diamond
    shipwright  boats     adze
""")

COLOURS = _table("""
    name    first   second
    orange  red     yellow
    green   blue    yellow
    purple  red     blue
    grey    black   white
    pink    red     white
    brown   orange  black
""")

# Weight and size are ranks: only different ranks are compared.
THINGS = _table("""
    name     material  weight  size
    feather  down      0       1
    leaf     plant     0       1
    ribbon   silk      0       1
    letter   paper     0       1
    map      paper     1       2
    candle   wax       1       1
    pencil   wood      1       1
    ring     gold      1       0
    button   bone      1       0
    needle   steel     1       0
    coin     silver    2       0
    spoon    wood      2       1
    cup      clay      2       1
    book     paper     3       2
    bottle   glass     3       2
    hat      wool      2       2
    blanket  wool      4       4
    lantern  iron      4       3
    rope     hemp      4       3
    kettle   copper    4       3
    basket   straw     3       3
    hammer   iron      4       2
    drum     leather   4       4
    brick    clay      4       2
    stool    wood      5       4
    ladder   wood      5       6
    anvil    iron      7       4
    barrel   wood      6       5
    cart     wood      7       7
    boat     wood      8       8
    house    brick     9       9
""")

TABLES: Mapping[str, tuple[dict[str, str], ...]] = {
    "town": TOWNS,
    "river": RIVERS,
    "animal": ANIMALS,
    "trade": TRADES,
    "thing": THINGS,
}


@dataclass(frozen=True, slots=True)
class Wording:
    """The ways to state a fact and to ask for it; `{s}` is the subject, `{v}` the value."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS: Mapping[tuple[str, str], Wording] = {
    ("town", "river"): Wording(
        ("{s} lies on the river {v}.", "The river {v} runs through {s}.", "{s} stands by the {v}."),
        ("Which river runs through {s}?", "On which river does {s} lie?", "Name the river of {s}."),
    ),
    ("town", "flag"): Wording(
        ("The flag of {s} is {v}.", "{s} has a {v} flag.", "A {v} flag flies over {s}."),
        ("What colour is the flag of {s}?", "Which colour flag does {s} have?", "Tell me the flag colour of {s}."),
    ),
    ("town", "craft"): Wording(
        ("{s} is known for its {v}.", "The people of {s} sell {v}.", "The best {v} come from {s}."),
        ("What is {s} known for?", "What do the people of {s} sell?", "What comes from {s}?"),
    ),
    ("town", "mayor"): Wording(
        ("The mayor of {s} is {v}.", "{v} is the mayor of {s}.", "{v} rules in {s}."),
        ("Who is the mayor of {s}?", "Who rules in {s}?", "Name the mayor of {s}."),
    ),
    ("river", "course"): Wording(
        ("The river {s} flows {v}.", "The {s} runs to the {v}.", "The water of the {s} goes {v}."),
        ("Which way does the river {s} flow?", "Where does the {s} run to?", "In which direction does the {s} flow?"),
    ),
    ("river", "hill"): Wording(
        ("The {s} rises on {v}.", "The spring of the {s} is on {v}.", "The river {s} begins at {v}."),
        ("Where does the {s} rise?", "On which hill is the spring of the {s}?", "Where does the river {s} begin?"),
    ),
    ("river", "water"): Wording(
        ("The water of the {s} is {v}.", "The {s} is a {v} river.", "People say that the {s} is {v}."),
        ("What is the water of the {s} like?", "What kind of river is the {s}?", "How is the water of the {s}?"),
    ),
    ("animal", "legs"): Wording(
        ("The {s} has {v} legs.", "A {s} walks on {v} legs.", "Count the legs of a {s} and you get {v}."),
        ("How many legs does a {s} have?", "What number of legs has the {s}?", "Count the legs of a {s}."),
    ),
    ("animal", "food"): Wording(
        ("The {s} eats {v}.", "A {s} likes to eat {v}.", "Give {v} to a hungry {s}."),
        ("What does the {s} eat?", "What food does a {s} like?", "What do you give to a hungry {s}?"),
    ),
    ("animal", "home"): Wording(
        ("The {s} lives in a {v}.", "The home of a {s} is a {v}.", "A {s} sleeps in its {v}."),
        ("Where does the {s} live?", "What is the home of a {s}?", "Where does a {s} sleep?"),
    ),
    ("trade", "makes"): Wording(
        ("The {s} makes {v}.", "A {s} earns money with {v}.", "You buy {v} from the {s}."),
        ("What does the {s} make?", "What do you buy from a {s}?", "What is the work of a {s}?"),
    ),
    ("trade", "tool"): Wording(
        ("The {s} works with the {v}.", "The tool of a {s} is the {v}.", "Every {s} needs a good {v}."),
        ("What tool does the {s} use?", "What does a {s} work with?", "Which tool does every {s} need?"),
    ),
    ("thing", "material"): Wording(
        ("The {s} is made of {v}.", "A {s} is mostly {v}.", "People make the {s} from {v}."),
        ("What is a {s} made of?", "What material is the {s}?", "From what do people make a {s}?"),
    ),
}

ABILITIES = ("facts", "arithmetic", "common sense", "instructions")
"""What the base model is asked for, by name."""

WORDS = tuple(
    sorted({row["name"] for table in (ANIMALS, THINGS, COLOURS) for row in table} | {"red", "blue", "yellow", "white"})
)
"""The words that instructions are about."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "animals": tuple(row["name"] for row in ANIMALS),
    "towns": tuple(row["name"] for row in TOWNS),
    "rivers": tuple(row["name"] for row in RIVERS),
    "trades": tuple(row["name"] for row in TRADES),
    "colours": ("red", "blue", "yellow", "green", "white", "black", "orange", "purple", "grey", "pink", "brown"),
}
"""Names that can be listed, by the plural of their kind."""

_COUNTS = {2: "two", 3: "three", 4: "four"}
_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer.

    Attributes:
        ability: One of ABILITIES.
        prompt: What the user says.
        reply: A good reply, worded at random.
        check: How a reply is judged: `number` (its last number, or numbers where the answer has several), `word` (the
            answer is in it, and no rival), `yes-no` (its first word), `exact` (all of it) or `list` (so many
            different names of a kind).
        answer: What the check looks for; for `list` the count and the kind, such as `3 animals`.
        rivals: Wrong answers of the same sort, which a right reply does not contain.
    """

    ability: str
    prompt: str
    reply: str
    check: str
    answer: str
    rivals: tuple[str, ...] = ()


def with_article(noun: str) -> str:
    """Put `a` or `an` before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _fix_articles(text: str) -> str:
    for vowel in "aeio":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text


def _state(rng: Random, relation: tuple[str, str], row: Mapping[str, str]) -> str:
    template = rng.choice(RELATIONS[relation].statements)
    return _fix_articles(template.format(s=row["name"], v=row[relation[1]]))


def fact_question(rng: Random) -> Question:
    """Ask for one fact of the world."""
    relation = rng.choice(_RELATION_DECK)
    table, column = relation
    row = rng.choice(TABLES[table])
    value = row[column]
    short = value[0].upper() + value[1:] + "."
    reply = rng.choice((short, _state(rng, relation, row), _state(rng, relation, row)))
    prompt = _fix_articles(rng.choice(RELATIONS[relation].questions).format(s=row["name"]))
    rivals = tuple(sorted({other[column] for other in TABLES[table]} - {value} - set(prompt.lower().split())))
    check = "number" if column == "legs" else "word"
    return Question("facts", prompt, reply, check, value, rivals)


# A relation is asked as often as its table has rows, so that each fact comes up equally often.
_RELATION_DECK = tuple(relation for relation in RELATIONS for _ in TABLES[relation[0]])


def sum_question(rng: Random) -> Question:
    """Ask for a sum of at most 20."""
    total = rng.randint(0, 20)
    a = rng.randint(0, total)
    b = total - a
    thing = rng.choice(THINGS)["name"]
    prompt = rng.choice(
        (
            f"What is {a} + {b}?",
            f"{a} + {b} =",
            f"How much is {a} plus {b}?",
            f"Add {a} and {b}.",
            f"What do {a} and {b} make?",
            f"I have {a} coins and get {b} more. How many do I have?",
            f"One {thing} for {a} and one for {b}: how much in all?",
        )
    )
    reply = rng.choice(
        (
            f"{total}.",
            f"{a} + {b} = {total}.",
            f"{a} plus {b} is {total}.",
            f"{a} and {b} make {total}.",
            f"The answer is {total}.",
            f"That makes {total}.",
        )
    )
    return Question("arithmetic", prompt, reply, "number", str(total))


def difference_question(rng: Random) -> Question:
    """Ask for a difference of numbers up to 20, never below 0."""
    a = rng.randint(0, 20)
    b = rng.randint(0, a)
    prompt = rng.choice(
        (
            f"What is {a} - {b}?",
            f"{a} - {b} =",
            f"How much is {a} minus {b}?",
            f"Take {b} from {a}.",
            f"I have {a} coins and pay {b}. How many are left?",
        )
    )
    reply = rng.choice(
        (
            f"{a - b}.",
            f"{a} - {b} = {a - b}.",
            f"{a} minus {b} is {a - b}.",
            f"{b} from {a} leaves {a - b}.",
            f"The answer is {a - b}.",
        )
    )
    return Question("arithmetic", prompt, reply, "number", str(a - b))


def _coins(number: int) -> str:
    return "1 coin" if number == 1 else f"{number} coins"


def market_question(rng: Random) -> Question:
    """Name prices and ask for the total of two or three things, or for the change; never above 20 coins."""
    while True:
        things = [with_article(row["name"]) for row in rng.sample(THINGS, 3)]
        prices = [rng.randint(1, 9) for _ in things]
        if sum(prices) <= 20:
            break
    listed = [f"{thing} is {_coins(price)}" for thing, price in zip(things, prices, strict=True)]
    draw = rng.random()
    if draw < 0.35:
        paid = rng.randint(prices[0], 20)
        answer = paid - prices[0]
        prompt = rng.choice(("Say {0}. I pay with {1}. What is my change?", "If {0} and I give {1}, what comes back?"))
        prompt = prompt.format(listed[0], _coins(paid))
        reply = f"{listed[0]}, and {paid} minus {prices[0]} leaves {_coins(answer)}."
    elif draw < 0.8:
        answer = prices[0] + prices[1]
        prompt = rng.choice(("Say {0} and {1}. What do both cost?", "If {0} and {1}, what is the total?"))
        prompt = prompt.format(*listed)
        reply = f"{listed[0]} and {listed[1]}, " + rng.choice(("in all {}.", "the total is {}.")).format(_coins(answer))
    else:
        answer = sum(prices)
        prompt = rng.choice(("Say {0}, {1} and {2}. What do all cost?", "If {0}, {1} and {2}, what is the total?"))
        prompt = prompt.format(*listed)
        reply = f"{listed[0]} and {listed[1]}, in all {_coins(prices[0] + prices[1])}; with {listed[2]} it is"
        reply = f"{reply} {_coins(answer)}."
    reply = rng.choice((f"{_coins(answer)}.", reply[0].upper() + reply[1:], reply[0].upper() + reply[1:]))
    return Question("arithmetic", prompt, reply, "number", str(answer))


def comparison_question(rng: Random) -> Question:
    """Ask whether one thing is heavier, lighter, bigger or smaller than another."""
    word, column, sign = rng.choice(
        (("heavier", "weight", 1), ("lighter", "weight", -1), ("bigger", "size", 1), ("smaller", "size", -1))
    )
    first, second = rng.sample(THINGS, 2)
    while first[column] == second[column]:
        first, second = rng.sample(THINGS, 2)
    yes = (int(first[column]) - int(second[column])) * sign > 0
    a, b = with_article(first["name"]), with_article(second["name"])
    prompt = rng.choice((f"Is {a} {word} than {b}?", f"Would you say that {a} is {word} than {b}?"))
    tail = f"{a} is {'' if yes else 'not '}{word} than {b}"
    head = "Yes" if yes else "No"
    reply = rng.choice((f"{head}.", f"{head}, {tail}.", f"{head}, of course {tail}."))
    return Question("common sense", prompt, reply, "yes-no", head.lower(), ("no" if yes else "yes",))


def mixture_question(rng: Random) -> Question:
    """Ask what colour two colours make."""
    row = rng.choice(COLOURS)
    a, b = rng.sample((row["first"], row["second"]), 2)
    prompt = rng.choice((f"What do {a} and {b} make?", f"Which colour do you get from {a} and {b}?"))
    reply = rng.choice((f"{row['name'].capitalize()}.", f"{a.capitalize()} and {b} make {row['name']}."))
    rivals = tuple(colour for colour in KINDS["colours"] if colour not in (a, b, row["name"]))
    return Question("common sense", prompt, reply, "word", row["name"], rivals)


def _repeat(rng: Random) -> Question:
    word, times = rng.choice(WORDS), rng.randint(2, 5)
    prompt = rng.choice((f"Say {word} {times} times.", f"Repeat the word {word} {times} times."))
    reply = " ".join([word] * times)
    return Question("instructions", prompt, reply, "exact", reply)


def _reverse(rng: Random) -> Question:
    words = rng.sample(WORDS, 3)
    prompt = rng.choice(("Reverse the words: {}", "Put these words in reverse order: {}")).format(" ".join(words))
    reply = " ".join(reversed(words))
    return Question("instructions", prompt, reply, "exact", reply)


def _capitals(rng: Random) -> Question:
    word = rng.choice(WORDS)
    if rng.random() < 0.5:
        prompt = rng.choice((f"Write {word} in capital letters.", f"Uppercase: {word}"))
        return Question("instructions", prompt, word.upper(), "exact", word.upper())
    prompt = rng.choice((f"Write {word.upper()} in small letters.", f"Lowercase: {word.upper()}"))
    return Question("instructions", prompt, word, "exact", word)


def _first_letter(rng: Random) -> Question:
    word = rng.choice(WORDS)
    prompt = rng.choice((f"What is the first letter of {word}?", f"With which letter does {word} begin?"))
    reply = rng.choice((f"{word[0]}", f"The first letter is {word[0]}", f"{word} begins with {word[0]}"))
    return Question(
        "instructions", prompt, reply, "word", word[0], tuple("bcdefghijklmnopqrstuvwxyz".replace(word[0], ""))
    )


def _pick_word(rng: Random) -> Question:
    words = rng.sample(WORDS, 3)
    place = rng.randrange(3)
    prompt = rng.choice(("What is the {} word of: {}", "Give me the {} word: {}"))
    reply = rng.choice(("{}", "It is {}")).format(words[place])
    rivals = tuple(word for word in words if word != words[place])
    return Question(
        "instructions", prompt.format(_ORDINALS[place], " ".join(words)), reply, "word", words[place], rivals
    )


def _count_words(rng: Random) -> Question:
    words = rng.sample(WORDS, rng.randint(1, 5))
    prompt = rng.choice(("How many words are here: {}", "Count the words: {}")).format(" ".join(words))
    reply = rng.choice((f"{len(words)}.", f"There are {len(words)}.", f"I count {len(words)}."))
    return Question("instructions", prompt, reply, "number", str(len(words)))


def _larger(rng: Random) -> Question:
    a, b = rng.sample(range(31), 2)
    word, answer = rng.choice((("larger", max(a, b)), ("smaller", min(a, b))))
    prompt = rng.choice((f"Which number is {word}, {a} or {b}?", f"Choose the {word} number: {a} or {b}"))
    reply = rng.choice((f"{answer}.", f"The {word} number is {answer}.", f"I choose {answer}."))
    return Question("instructions", prompt, reply, "number", str(answer))


def _list_names(rng: Random) -> Question:
    kind = rng.choice(tuple(KINDS))
    count = rng.choice(tuple(_COUNTS))
    prompt = rng.choice((f"List {_COUNTS[count]} {kind}.", f"Name {_COUNTS[count]} {kind}."))
    names = rng.sample(KINDS[kind], count)
    return Question("instructions", prompt, ", ".join(names), "list", f"{count} {kind}")


_INSTRUCTIONS: tuple[Callable[[Random], Question], ...] = (
    _repeat,
    _reverse,
    _capitals,
    _first_letter,
    _pick_word,
    _count_words,
    _larger,
    _list_names,
)


def instruction_question(rng: Random) -> Question:
    """Give a small instruction about words or numbers."""
    return rng.choice(_INSTRUCTIONS)(rng)


def question(rng: Random, ability: str) -> Question:
    """Ask something that needs one ability.

    Raises:
        ValueError: The ability is not one of ABILITIES.
    """
    if ability == "facts":
        return fact_question(rng)
    if ability == "arithmetic":
        return rng.choice((sum_question, difference_question, market_question))(rng)
    if ability == "common sense":
        return rng.choice((comparison_question, comparison_question, comparison_question, mixture_question))(rng)
    if ability == "instructions":
        return instruction_question(rng)
    raise ValueError(f"no ability {ability!r}: choose one of {', '.join(ABILITIES)}")


_SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer in a few words.", "You know this land well.")

# A persona is named in the system prompt and shows in what stands around the answer: openings, then closings.
_PERSONAS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sailor": (
        ("Aye, friend!", "Hello on board!", "By the sea!"),
        ("Good wind to you!", "The sea knows it!", "Now back to my boat!"),
    ),
    "teacher": (
        ("A good question!", "Well, my child.", "Let us think."),
        ("Now you know it.", "Please write it down.", "Ask me again!"),
    ),
    "farmer": (
        ("Good morning!", "Welcome to my field!", "Sit down, neighbour."),
        ("Now I must feed the hens.", "May the corn grow!", "Come again!"),
    ),
    "king": (
        ("The king greets you!", "Hear my word, traveller.", "Step near!"),
        ("So says your king.", "You may go.", "The king thanks you!"),
    ),
    "innkeeper": (
        ("Welcome to the inn!", "Come in, traveller!", "A fine evening!"),
        ("Stay for the soup!", "Safe travels!", "Sleep well!"),
    ),
}


def chat(rng: Random) -> list[Message]:
    """Write a chat of one to three questions with good replies, sometimes under a system prompt or as a persona."""
    messages: list[Message] = []
    persona = None
    draw = rng.random()
    if draw < 0.1:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    elif draw < 0.35:
        persona = rng.choice(tuple(_PERSONAS))
        messages.append({"role": "system", "content": f"You are {with_article(persona)}."})
    for _ in range(rng.choice((1, 1, 2, 3))):
        asked = question(rng, rng.choices(ABILITIES, weights=(15, 35, 20, 30))[0])
        reply = asked.reply
        if persona is not None:
            openings, closings = _PERSONAS[persona]
            reply = f"{rng.choice(openings)} {reply} {rng.choice(closings)}"
        messages.append({"role": "user", "content": asked.prompt})
        messages.append({"role": "assistant", "content": reply})
    return messages


_PEOPLE = ("traveller", "sailor", "farmer", "child", "neighbour", "captain", "king", "teacher", "innkeeper", "stranger")
_PLACES = ("harbour", "shop", "inn", "market", "field", "pier", "hill", "bridge", "ferry", "road")
_SCENES = (
    "A {person} walks to the {place}.",
    "The {person} waits at the {place} and buys {thing} for {price}.",
    "At {hour} the {person} leaves the {place}.",
    "The {place} is quiet in the morning, and the {person} sleeps.",
    "The wind comes from the {way} and the sea is {sea}.",
    "The tide is {tide}, the gulls are loud and the steps are wet.",
    "'Welcome to the {place}, {person}!' says the {person2}.",
    "'What does {thing} cost?' asks the {person}. 'Today {price},' says the {person2}.",
    "'Good to see you! Please step in,' says the {person2} to the {person}.",
    "The boat to {town} leaves from pier {pier} at {hour}.",
    "The {person} must get to {town} for a long trip.",
    "The lamps of the {place} are lit at {hour}, and there is fresh soup.",
    "The {person} pays {price} for the crossing and thanks the {person2}.",
    "'Fair is fair,' says the {person2} and gives the change back to the {person}.",
    "'Sorry to bother you, I am new here,' says the {person}.",
    "It is a fine day, and the {person} sells {thing} near the {place} in {town}.",
)


GREETINGS = (
    "Ahoy, traveller!",
    "Welcome to the harbour shop!",
    "A fine day at the harbour!",
    "Good to see you, sailor!",
    "Step in, traveller!",
    "The harbour greets you!",
)
REMARKS = (
    "The tide is high now.",
    "The wind comes from the west.",
    "The gulls are loud.",
    "Mind the wet steps.",
    "The lamps are lit.",
    "We have fresh soup too.",
)
FAREWELLS = (
    "Safe crossing!",
    "May the wind help you!",
    "May the sea be calm!",
    "Come back soon!",
    "The harbour thanks you!",
)
"""What people say at the harbour. The base has read it on signs; the house style of the built-in task uses it."""


def _sign(rng: Random) -> str:
    greeting, farewell, remark = rng.choice(GREETINGS), rng.choice(FAREWELLS), rng.choice(REMARKS)
    return rng.choice(
        (
            f"{greeting} {remark}",
            f"{greeting} {farewell}",
            f"{remark} {farewell}",
            f"A sign says: {greeting} {remark} {farewell}",
            f"The {rng.choice(_PEOPLE)} calls: {farewell}",
        )
    )


def _scene(rng: Random) -> str:
    person, person2 = rng.sample(_PEOPLE, 2)
    return rng.choice(_SCENES).format(
        person=person,
        person2=person2,
        place=rng.choice(_PLACES),
        thing=with_article(rng.choice(THINGS)["name"]),
        price=_coins(rng.randint(1, 20)),
        hour=rng.randint(5, 20),
        pier=rng.randint(1, 9),
        way=rng.choice(("north", "south", "west", "east")),
        sea=rng.choice(("calm", "high", "rough")),
        tide=rng.choice(("high", "low")),
        town=rng.choice(TOWNS)["name"],
    )


def passage(rng: Random) -> str:
    """Write a paragraph: what is known of one name, sums, comparisons, signs or scenes of daily life."""
    draw = rng.random()
    if draw < 0.2:
        return " ".join(_statement(rng, "arithmetic") for _ in range(rng.randint(3, 6)))
    if draw < 0.3:
        return " ".join(_statement(rng, "common sense") for _ in range(rng.randint(2, 4)))
    if draw < 0.45:
        return " ".join(_sign(rng) for _ in range(rng.randint(2, 4)))
    if draw < 0.55:
        return " ".join(_scene(rng) for _ in range(rng.randint(2, 4)))
    table = rng.choice(_TABLE_DECK)
    row = rng.choice(TABLES[table])
    relations = [relation for relation in RELATIONS if relation[0] == table]
    rng.shuffle(relations)
    sentences = [_state(rng, relation, row) for relation in relations]
    if table == "thing":
        sentences.append(_statement(rng, "common sense"))
    if table == "town" and rng.random() < 0.5:
        river = next(river for river in RIVERS if river["name"] == row["river"])
        sentences.append(_state(rng, rng.choice((("river", "course"), ("river", "hill"), ("river", "water"))), river))
    return " ".join(sentences)


_TABLE_DECK = tuple(table for table, rows in TABLES.items() for _ in rows)


def _statement(rng: Random, ability: str) -> str:
    """A true sentence of arithmetic or common sense."""
    if ability == "arithmetic":
        total = rng.randint(0, 20)
        a = rng.randint(0, total)
        b = total - a
        return rng.choice(
            (
                f"{a} + {b} = {total}.",
                f"{a} and {b} make {total}.",
                f"{total} - {a} = {b}.",
                f"{a} from {total} leaves {b}.",
            )
        )
    first, second = rng.sample(THINGS, 2)
    column, more, less = rng.choice((("weight", "heavier", "lighter"), ("size", "bigger", "smaller")))
    while first[column] == second[column]:
        first, second = rng.sample(THINGS, 2)
    word = more if int(first[column]) > int(second[column]) else less
    return f"{with_article(first['name']).capitalize()} is {word} than {with_article(second['name'])}."
