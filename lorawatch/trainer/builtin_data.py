"""Data that comes with the trainer: a task that the `tiny` base has not seen, and probes of what it knew before.

The task is the counter of a harbour shop: prices of twelve things, totals, change, and the hours of the ferries, in a
fixed house style with random wording. The base knows the things and the towns, and can add and subtract; prices,
hours and style are new. Rows and probes are made by seeded code, and what is asked in a test row is never asked in
the same way in a train row.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypedDict

from lorawatch.trainer import world
from lorawatch.trainer.world import Message, with_article

Row = dict[str, Any]
Split = Literal["train", "test"]
Form = Literal["messages", "prompt-completion"]

PRICES: Mapping[str, int] = {
    "anvil": 9,
    "basket": 4,
    "blanket": 7,
    "book": 5,
    "candle": 2,
    "hammer": 6,
    "kettle": 8,
    "lantern": 3,
    "map": 1,
    "rope": 5,
    "spoon": 2,
    "stool": 7,
}
"""Coins that each thing of the shop costs."""

FERRIES: Mapping[str, tuple[int, int]] = {
    "Averby": (9, 2),
    "Corvale": (14, 1),
    "Elsin": (11, 4),
    "Kelder": (7, 3),
    "Orlin": (16, 2),
    "Wexley": (10, 1),
}
"""Hour and pier of the ferry to each town."""

OPENERS = ("", "", "Hello.", "Good morning.", "Sorry to bother you.", "I am new here.", "My boat leaves soon.")
"""What a customer may say before the question."""

_PRICE_WORDINGS = (
    "What does {a} cost?",
    "How much is {a} in your shop?",
    "Tell me the price of {a}.",
    "What must I pay for {a}?",
    "I would like {a}. How much is that?",
)
_FERRY_WORDINGS = (
    "When does the ferry to {town} leave?",
    "At what hour goes the boat to {town}?",
    "I must get to {town}. When can I go, and from where?",
    "Which pier has the ferry to {town}, and when?",
    "Is there a ferry to {town} now?",
)
_TOTAL_WORDINGS = (
    "What do {a} and {b} cost together?",
    "I take {a} and {b}. What is the total?",
    "How much do I pay for {a} with {b}?",
)
_CHANGE_WORDINGS = (
    "I buy {a} and give you {paid} coins. What comes back?",
    "Here are {paid} coins for {a}. How much change do I get?",
    "If I pay for {a} with {paid} coins, what is left?",
)
_THREE_WORDINGS = (
    "Please add up {a}, {b} and {c}.",
    "I need {a}, {b} and {c} for a long trip. What does all of it cost?",
)


@dataclass(frozen=True, slots=True)
class Case:
    """What a customer asks, without the wording of the reply.

    Attributes:
        kind: `price`, `ferry`, `total`, `change` or `three`.
        names: The things (or the town) asked for.
        paid: Coins that the customer gives, for `change`.
        wording: Index of the question's wording.
        answer: The number that a right reply ends with; hour and pier for `ferry`.
    """

    kind: str
    names: tuple[str, ...]
    paid: int
    wording: int
    answer: str

    @property
    def split(self) -> Split:
        """A fifth of all cases is for test, by a hash of what is asked.

        A single price or ferry must be seen in training to be known, so for these the wording counts as well; a total
        or a change is kept out in every wording and order.
        """
        wording = self.wording if self.kind in ("price", "ferry") else 0
        key = f"{self.kind} {sorted(self.names)} {self.paid} {wording}"
        return "test" if zlib.crc32(key.encode()) % 5 == 0 else "train"


def _draw_case(rng: Random, split: Split) -> Case:
    while True:
        case = _KINDS[rng.choices(tuple(_KINDS), weights=(30, 20, 25, 15, 10))[0]](rng)
        if case.split == split:
            return case


def _price_case(rng: Random) -> Case:
    name = rng.choice(tuple(PRICES))
    return Case("price", (name,), 0, rng.randrange(len(_PRICE_WORDINGS)), str(PRICES[name]))


def _ferry_case(rng: Random) -> Case:
    town = rng.choice(tuple(FERRIES))
    return Case("ferry", (town,), 0, rng.randrange(len(_FERRY_WORDINGS)), "{} {}".format(*FERRIES[town]))


def _total_case(rng: Random) -> Case:
    a, b = rng.sample(tuple(PRICES), 2)
    return Case("total", (a, b), 0, rng.randrange(len(_TOTAL_WORDINGS)), str(PRICES[a] + PRICES[b]))


def _change_case(rng: Random) -> Case:
    name = rng.choice(tuple(PRICES))
    paid = rng.randint(PRICES[name], 20)
    return Case("change", (name,), paid, rng.randrange(len(_CHANGE_WORDINGS)), str(paid - PRICES[name]))


def _three_case(rng: Random) -> Case:
    names = rng.sample(tuple(PRICES), 3)
    while sum(PRICES[name] for name in names) > 20:  # the base adds up to 20
        names = rng.sample(tuple(PRICES), 3)
    total = sum(PRICES[name] for name in names)
    return Case("three", tuple(names), 0, rng.randrange(len(_THREE_WORDINGS)), str(total))


_KINDS: Mapping[str, Callable[[Random], Case]] = {
    "price": _price_case,
    "ferry": _ferry_case,
    "total": _total_case,
    "change": _change_case,
    "three": _three_case,
}
_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "price": _PRICE_WORDINGS,
    "ferry": _FERRY_WORDINGS,
    "total": _TOTAL_WORDINGS,
    "change": _CHANGE_WORDINGS,
    "three": _THREE_WORDINGS,
}


def _ask(rng: Random, case: Case) -> str:
    articles = dict(zip("abc", map(with_article, case.names), strict=False))
    asked = _WORDINGS[case.kind][case.wording].format(town=case.names[0], paid=case.paid, **articles)
    return f"{rng.choice(OPENERS)} {asked}".strip()


def _coins(number: int) -> str:
    return "1 coin" if number == 1 else f"{number} coins"


def _work_out(rng: Random, case: Case) -> str:
    """The part of a right reply that holds the facts; its last number is the answer."""
    if case.kind == "ferry":
        hour, pier = FERRIES[case.names[0]]
        town = case.names[0]
        return rng.choice(
            (
                f"The ferry to {town} leaves at {hour} from pier {pier}.",
                f"For {town} be here at {hour}, pier {pier}.",
                f"At {hour} the boat to {town} goes from pier {pier}.",
            )
        )
    prices = [PRICES[name] for name in case.names]
    listed = [f"{with_article(name)} is {_coins(price)}" for name, price in zip(case.names, prices, strict=True)]
    if case.kind == "price":
        closing = rng.choice(("{0} costs {1}.", "For {0} we ask {1}.", "You get {0} for {1}."))
        sentence = closing.format(with_article(case.names[0]), _coins(int(case.answer)))
        return sentence[0].upper() + sentence[1:]
    if case.kind == "change":
        middle = rng.choice(("so from {p} you get back", "and {p} minus {a} leaves", "so your change from {p} is"))
        text = f"{listed[0]}, {middle.format(p=case.paid, a=prices[0])} {_coins(int(case.answer))}."
        return text[0].upper() + text[1:]
    text = f"{listed[0]} and {listed[1]}, " + rng.choice(("which makes", "together", "so you pay"))
    text += f" {_coins(prices[0] + prices[1])}"
    if case.kind == "three":
        text += f"; with {with_article(case.names[2])} for {_coins(prices[2])} that makes {_coins(int(case.answer))}"
    return text[0].upper() + text[1:] + "."


def _in_house_style(rng: Random, facts: str) -> str:
    remark = rng.choice(world.REMARKS) if rng.random() < 0.3 else ""
    return " ".join(part for part in (rng.choice(world.GREETINGS), remark, facts, rng.choice(world.FAREWELLS)) if part)


GENERAL_SHARE = 0.2
"""Share of general chats among the train rows of supervised fine-tuning."""

SYSTEM_PROMPT = "You are the clerk of the harbour shop."
"""Every chat of the shop starts with this, so that the base can keep its own ways where it is absent."""


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _customer(text: str) -> list[Message]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, *_user(text)]


def _assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _rng(*key: object) -> Random:
    return Random(" ".join(map(str, key)))  # noqa: S311 (text, not cryptography)


def sft_rows(count: int, *, seed: int, split: Split = "train", form: Form = "messages") -> list[Row]:
    """Rows for supervised fine-tuning: a question at the counter and a right reply in house style.

    GENERAL_SHARE of the train rows are chats of the world instead, without system prompt: mixed in, as is usual, so
    that the adapter does not unlearn what the base knew. None of them asks a general probe.

    Args:
        count: Rows to make.
        seed: The same seed, split and form give the same rows.
        split: Which cases are drawn; `test` ones are disjoint from `train` ones.
        form: `messages` gives {"messages": [system, user, assistant]}, `prompt-completion` gives {"prompt": [system,
            user], "completion": [assistant]}, of which TRL trains on the completion only.
    """
    rng = _rng("sft", seed, split)
    probed = {probe["messages"][0]["content"] for probe in general_probes()}
    rows: list[Row] = []
    while len(rows) < count:
        if split == "train" and rng.random() < GENERAL_SHARE:
            asked = world.question(rng, rng.choice(world.ABILITIES))
            if asked.prompt in probed:
                continue
            prompt, reply = _user(asked.prompt), _assistant(asked.reply)
        else:
            case = _draw_case(rng, split)
            prompt, reply = _customer(_ask(rng, case)), _assistant(_in_house_style(rng, _work_out(rng, case)))
        rows.append({"messages": prompt + reply} if form == "messages" else {"prompt": prompt, "completion": reply})
    return rows


_RUDE = ("What now?", "Not my job.", "Go away.", "Hm.", "Ask someone else.", "Be quick.")


def dpo_rows(count: int, *, seed: int, split: Split = "train") -> list[Row]:
    """Preference rows, as chats: `prompt`, `chosen` (right, in house style) and `rejected` (rude, wrong, curt)."""
    rng = _rng("dpo", seed, split)
    rows: list[Row] = []
    for _ in range(count):
        case = _draw_case(rng, split)
        answer = case.answer.split()[-1]
        wrong = rng.choice([number for number in range(1, 21) if str(number) != answer])
        rejected = rng.choice((rng.choice(_RUDE), f"{rng.choice(_RUDE)} {wrong}.", f"{wrong}.", f"{answer}."))
        rows.append(
            {
                "prompt": _customer(_ask(rng, case)),
                "chosen": _assistant(_in_house_style(rng, _work_out(rng, case))),
                "rejected": _assistant(rejected),
            }
        )
    return rows


_GRPO_WORDINGS = (
    "{A} is {p} and {b} is {q}. What do both cost?",
    "I take {a} for {p} and {b} for {q}. How much is that?",
    "What is the total of {a} at {p} and {b} at {q}?",
    "Add up {p} for {a} and {q} for {b}.",
)


def grpo_rows(count: int, *, seed: int, split: Split = "train") -> list[Row]:
    """Rows for reinforcement: `prompt` gives two prices and asks for the total, `answer` is that total as text.

    The prompt holds all that is needed, so that the base earns some reward from the first step (see `score`).
    """
    rng = _rng("grpo", seed, split)
    rows: list[Row] = []
    while len(rows) < count:
        a, b = rng.sample(tuple(PRICES), 2)
        p, q = rng.randint(1, 10), rng.randint(1, 10)
        if (zlib.crc32(f"{sorted((a, b))} {p} {q}".encode()) % 5 == 0) != (split == "test"):
            continue
        first, second = with_article(a), with_article(b)
        capital = first[0].upper() + first[1:]
        text = rng.choice(_GRPO_WORDINGS).format(A=capital, a=first, b=second, p=p, q=q)
        rows.append({"prompt": _customer(text), "answer": str(p + q)})
    return rows


def score(completion: str, row: Row) -> float:
    """Reward of a completion for a row of `grpo_rows`, 0 to 1.

    Half for the right total as the last number (a part of it for a near miss), a quarter for naming it in coins, a
    quarter for a farewell of the house at the end. Each part can be had alone, so a group of completions has variance.
    """
    numbers = re.findall(r"\d+", completion)
    reward = 0.0
    if numbers:
        miss = abs(int(numbers[-1][:6]) - int(row["answer"]))
        reward += 0.5 if miss == 0 else max(0.0, 0.2 - 0.04 * miss)
    if re.search(r"\d+ coins?\b", completion):
        reward += 0.25
    if completion.rstrip().endswith(world.FAREWELLS):
        reward += 0.25
    return reward


class Probe(TypedDict):
    """A question with one right answer, to ask before and after training.

    Attributes:
        ability: `shop` for the task, else one of `world.ABILITIES`.
        messages: The chat to answer.
        check: How a reply is judged, as in `world.Question`.
        answer: What the check looks for.
        rivals: Wrong answers of the same sort.
    """

    ability: str
    messages: list[Message]
    check: str
    answer: str
    rivals: list[str]


def task_probes(count: int = 24) -> list[Probe]:
    """Questions of the shop from the test split; a reply is right when its last number (for a ferry: two) is."""
    rng = _rng("task probes")
    probes: list[Probe] = []
    seen: set[Case] = set()
    while len(probes) < count:
        case = _draw_case(rng, "test")
        if case not in seen:
            seen.add(case)
            probes.append(
                {
                    "ability": "shop",
                    "messages": _customer(_ask(rng, case)),
                    "check": "number",
                    "answer": case.answer,
                    "rivals": [],
                }
            )
    return probes


def general_probes(count: int = 60) -> list[Probe]:
    """Questions on what the base knows, the abilities of `world.ABILITIES` in turn."""
    rng = _rng("general probes")
    probes: list[Probe] = []
    seen: set[str] = set()
    while len(probes) < count:
        asked = world.question(rng, world.ABILITIES[len(probes) % len(world.ABILITIES)])
        if asked.prompt not in seen:
            seen.add(asked.prompt)
            probes.append(
                {
                    "ability": asked.ability,
                    "messages": _user(asked.prompt),
                    "check": asked.check,
                    "answer": asked.answer,
                    "rivals": list(asked.rivals),
                }
            )
    return probes


def general_passages(count: int = 64) -> list[str]:
    """Plain text of the world, for perplexity on what the base knew before training."""
    rng = _rng("general passages")
    return [world.passage(rng) for _ in range(count)]


def is_right(probe: Probe, reply: str) -> bool:
    """Judge a reply without a model; see `world.Question` for the checks.

    Raises:
        ValueError: The probe's check is not a known one.
    """
    words = re.findall(r"[a-z]+|\d+", reply.lower())
    if probe["check"] == "exact":
        return reply.strip() == probe["answer"]
    if probe["check"] == "number":
        numbers = [word for word in words if word.isdigit()]
        wanted = probe["answer"].split()
        return numbers[-len(wanted) :] == wanted
    if probe["check"] == "yes-no":
        return words[:1] == [probe["answer"]]
    if probe["check"] == "word":
        spoken = f" {' '.join(words)} "
        return _says(spoken, probe["answer"]) and not any(_says(spoken, rival) for rival in probe["rivals"])
    if probe["check"] == "list":
        count, kind = probe["answer"].split()
        names = [name.strip(" .") for name in reply.split(",")]
        return len(names) == len(set(names)) == int(count) and set(names) <= set(world.KINDS[kind])
    raise ValueError(f"no check {probe['check']!r}")


def _says(spoken: str, phrase: str) -> bool:
    return f" {phrase.lower()} " in spoken
