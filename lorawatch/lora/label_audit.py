"""What the labels of a run's rows are: which tokens are trained on, and whether a reply learns to end.

The rows are those that the trainer's own collator makes, taken from the data set by index. Nothing here loads a
library, draws a random number or touches a device: tensors are read through their ``tolist``.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lorawatch.records import LabelAudit, LabelledPiece
from lorawatch.render import number, printable

if TYPE_CHECKING:
    from rich.text import Text

IGNORED = -100
"""Label of a token that is not trained on (``ignore_index`` of ``torch.nn.functional.cross_entropy``)."""
MAX_ROWS = 64
"""Rows that are looked at; of packed ones, the examples within them."""
MAX_TOKENS = 1_000_000
"""Tokens after which no further row is looked at."""
MAX_EXAMPLES = 3
MAX_PIECES = 24
"""Pieces of a row that are shown: half of them from its start, half from its end."""
MAX_PIECE = 240
"""Characters of a piece that are shown: two thirds from its start, a third from its end."""
LOOK_AHEAD = 4
"""Tokens after a reply among which its end token may stand: a line break, or a marker, may come before it."""
_BATCH = 8
_MAX_CHARACTERS = 200_000
_MAX_DECODED = 20_000
_ELLIPSIS = "…"

_TURNS: Mapping[str, tuple[str, str]] = {
    "ChatML": ("<|im_start|>", "<|im_end|>"),
    "Llama 3": ("<|start_header_id|>", "<|end_header_id|>"),
    "Gemma": ("<start_of_turn>", "<end_of_turn>"),
    "Llama 2, Mistral": ("[INST]", "[/INST]"),
    "Phi 3, Zephyr": ("<|user|>", "<|assistant|>"),
    "Alpaca": ("### Instruction:", "### Response:"),
}
"""A chat template to two markers that stand in its rows, one after the other: as the templates in TRL's
``chat_templates`` have them, and the repositories of Zephyr and Alpaca."""
_REPLIES = ("### Response:", "[/INST]")
"""What stands before a reply in templates without tokens of their own."""

_QUESTIONS = ("what is zqk1", "what is zqk2")
_ANSWERS = ("it is zqa1", "it is zqa2")
"""Words of a small conversation by which a template is told: no template holds them, or changes them."""


class LabelError(ValueError):
    """Rows whose labels cannot be audited: one line says why."""


class NoLabelsError(LabelError):
    """Batches without labels: those of a preference or reinforcement trainer, or of a collator that makes none."""


@dataclass(frozen=True, slots=True)
class TurnMarkers:
    """What a tokenizer and its chat template put around a reply.

    Attributes:
        ends: Ids of the tokens that end a reply: the end-of-sequence tokens, and the template's own end of a turn.
        text: The end token to look for, as text: the template's, or else the end-of-sequence token. "" without any.
        bos: Id of the token that begins a text.
        pad: Id of the padding token.
        header: Token ids that the template puts before a reply; empty where they cannot be told.
        source: The template and what it makes of a small conversation, as text; "" where there is no template.
    """

    ends: frozenset[int] = frozenset()
    text: str = ""
    bos: int | None = None
    pad: int | None = None
    header: tuple[int, ...] = ()
    source: str = ""


class _Words:
    """Encodes and decodes by a tokenizer that may be absent, or fail."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._soft: dict[int, bool] = {}

    def encode(self, text: str) -> list[int]:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # a tokenizer of some other library
            return []
        return [one for one in ids if isinstance(one, int)] if isinstance(ids, list) else []

    def decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return f"({len(ids)} tokens)" if ids else ""
        try:
            text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        except Exception:  # an id beyond the vocabulary
            text = "".join(f"<{one}>" for one in ids)
        return str(text).encode("utf-8", "replace").decode("utf-8")

    def is_soft(self, token: int) -> bool:
        """Whether a token is white space alone."""
        known = self._soft.get(token)
        if known is None:
            known = self._soft[token] = self._tokenizer is not None and not self.decode([token]).strip()
        return known


def read_markers(tokenizer: Any) -> TurnMarkers:
    """What ends a reply and what comes before it, by this tokenizer and its chat template.

    The end of a turn is told by rendering a small conversation: it is the first special token after a reply. Where a
    template closes no last turn, it is the first one between a reply and the next question, as TRL tells it
    (``is_chat_template_stop_token_trained``).

    Args:
        tokenizer: A tokenizer, a processor that holds one, or None. It may lack template, padding and end token.
    """
    inner = _tokenizer_of(tokenizer)
    if inner is None:
        return TurnMarkers()
    words = _Words(inner)
    ends = list(_ids(getattr(inner, "eos_token_id", None)))
    owner = next((one for one in (tokenizer, inner) if getattr(one, "chat_template", None)), None)
    source, turn = "", None
    header: tuple[int, ...] = ()
    if owner is not None:
        source = _source(owner.chat_template)
        rendered = _render(owner, 4)
        if rendered is not None:
            source += rendered
            turn = _turn_end(rendered, inner, words)
            header = _header(owner, rendered, words)
    shown = turn if turn is not None else next(iter(ends), None)
    return TurnMarkers(
        ends=frozenset([*ends, *([] if turn is None else [turn])]),
        text="" if shown is None else words.decode([shown]).strip(),
        bos=next(iter(_ids(getattr(inner, "bos_token_id", None))), None),
        pad=next(iter(_ids(getattr(inner, "pad_token_id", None))), None),
        header=header,
        source=source,
    )


def _tokenizer_of(tokenizer: Any) -> Any:
    inner = getattr(tokenizer, "tokenizer", None)  # a processor's
    return inner if hasattr(inner, "eos_token_id") else tokenizer


def _ids(value: Any) -> Iterator[int]:
    for one in value if isinstance(value, list | tuple | set) else [value]:
        if isinstance(one, int) and not isinstance(one, bool):
            yield one


def _source(template: Any) -> str:
    """Text of a template, or of all of them where there are several by name."""
    if isinstance(template, Mapping):
        return "\n".join(str(one) for one in template.values())[:_MAX_CHARACTERS]
    return str(template)[:_MAX_CHARACTERS]


def _render(owner: Any, messages: int, *, prompt: bool = False) -> str | None:
    """The first messages of the small conversation by the template, up to the header of a reply with ``prompt``."""
    spoken = [
        ("user", _QUESTIONS[0]), ("assistant", _ANSWERS[0]), ("user", _QUESTIONS[1]), ("assistant", _ANSWERS[1])
    ][:messages]  # fmt: skip
    for parts in (False, True):  # templates of processors take lists of parts only
        chat = [{"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in spoken]
        text: Any = None
        with suppress(Exception):  # whatever a template raises
            text = owner.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        if isinstance(text, list):
            text = text[0] if text else None
        if isinstance(text, str) and all(words in text for _, words in spoken):
            return text[:_MAX_CHARACTERS]
    return None


def _turn_end(rendered: str, tokenizer: Any, words: _Words) -> int | None:
    special = _special(tokenizer)
    first = rendered.find(_ANSWERS[0]) + len(_ANSWERS[0])
    last = rendered.rfind(_ANSWERS[1]) + len(_ANSWERS[1])
    for text in (rendered[last:], rendered[first : max(rendered.find(_QUESTIONS[1]), first)]):
        for token in words.encode(text):
            if token in special:
                return token
            if not words.is_soft(token):
                break
    return None


def _special(tokenizer: Any) -> set[int]:
    found = set(_ids(list(getattr(tokenizer, "all_special_ids", None) or ())))
    try:
        found.update(_ids(list(tokenizer.get_added_vocab().values())))
    except Exception:  # not every tokenizer tells
        return found
    return found


def _header(owner: Any, rendered: str, words: _Words) -> tuple[int, ...]:
    """What stands between a question and its reply; without the end of the question where a prompt tells it."""
    answer = rendered.find(_ANSWERS[0])
    text = rendered[rendered.find(_QUESTIONS[0]) + len(_QUESTIONS[0]) : answer]
    asked, prompted = _render(owner, 1), _render(owner, 1, prompt=True)
    if asked and prompted and len(prompted) > len(asked) and prompted.startswith(asked) and rendered.startswith(asked):
        told, used = prompted[len(asked) :], rendered[len(asked) : answer]
        same = next((at for at, (one, two) in enumerate(zip(told, used, strict=False)) if one != two), len(told))
        text = told[: min(same, len(used))] or text
    return tuple(words.encode(text.strip())) if text.strip() else ()


def first_rows(source: Any, collator: Callable[[list[Any]], Any] | None = None, rows: int = MAX_ROWS) -> list[Any]:
    """The first rows of a data set, collated as the trainer collates them.

    Rows are taken by index, not through the sampler; the random states of Python, numpy and torch are put back. A
    collator that keeps a generator of its own (masked language modelling with ``seed``) is not left as it was.

    Args:
        source: The training data loader, or the data set.
        collator: The trainer's ``data_collator``; by default the loader's ``collate_fn``. A loader of the Trainer has
            the columns left out already that a collator cannot take: it is the better source.
        rows: How many.

    Returns:
        Batches of the loader's own size, the last one smaller where it does not divide ``rows``.

    Raises:
        LabelError: The rows come as a stream, there are none, or they cannot be collated.
    """
    return _collated(source, collator, rows, spread=False)


def spread_rows(source: Any, collator: Callable[[list[Any]], Any] | None = None, rows: int = MAX_ROWS) -> list[Any]:
    """As :func:`first_rows`, with rows at equal distances over the whole data set: a file of several sources, one after
    the other, shows all of them."""  # noqa: D205, D209
    return _collated(source, collator, rows, spread=True)


def _collated(source: Any, collator: Callable[[list[Any]], Any] | None, rows: int, *, spread: bool) -> list[Any]:
    is_loader = hasattr(source, "collate_fn")
    data: Any = source.dataset if is_loader else source
    collate = collator if collator is not None else getattr(source, "collate_fn", None)
    if collate is None:
        raise LabelError("no collator: give the trainer's data_collator, or its training data loader")
    streams = any(one.__name__ == "IterableDataset" for one in type(data).__mro__)
    if streams or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise LabelError("the rows come as a stream: to look at them would use them up")
    with _random_states_kept():
        try:
            size = len(data)
            count = min(rows, size)
            chosen = [at * size // count for at in range(count)] if spread else list(range(count))
            width = max(1, min(_batch_size(source) if is_loader else _BATCH, MAX_ROWS))
            batches = [
                collate([data[at] for at in chosen[start : start + width]]) for start in range(0, len(chosen), width)
            ]
        except Exception as error:  # of the user's own data set or collator
            said = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
            raise LabelError(f"the rows cannot be collated: {said}") from error
    if not batches:
        raise LabelError("the data set has no rows")
    return batches


def _batch_size(loader: Any) -> int:
    for one in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(one, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return _BATCH


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put the global random states back afterwards, of the libraries that this process has loaded."""
    python = random.getstate()
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    torch: Any = sys.modules.get("torch")
    arrays = None if numpy is None else numpy.get_state()
    tensors = None if torch is None else torch.get_rng_state()
    cards = None if torch is None or not torch.cuda.is_initialized() else torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(arrays)
        if torch is not None:
            torch.set_rng_state(tensors)
        if torch is not None and cards is not None:
            torch.cuda.set_rng_state_all(cards)


@dataclass(slots=True)
class _Row:
    """One example: its tokens and labels, without padding.

    ``hidden_end``: the token after it is padding by the mask, and the end token by its id.
    """

    ids: list[int]
    labels: list[int]
    packed: bool
    hidden_end: bool = False


@dataclass(slots=True)
class _Signs:
    """What was told of one row."""

    trained: int = 0
    end: bool | None = None
    """Whether its end token is trained; None where it has none."""
    truncated: bool = False
    double_bos: bool = False
    duplicate: bool = False
    foreign: bool = False
    prompt: bool = False

    @property
    def wrong(self) -> tuple[bool, ...]:
        """Each kind of trouble by which a row is worth showing."""
        return (not self.trained, self.end is False, self.truncated, self.foreign, self.double_bos, self.duplicate)


@dataclass(slots=True)
class _Rows:
    """The rows of the batches, and what the batches tell of their padding."""

    rows: list[_Row] = field(default_factory=list)
    tokens: int = 0
    batches: int = 0
    one_short: int = 0
    """Batches whose longest row is one token short of their width."""
    odd_width: bool = False
    masked_inside: bool = False
    """Whether a padding token within a row, not at its ends, counts as padding."""

    @property
    def full(self) -> bool:
        return len(self.rows) >= MAX_ROWS or self.tokens >= MAX_TOKENS

    @property
    def padding_by_id(self) -> bool:
        """Whether the mask was made by comparing ids with the padding token, so that it took the end token away.

        Then even the longest row of each batch is one token short. Of rows that are padded to a multiple of 8 that
        happens by chance, one time in eight: three batches, or a width that is no such multiple, rule it out.
        """
        return self.masked_inside or (0 < self.batches == self.one_short and (self.batches >= 3 or self.odd_width))


def audit_labels(
    batches: Iterable[Any],
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    cuts: bool = True,
    time: float | None = None,
) -> LabelAudit:
    """What the labels of the first :data:`MAX_ROWS` rows of these batches are.

    A row of several examples, told by ``position_ids``, ``cu_seq_lens_q``, ``seq_lengths`` or the numbers in its
    ``attention_mask``, is looked at example by example. An end token counts as trained where any reply of the row has
    its end token trained. Rows that are cut off are not asked for one.

    Args:
        batches: Collated batches: mappings with ``input_ids`` and ``labels``, of tensors, arrays or lists.
        tokenizer: The tokenizer or processor; without it, only what needs no text is told.
        max_length: Tokens at which rows are cut. Where it is None or some row is longer, a length that several of the
            longest rows share is taken for it.
        cuts: Whether what is longer is cut off there; False where it goes on in another row (``packing_strategy`` of
            ``bfd_split`` or ``wrapped``), so that no row counts as truncated.
        time: Unix time for the record.

    Raises:
        NoLabelsError: The batches have no labels.
        LabelError: They are of a form that cannot be judged, or there are none.
    """
    inner = _tokenizer_of(tokenizer)
    markers, words = read_markers(tokenizer), _Words(inner)
    found = _read(batches, markers)
    rows = found.rows
    if not rows:
        raise LabelError("no rows to look at")
    if found.padding_by_id:
        for row in rows:
            if row.hidden_end and not _ends(row.ids, markers, words) and markers.pad is not None:
                row.ids.append(markers.pad)
                row.labels.append(IGNORED)
    _check_alignment(rows)
    limit = _limit(rows, markers, words, max_length) if cuts else max_length
    seen: set[bytes] = set()
    signs = [_signs(row, markers, words, limit if cuts else None, seen) for row in rows]
    return LabelAudit(
        rows=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        trained=sum(one.trained for one in signs),
        untrained_rows=sum(not one.trained for one in signs),
        truncated_rows=sum(one.truncated for one in signs),
        ended_rows=sum(one.end is not None for one in signs),
        unsupervised_ends=sum(one.end is False for one in signs),
        double_bos_rows=sum(one.double_bos for one in signs),
        duplicate_rows=sum(one.duplicate for one in signs),
        foreign_template_rows=sum(one.foreign for one in signs),
        pad_is_eos=None if markers.pad is None else markers.pad in markers.ends,
        prompt_trained_rows=sum(one.prompt for one in signs),
        packed=any(row.packed for row in rows),
        max_length=limit,
        examples=[_pieces(rows[at], words) for at in _shown(signs)],
        marker=markers.text[:100],
        time=time,
    )


def _read(batches: Iterable[Any], markers: TurnMarkers) -> _Rows:
    found = _Rows()
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise NoLabelsError(f"a batch is no mapping but {type(batch).__name__}: there are no labels in it")
        if "input_ids" not in batch:
            raise LabelError("the batches have no input_ids")
        if batch.get("labels") is None:
            raise NoLabelsError("the batches have no labels: the collator makes none, or the trainer needs none")
        _take(batch, markers, found)
        if found.full:
            break
    del found.rows[MAX_ROWS:]
    return found


def _take(batch: Mapping[Any, Any], markers: TurnMarkers, found: _Rows) -> None:
    table, labels = _table(batch["input_ids"]), _table(batch["labels"])
    if len(table) != len(labels) or any(len(one) != len(two) for one, two in zip(table, labels, strict=True)):
        raise LabelError(
            "the labels are not one a token: those of an encoder-decoder model, or of whole rows (classification)"
        )
    masks, positions = (_like(batch.get(name), table) for name in ("attention_mask", "position_ids"))
    boundaries = _boundaries(batch, len(table))
    longest = 0
    for at, ids in enumerate(table):
        mask = None if masks is None else masks[at]
        kept = _kept(ids, labels[at], mask, markers, whole=mask is None and positions is not None)
        longest = max(longest, len(kept))
        hidden = markers.pad in markers.ends and bool(kept) and ids[kept.stop : kept.stop + 1] == [markers.pad]
        found.masked_inside |= mask is not None and any(ids[one] == markers.pad and not mask[one] for one in kept)
        starts = _starts(kept, mask, None if positions is None else positions[at], boundaries.get(at, []))
        for start, end in zip(starts, [*starts[1:], len(kept)], strict=True):
            part = kept[start:end]
            row = _Row([ids[one] for one in part], [labels[at][one] for one in part], packed=len(starts) > 1)
            if len(row.ids) == 1 and row.ids[0] == markers.pad and row.labels[0] == IGNORED and row.packed:
                continue  # padding of a padding-free batch, whose positions are all 0
            row.hidden_end = hidden and end == len(kept)
            if row.ids:
                found.rows.append(row)
                found.tokens += len(row.ids)
    width = max((len(ids) for ids in table), default=0)
    found.batches += 1
    found.one_short += width > 1 and longest == width - 1
    found.odd_width |= width % 8 != 0


def _table(value: Any) -> list[list[int]]:
    """Rows of whole numbers, of a tensor, an array or lists; numbers without rows are one row.

    Raises:
        LabelError: It is none of these.
    """
    rows = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(rows, list | tuple):
        rows = [one.tolist() if hasattr(one, "tolist") else one for one in rows]
        if all(isinstance(row, list | tuple) for row in rows):
            table = [list(row) for row in rows]
            if all(isinstance(one, int) for row in table for one in row):
                return table
        elif all(isinstance(one, int) for one in rows):
            return [list(rows)]
    raise LabelError("input_ids or labels are not rows of whole numbers")


def _like(value: Any, table: list[list[int]]) -> list[list[int]] | None:
    """The same for a mask or positions; None where their shape is another (four-dimensional masks)."""
    try:
        found = None if value is None else _table(value)
    except LabelError:
        return None
    return found if found is not None and [len(one) for one in found] == [len(one) for one in table] else None


def _boundaries(batch: Mapping[Any, Any], rows: int) -> dict[int, list[int]]:
    """Where examples begin in the rows of a batch that tells it by lengths: row to indices."""
    cumulative, lengths = batch.get("cu_seq_lens_q"), batch.get("seq_lengths")
    try:
        if cumulative is not None and rows == 1:
            flat = cumulative.tolist() if hasattr(cumulative, "tolist") else list(cumulative)
            return {0: [int(one) for one in flat[:-1]]}
        if lengths is not None:
            found = {}
            for at, row in enumerate(_table(lengths)):
                starts = [0]
                for one in row[:-1]:
                    starts.append(starts[-1] + one)
                found[at] = starts
            return found
    except (LabelError, TypeError, ValueError):
        return {}
    return {}


def _kept(ids: list[int], labels: list[int], mask: list[int] | None, markers: TurnMarkers, *, whole: bool) -> range:
    """Indices of the tokens of a row that are not padding."""
    start, end = 0, len(ids)
    if mask is not None:  # what lies between is part of the row, whatever the mask says
        while end and not mask[end - 1]:
            end -= 1
        while start < end and not mask[start]:
            start += 1
        return range(start, end)
    if markers.pad is not None and not whole:  # without a mask, padding is what looks like it at the ends
        while end and ids[end - 1] == markers.pad and labels[end - 1] == IGNORED:
            end -= 1
        while start < end and ids[start] == markers.pad and labels[start] == IGNORED and markers.pad != markers.bos:
            start += 1
    return range(start, end)


def _starts(kept: range, mask: list[int] | None, positions: list[int] | None, told: list[int]) -> list[int]:
    """Where the examples of a row begin, as indices into ``kept``."""
    if not kept:
        return [0]
    if positions is not None:
        return [0, *(at for at in range(1, len(kept)) if positions[kept[at]] == 0)]
    if told:
        offset = kept[0]
        return sorted({0, *(at - offset for at in told if offset < at < offset + len(kept))})
    starts, last = [0], 0
    for at, one in enumerate(mask[kept.start : kept.stop] if mask is not None else ()):
        if one and last and one != last:
            starts.append(at)
        last = one or last
    return starts


def _check_alignment(rows: list[_Row]) -> None:
    """See that a trained label is its own token's, as a causal language model of transformers takes them.

    Raises:
        LabelError: Most are not.
    """
    pairs = [(one, two) for row in rows for one, two in zip(row.ids, row.labels, strict=True) if two != IGNORED]
    if pairs and 2 * sum(one != two for one, two in pairs) > len(pairs):
        raise LabelError(
            "the labels are other tokens than the inputs: shifted ones, masked language modelling, or an "
            "encoder-decoder model"
        )


def _limit(rows: list[_Row], markers: TurnMarkers, words: _Words, told: int | None) -> int | None:
    """Length at which rows are cut: as it was told, or else one that several of the longest rows share."""
    longest = max(len(row.ids) for row in rows)
    if told is not None and longest <= told:
        return told
    alike = [row for row in rows if len(row.ids) == longest]
    blocks = [row for row in alike if sum(one != IGNORED for one in row.labels) >= longest - 1]
    if not markers.ends or len(blocks) >= 0.9 * len(rows):
        return None  # blocks of a longer text, such as group_texts of transformers' language-modelling example makes
    unended = sum(not _ends(row.ids, markers, words) for row in alike)
    return longest if unended >= max(3, 0.05 * len(rows)) and 2 * unended > len(alike) else None


def _signs(row: _Row, markers: TurnMarkers, words: _Words, limit: int | None, seen: set[bytes]) -> _Signs:
    ids = row.ids
    found = _Signs(trained=sum(one != IGNORED for one in row.labels))
    found.truncated = limit is not None and len(ids) == limit and not _ends(ids, markers, words)
    if not found.truncated and found.trained:
        found.end = _end(row, markers, words)
    found.double_bos = markers.bos is not None and ids[:2] == [markers.bos, markers.bos]
    digest = hashlib.blake2b(repr(ids).encode(), digest_size=16).digest()
    found.duplicate = digest in seen
    seen.add(digest)
    text = words.decode(ids[:_MAX_DECODED])
    found.foreign = _has_foreign_turns(text, markers.source)
    found.prompt = _trains_prompt(row, found.trained, markers, text)
    return found


def _ends(ids: list[int], markers: TurnMarkers, words: _Words) -> bool:
    """Whether the last token that is not white space is an end token."""
    for at in range(len(ids) - 1, max(len(ids) - 1 - LOOK_AHEAD, -1), -1):
        if ids[at] in markers.ends:
            return True
        if not words.is_soft(ids[at]):
            return False
    return False


def _end(row: _Row, markers: TurnMarkers, words: _Words) -> bool | None:
    """Whether the end token of any reply of the row is trained; None where no reply is followed by one."""
    ids, ends, masked, start = row.ids, markers.ends, False, 0
    for trained, group in groupby(row.labels, key=lambda label: label != IGNORED):
        stop = start + sum(1 for _ in group)
        if trained:
            last = stop - 1
            while last >= start and (ids[last] in ends or words.is_soft(ids[last])):
                if ids[last] in ends:
                    return True
                last -= 1
            for at in range(stop, min(stop + LOOK_AHEAD, len(ids))):
                if ids[at] in ends:
                    masked = True
                if not words.is_soft(ids[at]):
                    break
        start = stop
    return False if masked else None


def _has_foreign_turns(text: str, source: str) -> bool:
    """Whether turns of another template stand in the text, where the tokenizer has a template."""
    for first, second in _TURNS.values() if source else ():
        if first not in source and (at := text.find(first)) >= 0 and text.find(second, at) >= 0:
            return True
    return False


def _trains_prompt(row: _Row, trained: int, markers: TurnMarkers, text: str) -> bool:
    """Whether most of what stands before the first reply is trained on."""
    ids, header = row.ids, list(markers.header)
    if header:
        for at in range(len(ids) - len(header) + 1):
            if ids[at] == header[0] and ids[at : at + len(header)] == header:
                return at > 0 and 2 * sum(one != IGNORED for one in row.labels[:at]) > at
        return False
    return trained >= len(ids) - 1 and any(text.find(one) > 0 for one in _REPLIES)


def _shown(signs: list[_Signs]) -> list[int]:
    """The rows to show: one for each kind of trouble, then the first ones, in their order."""
    chosen: dict[int, None] = {}
    for kind in zip(*(one.wrong for one in signs), strict=True):
        if True in kind:
            chosen.setdefault(kind.index(True))
    for at in range(len(signs)):
        chosen.setdefault(at)
    return sorted(list(chosen)[:MAX_EXAMPLES])


def _pieces(row: _Row, words: _Words) -> list[LabelledPiece]:
    spans: list[tuple[int, int, bool]] = []
    start = 0
    for trained, group in groupby(row.labels, key=lambda label: label != IGNORED):
        stop = start + sum(1 for _ in group)
        spans.append((start, stop, trained))
        start = stop
    pieces = [LabelledPiece(_cut(row.ids[first:last], words), trained) for first, last, trained in _ended(spans)]
    if len(spans) > MAX_PIECES:
        pieces.insert(MAX_PIECES // 2, LabelledPiece(_ELLIPSIS, trained=False))
    return pieces


def _ended(spans: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    half = MAX_PIECES // 2
    return spans if len(spans) <= MAX_PIECES else [*spans[:half], *spans[-half:]]


def _cut(ids: list[int], words: _Words) -> str:
    """Text of a piece: of a long one its start and its end, where an end token stands."""
    head = 2 * MAX_PIECE // 3
    tail = MAX_PIECE - head - 1
    if len(ids) > 2 * MAX_PIECE:
        return words.decode(ids[:MAX_PIECE])[:head] + _ELLIPSIS + words.decode(ids[-MAX_PIECE:])[-tail:]
    text = words.decode(ids)
    return text if len(text) <= MAX_PIECE else text[:head] + _ELLIPSIS + text[-tail:]


OPEN, CLOSE = "⟦", "⟧"
"""What stands around trained tokens where there is no colour."""


def audit_text(audit: LabelAudit) -> list[str]:
    """The audit for a person, a line each: counts, then the rows, their trained tokens in ``⟦ ⟧``.

    Nothing of the rows can act on a terminal: controls are replaced, a line break is shown as ``↵``.
    """
    lines = _counts(audit)
    if audit.examples:
        lines.append(f"Rows ({OPEN}trained{CLOSE}, the rest is masked):")
    for place, pieces in enumerate(audit.examples, start=1):
        text = "".join(f"{OPEN}{_safe(one.text)}{CLOSE}" if one.trained else _safe(one.text) for one in pieces)
        lines.append(f"  {place}. {text}")
    return lines


def audit_rich(audit: LabelAudit, *, colored: bool = True) -> list[Text]:
    """The same for a rich console: trained tokens bright, masked ones dim.

    Args:
        audit: What to show.
        colored: Whether the console shows colours (its ``color_system``, and not ``no_color``). Without them the
            brackets of :func:`audit_text` stand.
    """
    from rich.text import Text  # noqa: PLC0415  (only a terminal needs it)

    if not colored:
        return [Text(line) for line in audit_text(audit)]
    lines = [Text(line) for line in _counts(audit)]
    if audit.examples:
        lines.append(Text.assemble("Rows (", ("trained", "bold green"), ", ", ("masked", "dim"), "):"))
    for place, pieces in enumerate(audit.examples, start=1):
        line = Text(f"  {place}. ")
        for one in pieces:
            line.append(_safe(one.text), "bold green" if one.trained else "dim")
        lines.append(line)
    return lines


def _counts(audit: LabelAudit) -> list[str]:
    share = audit.trained / audit.tokens if audit.tokens else 0.0
    what = "packed examples" if audit.packed else "rows"
    trained = f"{number(audit.trained)} of {number(audit.tokens)} tokens are trained on ({100 * share:.0f} %)"
    lines = [f"Labels of {audit.rows} {what}: {trained}"]
    end = f" ({_safe(audit.marker)})" if audit.marker else ""
    cut = f" (at {number(audit.max_length)} tokens)" if audit.max_length is not None else ""
    counts = {
        "without a trained token": audit.untrained_rows,
        f"cut off{cut}": audit.truncated_rows,
        f"with an end token{end}": audit.ended_rows,
        "whose end token is masked": audit.unsupervised_ends,
        "with two BOS tokens": audit.double_bos_rows,
        "that repeat an earlier one": audit.duplicate_rows,
        "with turns of another chat template": audit.foreign_template_rows,
        "whose prompt is trained on": audit.prompt_trained_rows,
    }
    lines += [f"  {count:>4} {words}" for words, count in counts.items() if count]
    if audit.pad_is_eos:
        lines.append("  the padding token is an end token")
    return lines


def _safe(text: str) -> str:
    """``text`` on one line, without brackets that could be taken for the audit's own."""
    plain = text.replace(OPEN, "[").replace(CLOSE, "]").replace("\r\n", "↵").replace("\n", "↵").replace("\t", "⇥")
    return printable(plain)
