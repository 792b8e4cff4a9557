"""What a model is asked while it trains: prompts of the task, general questions with one answer, general passages.

Task prompts are the first ones of the run's own data, or those of a file. General questions and passages are built in
(:mod:`lorawatch.lora.probe_texts`). Everything is bounded, and nothing here loads a library or draws a random number.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorawatch.lora.probe_texts import ARITHMETIC, COMMON_SENSE, PASSAGES

TASK_PROMPTS = 12
"""Prompts that are taken from the run's data: 8 to 16 are enough to see a model fail (rule catalogue, gen)."""
MAX_PROBES = 64
"""Prompts that are taken of a file."""
MAX_BYTES = 4_000_000
"""Size of a file of prompts."""
MAX_TEXT = 8_000
"""Characters of a prompt."""
MAX_PROMPT_TOKENS = 512
"""Tokens of a prompt; rows of the run's data whose prompt is longer are passed over."""
MAX_ROWS = 64
"""Rows of the run's data that are looked at for prompts."""

Check = Literal["number", "word", "text"]
Message = Mapping[str, str]


class ProbesError(Exception):
    """Prompts cannot be had: says in a line or two what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt.

    Attributes:
        prompt: What is asked, as a person reads it.
        kind: ``task`` or ``general``.
        messages: The chat that ends with it, for a model with a chat template; empty to ask the prompt alone.
        tokens: The prompt as token ids, template included, where it comes from tokenized rows; else empty.
        reference: The reply that the data gives; None where there is none.
        reference_tokens: That reply as token ids, where it comes from tokenized rows; else empty.
        answer: What a right reply holds; None where a reply cannot be judged.
        rivals: Wrong answers that the prompt offers.
        check: How a reply is judged: ``number`` (the last one of the first line, or of all), ``word`` (the answer comes
            before its rivals), ``text`` (the reply holds the answer).
        judge: Judges a reply in place of ``check``.
    """

    prompt: str
    kind: Literal["task", "general"] = "task"
    messages: tuple[Message, ...] = ()
    tokens: tuple[int, ...] = ()
    reference: str | None = None
    reference_tokens: tuple[int, ...] = ()
    answer: str | None = None
    rivals: tuple[str, ...] = ()
    check: Check = "text"
    judge: Callable[[str], bool] | None = field(default=None, compare=False)

    def is_right(self, reply: str) -> bool | None:
        """Whether a reply is right; None where that cannot be told."""
        if self.judge is not None:
            return self.judge(reply)
        if self.answer is None:
            return None
        if self.check == "number":
            return _number_is(self.answer, reply)
        if self.check == "word":
            return _word_is(self.answer, self.rivals, reply)
        return f" {_plain(self.answer)} " in f" {_plain(reply)} "


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """All that a model is asked.

    Attributes:
        task: Prompts of the task.
        general: General questions with an answer each.
        passages: General passages, for perplexity.
        left_out: Prompts of a file beyond :data:`MAX_PROBES`.
    """

    task: tuple[Probe, ...] = ()
    general: tuple[Probe, ...] = ()
    passages: tuple[str, ...] = ()
    left_out: int = 0


def general_probes() -> tuple[Probe, ...]:
    """The built-in questions: 25 sums and 25 of common sense, in turn."""
    sums = [
        Probe(f"{question} Answer with the number only.", "general", answer=answer, check="number")
        for question, answer in ARITHMETIC
    ]
    sense = [
        Probe(f"{question} Answer with one word.", "general", answer=answer, rivals=rivals, check="word")
        for question, answer, rivals in COMMON_SENSE
    ]
    return tuple(one for pair in zip(sums, sense, strict=True) for one in pair)


def built_in(task: Iterable[Probe] = (), *, left_out: int = 0) -> ProbeSet:
    """The built-in questions and passages beside prompts of the task; general ones of these replace built-in ones."""
    given = tuple(task)
    general = tuple(one for one in given if one.kind == "general")
    return ProbeSet(tuple(one for one in given if one.kind == "task"), general or general_probes(), PASSAGES, left_out)


def read_probes(file: Path) -> ProbeSet:
    """The prompts of a user's file, beside the built-in questions and passages.

    A ``.jsonl`` file holds an object a line with ``prompt`` (text, or messages), and if wanted ``answer``,
    ``reference`` and ``probe`` (``task`` or ``general``); a ``.csv`` file the same as columns; a ``.txt`` file a prompt
    a line.

    Raises:
        ProbesError: There is no such file, it is too large, no text, of another form, or holds no prompt.
    """
    kind = file.suffix.lower()
    if kind not in (".jsonl", ".csv", ".txt"):
        raise ProbesError(
            f"{file}: prompts are read from .jsonl, .csv or .txt, not from {kind or 'a file without one'}"
        )
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ProbesError(f"{file}: is larger than {MAX_BYTES // 1_000_000} MB; {MAX_PROBES} prompts are enough")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ProbesError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ProbesError(
            f"{file}: holds prompts that are not text (no UTF-8 at byte {error.start}); save it as UTF-8"
        ) from None
    rows = {".jsonl": _json_rows, ".csv": _csv_rows, ".txt": _text_rows}[kind](text, file)
    probes = [_probe_of(row, f"{file}, line {line}") for line, row in rows]
    if not probes:
        raise ProbesError(f"{file}: holds no prompt")
    return built_in(probes[:MAX_PROBES], left_out=max(len(probes) - MAX_PROBES, 0))


def _json_rows(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ProbesError(
                f"{file}, line {number}: is not JSON; each line must be an object with a prompt"
            ) from None
        if not isinstance(row, dict):
            raise ProbesError(f'{file}, line {number}: must be an object like {{"prompt": "..."}}')
        yield number, row


def _csv_rows(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    try:
        if "prompt" not in (reader.fieldnames or ()):
            raise ProbesError(f"{file}: its first line must name the columns, one of them prompt")
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name and value}
    except csv.Error as error:
        raise ProbesError(f"{file}, line {reader.line_num}: is not CSV: {error}") from None


def _text_rows(text: str, _file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _probe_of(row: Mapping[str, Any], where: str) -> Probe:
    asked = row.get("prompt")
    if asked is None:
        raise ProbesError(f"{where}: has no prompt")
    messages = _messages(asked)
    text = asked if isinstance(asked, str) else messages[-1]["content"] if messages else None
    if text is None:
        raise ProbesError(f"{where}: prompt must be text or messages, is {type(asked).__name__}")
    if not text.strip() or "\0" in text:
        raise ProbesError(f"{where}: prompt is {'not text' if text.strip() else 'empty'}")
    if max(sum(len(one["content"]) for one in messages), len(text)) > MAX_TEXT:
        raise ProbesError(f"{where}: prompt is longer than {MAX_TEXT} characters")
    for name in ("answer", "reference"):
        if name in row and not isinstance(row[name], str | int | float):
            raise ProbesError(f"{where}: {name} must be text or a number, is {type(row[name]).__name__}")
    kind = row.get("probe", "task")
    if kind not in ("task", "general"):
        raise ProbesError(f"{where}: probe must be task or general, is {str(kind)[:40]!r}")
    answer = row.get("answer")
    number = answer is not None and re.fullmatch(r"-?\d+(?:\.\d+)?", str(answer).strip()) is not None
    messages = messages or ({"role": "user", "content": text},)
    return Probe(
        text, "general" if kind == "general" else "task", messages,
        reference=None if row.get("reference") is None else str(row["reference"]),
        answer=None if answer is None else str(answer).strip(), check="number" if number else "text",
    )  # fmt: skip


def task_probes(dataset: Any, tokenizer: Any = None, count: int = TASK_PROMPTS) -> tuple[Probe, ...]:
    """The first prompts of a data set, which is read by index: neither a sampler nor a loader moves on.

    Rows may be chats (``messages``), pairs (``prompt`` and ``completion``, ``chosen``, ``answer`` …), Alpaca's
    (``instruction``, ``input``, ``output``) or tokenized (``input_ids`` with ``labels`` or a mask, or ``prompt_ids``).
    A row without a prompt, or with the prompt of an earlier one, is passed over.

    Raises:
        ProbesError: The data set is a stream, or none of its first rows has a prompt that can be told.
    """
    if dataset is None or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ProbesError("the data is a stream, from which no row can be taken back; give prompts by --probes FILE")
    found: dict[str, Probe] = {}
    for index in range(min(len(dataset), MAX_ROWS)):
        row = dataset[index]
        probe = _probe_of_row(row, tokenizer) if isinstance(row, Mapping) else None
        if probe is not None and probe.prompt.strip() and len(probe.prompt) <= MAX_TEXT:
            found.setdefault(probe.prompt, probe)
        if len(found) >= count:
            break
    if not found:
        raise ProbesError("no row of the data tells where its prompt ends; give prompts by --probes FILE")
    return tuple(found.values())


_REPLIES = ("completion", "chosen", "response", "output", "answer")
_QUESTIONS = ("prompt", "question", "instruction")


def _probe_of_row(row: Mapping[str, Any], tokenizer: Any) -> Probe | None:
    chat = _messages(row.get("messages") or row.get("conversations"))
    if chat:
        last = max((at for at, one in enumerate(chat) if one["role"] == "assistant"), default=len(chat))
        asked = chat[:last]
        if not asked or asked[-1]["role"] == "assistant":
            return None
        return Probe(
            asked[-1]["content"], messages=asked, reference=chat[last]["content"] if last < len(chat) else None
        )
    prompt_ids = row.get("prompt_ids")
    if prompt_ids is not None and tokenizer is not None:
        return _tokenized(list(prompt_ids), list(row.get("chosen_ids") or ()), tokenizer)
    name = next((name for name in _QUESTIONS if row.get(name)), "")
    question = row.get(name)
    reply = next((_text(row[one]) for one in _REPLIES if row.get(one)), None)
    asked = _messages(question)
    if asked:
        return Probe(asked[-1]["content"], messages=asked, reference=reply)
    if isinstance(question, str):
        given = row.get("input")
        if name == "instruction" and isinstance(given, str) and given.strip():
            question = f"{question}\n\n{given}"
        # TRL asks a prompt that is plain text as it is; questions and instructions are put into a chat by their users.
        chat = () if name == "prompt" else ({"role": "user", "content": question},)
        return Probe(question, messages=chat, reference=reply)
    if row.get("input_ids") is not None and tokenizer is not None:
        return _probe_of_ids(row, tokenizer)
    return None


def _probe_of_ids(row: Mapping[str, Any], tokenizer: Any) -> Probe | None:
    """A probe of a tokenized row: its prompt is what comes before the first trained token."""
    ids = [int(one) for one in row["input_ids"]]
    mask = next((row[name] for name in ("completion_mask", "assistant_masks") if row.get(name) is not None), None)
    if mask is None and row.get("labels") is not None:
        mask = [int(one) != -100 for one in row["labels"]]
    start = next((at for at, one in enumerate(mask or ()) if one), 0)
    if start:
        end = next((at for at in range(start, len(ids)) if not (mask or ())[at]), len(ids))
        return _tokenized(ids[:start], ids[start:end], tokenizer)
    # All of it is trained on, or nothing: the chat template tells where the reply starts.
    opening = _start_of_reply(tokenizer)
    places = [at for at in range(len(ids)) if opening and ids[at : at + len(opening)] == opening]
    start = places[0] + len(opening) if places else 0
    return _tokenized(ids[:start], ids[start:], tokenizer) if start else None


def _tokenized(prompt: list[int], reply: list[int], tokenizer: Any) -> Probe | None:
    if len(prompt) > MAX_PROMPT_TOKENS:
        return None
    special = set(getattr(tokenizer, "all_special_ids", ()))
    whole = next((reply[:at] for at, one in enumerate(reply) if one in special), reply)
    text = str(tokenizer.decode(whole, skip_special_tokens=True))
    return Probe(
        last_turn(prompt, tokenizer), tokens=tuple(prompt), reference=text or None, reference_tokens=tuple(whole)
    )


def last_turn(prompt: Sequence[int], tokenizer: Any) -> str:
    """What the user said last in a tokenized prompt, without the template's marks; the whole where none are found."""
    marks = _turn_marks(tokenizer)
    text = str(tokenizer.decode(list(prompt), skip_special_tokens=False))
    if marks is not None and marks[0] in text:
        said = text.rpartition(marks[0])[2]
        return (said.partition(marks[1])[0] if marks[1] else said).strip()
    return str(tokenizer.decode(list(prompt), skip_special_tokens=True)).strip()


def _turn_marks(tokenizer: Any) -> tuple[str, str] | None:
    """What the chat template puts before and behind what a user says; None where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    word = "lorawatchprobe"
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": word}], tokenize=False)
    except Exception:  # a template is the model maker's code, and may refuse anything
        return None
    before, found, behind = str(text).partition(word)
    bos = getattr(tokenizer, "bos_token", None)
    if not found:
        return None
    before = before.removeprefix(bos) if bos else before
    return (before.lstrip(), behind.strip()) if before.strip() else None


def _start_of_reply(tokenizer: Any) -> list[int]:
    """Token ids that the chat template puts before a reply; empty where there are none."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    asked = [{"role": "user", "content": "a"}]
    try:
        whole = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        question = str(tokenizer.apply_chat_template(asked, tokenize=False))
        opening = whole.removeprefix(question).lstrip() if whole.startswith(question) else ""
        return [int(one) for one in tokenizer(opening, add_special_tokens=False)["input_ids"]] if opening else []
    except Exception:  # a template is the model maker's code, and may refuse anything
        return []


def _messages(value: Any) -> tuple[Message, ...]:
    """Messages of a chat, ShareGPT's names among them; empty where it is none, or holds more than text."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return ()
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for one in value:
        if not isinstance(one, Mapping):
            return ()
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return ()
        found.append({"role": roles.get(role, role), "content": content})
    return tuple(found)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    chat = _messages(value)
    return chat[-1]["content"] if chat else None


def _number_is(answer: str, reply: str) -> bool:
    """Whether the last number of the first line, or of the whole reply, is the answer."""
    lines = [line for line in reply.splitlines() if line.strip()]
    for text in (lines[0] if lines else "", reply):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        if numbers and float(numbers[-1]) == float(answer):
            return True
    return False


def _word_is(answer: str, rivals: Sequence[str], reply: str) -> bool:
    """Whether the answer is said before any rival."""
    words = _plain(reply).split()
    options = [_plain(answer), *map(_plain, rivals)]
    first = next((word for word in words if word in options), None)
    return first == options[0]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
