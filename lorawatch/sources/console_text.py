"""What one piece of console text says: dict rows, progress bars, printed arguments. No state, no files."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from lorawatch.sources.names import FACT_NAMES, metric_name, scalar

DICT = re.compile(rb"(\{'[^{}\r\n]*\})")
"""A dict as Python prints it, without dicts inside."""
_JSON_DICT = re.compile(rb'\{"[^{}\r\n]*\}')
_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]{0,500}(?:\x07|\x1b\\)|[@-Z\\-_])")
_BAR = re.compile(rb"(?:^|[|\s])(\d{1,9})/(\d{1,9}) \[(?:\d+:|\?)[^\]]*(?:\]|$)")
_PERCENT = re.compile(rb"\d{1,3}%\|")
_NUMBER = r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|nan|inf(?:inity)?)"
_IS_NUMBER = re.compile(_NUMBER + r"\Z", re.IGNORECASE | re.ASCII)
_PAIR = re.compile(
    r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*:\s*
    (?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s,'"\[\]()]+)
    |(?:np\.|numpy\.|torch\.)?(?:float\d+|int\d+|tensor|bfloat16)\(([^(),]*)[^()]*\)|(\[[^\[\]]*\]|\([^()]*\)))\s*(,|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_DECODE = msgspec.json.Decoder(list[dict[str, float]], strict=False).decode
_CANNOT = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Bar(NamedTuple):
    """A tqdm progress bar: position, total, what stands before it, and the numbers shown behind it."""

    n: int
    total: int
    title: bytes
    postfix: dict[str, float]
    end: int


def clean(block: bytes) -> bytes:
    """Take out terminal escapes, and the NULs that a truncated file leaves behind."""
    if b"\x1b" in block:
        block = _ANSI.sub(b"", block)
    if b"\0" in block:
        block = block.replace(b"\0", b"")
    return block


def decode_dicts(dicts: list[bytes]) -> list[dict[str, float] | None]:
    """Return the numbers of each printed dict, None for one that cannot be read.

    All dicts are decoded in one call, as JSON. What JSON cannot say is halved until the odd ones stand alone, and
    those are read by :func:`parse_dict`: the fast way only ever takes what both read alike.
    """
    if not dicts:
        return []
    rows = decode_joined(b",".join(dicts), len(dicts))
    if rows is not None:
        return rows  # type: ignore[return-value]
    if len(dicts) == 1:
        return [parse_dict(dicts[0])]
    half = len(dicts) // 2
    return decode_dicts(dicts[:half]) + decode_dicts(dicts[half:])


def decode_joined(joined: bytes, count: int) -> list[dict[str, float]] | None:
    """Return the numbers of ``count`` printed dicts with commas between; None where JSON would not read them alike."""
    if b'"' in joined or b"\\" in joined:
        return None
    text = b"[%b]" % joined.replace(b"'", b'"')
    rows = _decode(text)
    if rows is None and (b"nan" in text or b"inf" in text):
        text = text.replace(b": nan", b': "nan"').replace(b": inf", b': "inf"').replace(b": -inf", b': "-inf"')
        rows = _decode(text)
    return rows if rows is not None and len(rows) == count else None


def _decode(text: bytes) -> list[dict[str, float]] | None:
    try:
        return _DECODE(text)
    except _CANNOT:
        return None


def parse_dict(raw: bytes) -> dict[str, float] | None:
    """Read one printed dict exactly: numbers, also nan, inf, quoted, or in ``np.float64(…)`` and ``tensor(…)``.

    Values that are no numbers are left out. None when it is no dict of plain values. Nothing is evaluated.
    """
    text = raw.decode("utf-8", "replace")[1:-1]
    values: dict[str, float] = {}
    position = 0
    stated_words = False
    while position < len(text):
        if text[position:].isspace():
            break
        pair = _PAIR.match(text, position)
        if pair is None:
            return None
        single, double, *forms, _sequence, _end = pair.groups()
        key = single if single is not None else double
        shown = next((form for form in forms if form is not None), "")
        if _IS_NUMBER.match(shown):
            values[key] = float(shown)
        else:
            # A later value replaces an earlier one of the same name, as it does in Python and JSON.
            values.pop(key, None)
            stated_words = stated_words or forms[0] is not None or forms[1] is not None
        position = pair.end()
    # Settings are printed as dicts too; a row of a trainer with words in it still has its epoch.
    return None if stated_words and "epoch" not in values else values


def is_row(values: dict[str, float]) -> bool:
    """Whether a dict of numbers is a row that a trainer logged."""
    if "loss" in values or "train_runtime" in values:
        return True
    if "epoch" in values and ("learning_rate" in values or "grad_norm" in values or "reward" in values):
        return True
    return any(name.startswith("eval_") for name in values) and ("epoch" in values or "eval_loss" in values)


def read_bar(segment: bytes) -> Bar | None:
    """Return the last progress bar of a text without line ends."""
    if b"/" not in segment or b" [" not in segment:
        return None
    found = None
    for found in _BAR.finditer(segment):  # noqa: B007 - only the last is wanted
        pass
    if found is None:
        return None
    percent = None
    for percent in _PERCENT.finditer(segment, 0, found.start() + 1):  # noqa: B007
        pass
    title = segment[: percent.start()].strip() if percent else segment[: found.start()].strip()
    inside = segment[found.end(2) + 2 : found.end()]
    return Bar(int(found[1]), int(found[2]), title[-200:], _postfix(inside) if b"oss" in inside else {}, found.end())


_POSTFIX = re.compile(
    rb"[,\[] ?([A-Za-z][\w/]{0,40})\s?[=: ]\s?(" + _NUMBER.encode() + rb")(?=[,\]\s]|\Z)", re.IGNORECASE
)


def _postfix(inside: bytes) -> dict[str, float]:
    values = {}
    for name, value in _POSTFIX.findall(b"," + inside.partition(b",")[2]):
        values[metric_name(name.decode("ascii", "replace"))] = float(value)
    return values if "loss" in values else {}


_ITER = re.compile(rb"\s*iter (\d{1,9}): loss (" + _NUMBER.encode() + rb")(?:, time [\d.]+ ?m?s.*)?\s*\Z")
_EVAL_STEP = re.compile(
    rb"\s*step (\d{1,9}): train loss (" + _NUMBER.encode() + rb"), val loss (" + _NUMBER.encode() + rb")\s*\Z"
)
_EPOCH_STEP = re.compile(rb"Epoch (\d{1,9}), Step (\d{1,9}), Loss: (" + _NUMBER.encode() + rb"):?\s*\Z")


def read_plain(segment: bytes) -> tuple[int, dict[str, float]] | None:
    """Return step and values of a line that is, as a whole, one of the shapes of nanoGPT and its kin."""
    if match := _ITER.match(segment):
        return int(match[1]), {"loss": float(match[2])}
    if match := _EVAL_STEP.match(segment):
        return int(match[1]), {"loss": float(match[2]), "eval_loss": float(match[3])}
    return None


def read_title(title: bytes) -> float | None:
    """Return the loss that a progress bar shows in its title."""
    match = _EPOCH_STEP.match(title)
    return float(match[3]) if match else None


_HEADINGS = {
    "num examples": "train_rows",
    "num epochs": "num_train_epochs",
    "total optimization steps": "max_steps",
    "total steps": "max_steps",
    "gradient accumulation steps": "gradient_accumulation_steps",
    "total train batch size": "total_train_batch_size",
    "total batch size": "total_train_batch_size",
    "instantaneous batch size per device": "per_device_train_batch_size",
    "batch size per device": "per_device_train_batch_size",
    "number of trainable parameters": "trainable_parameters",
    "trainable parameters": "trainable_parameters",
}
_HEADING = re.compile(r"([A-Z][A-Za-z ]{4,40}[a-z])(?: \([^()=]{0,80}\))? = ([\d,]+(?:\.\d+)?)(?= |\||\Z)")
_PARAMETERS = re.compile(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+)")
_ARGUMENT = re.compile(
    r"(?:[^={}'\"]{0,200} - +|\[[^\]]{0,120}\]\s*|\s*)([a-z_][a-z0-9_]{0,60})(?:=|: )"
    r"([^\s'\"]{1,200}?|'[^']{0,200}'|\"[^\"]{0,200}\"),?\s*\Z"
)


def read_facts(line: bytes) -> dict[str, object]:
    """Return what a whole line says of the run's set-up; empty for any other text."""
    if len(line) > 1_000 or (b"=" not in line and b": " not in line):
        return {}
    text = line.decode("utf-8", "replace")
    facts: dict[str, object] = {}
    if " = " in text:
        for heading, value in _HEADING.findall(text):
            for start in (heading.lower(), heading.lower().rpartition("  ")[2]):
                if start in _HEADINGS:
                    facts[_HEADINGS[start]] = scalar(value.replace(",", ""))
        if facts:
            return facts
    if match := _PARAMETERS.search(text):
        trainable, total = (int(number.replace(",", "") or 0) for number in match.groups())
        return {"trainable_parameters": trainable, "total_parameters": total}
    match = _ARGUMENT.match(text)
    if match and match[1] in FACT_NAMES:
        return {match[1]: scalar(match[2])}
    return {}


def read_json_dicts(segment: bytes) -> list[dict[str, float]]:
    """Return the rows that are printed as JSON in a line of console text."""
    rows = [parse_dict(raw) for raw in _JSON_DICT.findall(segment)]
    return [row for row in rows if row and "loss" in row and ("epoch" in row or "step" in row)]
