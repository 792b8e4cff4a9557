"""The rule cfg/label-audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import Judged, LabelAudit
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import LANGUAGE_MODELLING, Kind, Run

FEW = 4
"""Rows from which a full mask is told: it needs no share."""
WHOLE = 0.98
"""Share of trained tokens from which rows count as trained on whole, so that no reply is told apart in them."""


@dataclass(frozen=True, slots=True)
class _Sign:
    """One thing that is wrong with the labels."""

    case: str
    severity: Severity
    summary: str


@dataclass(slots=True)
class CfgLabelAudit(Rule):
    """The labels of the first rows are not what they should be: rows without a trained token, replies whose end is not
    trained, rows that are cut off, or rows that are badly put together.

    ## Why it matters
    Nothing crashes, and the loss looks healthy. But a model that is never trained on the token that ends a reply does
    not stop; one that sees cut-off replies learns to break off; rows whose labels are all masked teach nothing.

    ## How it decides
    From up to 64 rows as the trainer's own collator makes them (of packed rows, the examples in them); at least 32, or
    all that there are. The end token is that of the tokenizer, or the one that its chat template puts after a reply.

    - No trained token in any row: critical, from 4 rows on. In more than half of the rows: critical. In more than 5 %:
      a warning.
    - The end token after a reply is masked in more than half of the rows that are not cut off: critical. Where it is
      masked, or no end token follows at all, in more than half of them: a warning, unless the rows are plain text.
    - Rows as long as `max_length` that do not end with an end token are cut off: a warning from 5 %, critical from
      half of the rows; of rows of plain text, trained on whole, information. Where `max_length` is not known, a length
      that several of the longest rows share is taken for it.
    - Two BOS tokens at the start of more than 5 % of the rows: a warning.
    - The turns of another chat template than the tokenizer's: a warning in more than half of the rows, information
      from 5 %.
    - The same tokens as an earlier row: information from 5 %; a warning from 25 %, where the data set is known to
      hold at least four times as many rows as were looked at.
    - The prompt trained on in more than half of the rows: information, since both ways are in use.

    That padding and end token are the same is no fault by itself. It is named where ends are masked.

    ## What to change
    Look at the rows, which the audit prints with trained and masked tokens told apart. All masked: the mask, the
    response template, or a template without `{% generation %}` under `assistant_only_loss`. Ends masked: a `pad_token`
    other than the end token, or the end token inside of `{% generation %}`. No end: `eos_token` after each reply.
    Cut off: a larger `max_length` (1,024 by default in TRL), up to the 99th percentile of the lengths. Two BOS: text
    that the chat template has rendered, tokenized without special tokens. Other turns: rows as `messages`.

    ## Known false alarms
    Rows that are meant to be without labels (part of a mixture), an end token of one's own that neither tokenizer nor
    template knows, copies that are in the mixture on purpose, chats about prompt formats. Labels that are shifted or
    of an encoder-decoder model are not judged, nor are rows that come as a stream.

    ## Sources
    TRL #976 (padding is the end token: replies that never end), #734, #1623; TRL 1.16 warns of templates that mask
    the end of a turn, and drops rows whose labels are all masked. The limits of 5, 25 and 50 % are the rule
    catalogue's, which takes 5 % of untrained rows and 25 % of cut-off ones for high: here these are warnings up to
    half of the rows, a choice, since the others still train and 64 rows tell a share roughly. For copies: 64 rows of a
    large file hold 16 copies (25 %) where it has about 128 different rows, by the birthday problem; four times as many
    rows is a choice. Whole text from 98 % of trained tokens is a choice.
    """  # noqa: D205

    id: ClassVar[str] = "cfg/label-audit"
    title: ClassVar[str] = "Labels of the training rows are off"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("sig/no-supervision", "gen/no-eos")
    judges: ClassVar[tuple[type[Judged], ...]] = (LabelAudit,)
    kinds: ClassVar[frozenset[Kind]] = LANGUAGE_MODELLING
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    least: int = param(32, unit="rows", help="Rows to look at, where the data set has so many.")
    untrained: float = param(0.05, unit="share of rows", help="Rows without a trained token that are a warning.")
    most: float = param(0.50, unit="share of rows", help="Rows that are critical: untrained, cut off, without end.")
    cut: float = param(0.05, unit="share of rows", help="Cut-off rows that are a warning.")
    double_bos: float = param(0.05, unit="share of rows", help="Rows with two BOS tokens that are a warning.")
    foreign: float = param(0.05, unit="share of rows", help="Rows with turns of another template worth a word.")
    copies: float = param(0.05, unit="share of rows", help="Repeated rows that are worth a word.")
    many_copies: float = param(0.25, unit="share of rows", help="Repeated rows that are a warning.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """Rows enough."""
        audit = run.labels
        if audit is None or self._enough(audit, run):
            return ()
        return (f"{self.least} rows with labels ({audit.rows} so far)",)

    def judge(self, audit: LabelAudit, run: Run) -> Breach | None:
        """Tell what is wrong with the rows, the worst first."""
        signs = sorted(self._signs(audit, run), key=lambda sign: -sign.severity)
        if not signs:
            return None
        worst = signs[0].severity
        told = [sign.summary for sign in signs if sign.severity is worst or sign.severity > Severity.INFO]
        evidence: dict[str, Any] = {
            "case": signs[0].case, "signs": [sign.case for sign in signs], "rows": audit.rows, "tokens": audit.tokens,
            "trained": audit.trained, "untrained_rows": audit.untrained_rows, "truncated_rows": audit.truncated_rows,
            "ended_rows": audit.ended_rows, "unsupervised_ends": audit.unsupervised_ends,
            "double_bos_rows": audit.double_bos_rows, "duplicate_rows": audit.duplicate_rows,
            "foreign_template_rows": audit.foreign_template_rows, "prompt_trained_rows": audit.prompt_trained_rows,
            "pad_is_eos": audit.pad_is_eos, "max_length": audit.max_length, "end_token": audit.marker,
        }  # fmt: skip
        return Breach(f"of {audit.rows} rows, {'; '.join(told)}", evidence, worst)

    def _enough(self, audit: LabelAudit, run: Run) -> bool:
        rows = run.number("train_rows")
        return audit.rows >= self.least or (rows is not None and audit.rows >= max(rows, 1) and not audit.packed)

    def _signs(self, audit: LabelAudit, run: Run) -> Iterator[_Sign]:
        rows, enough = audit.rows, self._enough(audit, run)
        if rows >= (1 if enough else FEW) and audit.trained == 0:
            yield _Sign("all masked", Severity.CRITICAL, "none has a token that is trained on")
            return
        if not enough:
            return
        if audit.untrained_rows > self.untrained * rows:
            severity = Severity.CRITICAL if audit.untrained_rows > self.most * rows else Severity.WARNING
            yield _Sign("untrained rows", severity, f"{audit.untrained_rows} have no token that is trained on")
        yield from self._ends(audit)
        if audit.double_bos_rows > self.double_bos * rows:
            yield _Sign("double bos", Severity.WARNING, f"{audit.double_bos_rows} begin with two BOS tokens")
        if audit.foreign_template_rows > self.foreign * rows:
            severity = Severity.WARNING if 2 * audit.foreign_template_rows > rows else Severity.INFO
            yield _Sign(
                "other template", severity, f"{audit.foreign_template_rows} hold turns of another chat template than "
                "the tokenizer's",
            )  # fmt: skip
        if audit.duplicate_rows > self.copies * rows:
            large = (run.number("train_rows") or 0.0) >= 4 * rows
            many = large and audit.duplicate_rows > self.many_copies * rows
            severity = Severity.WARNING if many else Severity.INFO
            yield _Sign("copies", severity, f"{audit.duplicate_rows} are copies of an earlier one")
        if 2 * audit.prompt_trained_rows > rows:
            yield _Sign(
                "prompt trained", Severity.INFO, f"{audit.prompt_trained_rows} are trained on their prompt, too"
            )

    def _ends(self, audit: LabelAudit) -> Iterator[_Sign]:
        """What is wrong with the ends of the rows: cut off, masked, or not there."""
        rows = audit.rows
        plain = audit.trained >= WHOLE * audit.tokens and 2 * audit.prompt_trained_rows <= rows
        if audit.truncated_rows > self.cut * rows:
            severity = Severity.CRITICAL if audit.truncated_rows > self.most * rows else Severity.WARNING
            at = f" at {audit.max_length} tokens" if audit.max_length else ""
            summary = f"{audit.truncated_rows} are cut off{at}, and do not come to their end"
            yield _Sign("cut off", Severity.INFO if plain else severity, summary)
        whole = max(rows - audit.truncated_rows - audit.untrained_rows, audit.ended_rows)
        masked, absent = audit.unsupervised_ends, whole - audit.ended_rows
        end = f" ({audit.marker})" if audit.marker else ""
        if masked > self.most * whole:
            also = ", which is the padding token" if audit.pad_is_eos else ""
            yield _Sign(
                "end masked", Severity.CRITICAL, f"{masked} have a reply whose end token{end}{also} is masked, so that "
                "no reply learns to end",
            )  # fmt: skip
        elif audit.marker and masked + absent > self.most * whole and not plain:
            also = f", and in {masked} it is masked" if masked else ""
            yield _Sign("no end", Severity.WARNING, f"{absent} have no end token{end} after a reply{also}")

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What mends each sign, the worst first."""
        advice: list[Adjustment] = []
        for case in breach.evidence["signs"]:
            for item in _remedies(case, breach.evidence, run):
                known = [one for one in advice if (one.parameter or one.proposed) == (item.parameter or item.proposed)]
                if not known:
                    advice.append(item)
        return advice


def _of_a_mask(evidence: dict[str, Any], run: Run) -> Iterator[Adjustment]:
    if evidence["truncated_rows"] and 2 * evidence["truncated_rows"] >= evidence["untrained_rows"]:
        yield _longer(evidence, run, "prompts that fill max_length leave no room for the reply that is trained on")
    yield look(
        "look at the rows that the audit prints: which tokens are masked, and why; compare the response template with "
        "the tokenized text, and the length of the masked prompt with that of the row after truncation; take rows "
        "without a reply out of the data set",
        "labels of -100 in a whole row come from a mask that finds no reply, or from a row that has none",
        confidence="high",
    )
    if run.fact("assistant_only_loss") is True:
        yield Adjustment(
            "assistant_only_loss", current=True, proposed=False, confidence="medium",
            why="a chat template without a {% generation %} block gives a mask of zeros; mend the template, or train "
            "on the whole conversation", cost="the prompts are trained on as well",
        )  # fmt: skip
    if run.fact("completion_only_loss") is True:
        yield Adjustment(
            "completion_only_loss", current=True, proposed=False, confidence="low",
            why="shows whether the completion mask is at fault", cost="the prompts are trained on as well",
        )  # fmt: skip


def _of_masked_ends(evidence: dict[str, Any], run: Run) -> Iterator[Adjustment]:
    end = evidence["end_token"] or "the end token"
    if evidence["pad_is_eos"]:
        yield Adjustment(
            "pad_token", current=end, proposed=f"another token than {end}: an unused special one of the tokenizer",
            confidence="high",
            why="the padding's labels are masked by its id, and the end of each reply with them",
        )  # fmt: skip
        return
    if run.fact("assistant_only_loss") is True:
        yield look(
            f"put {end} inside of {{% generation %}} … {{% endgeneration %}} in the chat template, or set "
            "assistant_only_loss=False",
            "the mask takes what the template puts into that block, and the end-of-turn token stands outside of it",
            confidence="high",
        )
    yield look(
        "mask padding by attention_mask == 0, not by a token's id (input_ids == pad_token_id), and let the labels of "
        f"a reply include its end-of-turn token {end}",
        "the end token of the replies is in the rows, and its label is -100: eos is never a target",
        confidence="high",
    )


def _of_absent_ends(end: str) -> Adjustment:
    return look(
        f"append {end} (tokenizer.eos_token, or the chat template's end of a turn) to each reply; in TRL, give rows as "
        "messages or as prompt and completion, or set eos_token to the token that ends a turn",
        "what is never in the rows is never learnt: the model does not know where to stop",
        confidence="high",
    )


def _of_cuts(evidence: dict[str, Any], run: Run) -> Iterator[Adjustment]:
    yield _longer(evidence, run, "replies are cut off before their end, and with it the token by which a model stops")
    yield look(
        "measure the lengths of all rows in tokens, set max_length to their 99th percentile, and leave out or split "
        "what is longer; rows of plain text: packing=True with packing_strategy=\"bfd_split\" loses no token",
        "the first rows tell how many are cut, not how long they were", confidence="medium",
    )  # fmt: skip


def _longer(evidence: dict[str, Any], run: Run, why: str) -> Adjustment:
    length = evidence["max_length"] or run.number("max_length")
    return Adjustment(
        "max_length", current=int(length) if length else None, proposed=int(2 * length) if length else "twice it",
        why=why, direction="up", confidence="medium", cost="memory and time of the longest batches grow with it",
    )  # fmt: skip


def _of_prompts(run: Run) -> Iterator[Adjustment]:
    if str(run.fact("trainer_class", "")) != "SFTTrainer":
        return
    replies = Adjustment(
        "completion_only_loss", current=False, proposed=True, confidence="low",
        why="trains on the replies alone; whether that is better depends on how long and how alike the prompts are",
        cost="fewer trained tokens in each batch",
    )  # fmt: skip
    if run.fact("completion_only_loss") is False:
        yield replies
    elif run.fact("assistant_only_loss") is False:
        yield replace(replies, parameter="assistant_only_loss")


_LOOKS = {
    "double bos": look(
        "tokenize text that the chat template has rendered with add_special_tokens=False, or give the rows as messages",
        "the template writes the BOS token, and the tokenizer puts another before it: at inference there is one only",
        confidence="high",
    ),
    "other template": look(
        "give the rows as messages, without markers of another chat template in their text, and let the tokenizer's "
        "own chat template render them; or set the template that is meant (chat_template_path in TRL)",
        "markers of another template are plain text to this tokenizer, and inference will use its own",
    ),
    "copies": look(
        "remove duplicate rows from the data set, or count them as epochs",
        "what is repeated is learnt by heart within one epoch",
    ),
}


def _remedies(case: str, evidence: dict[str, Any], run: Run) -> Iterator[Adjustment]:
    if case in _LOOKS:
        yield _LOOKS[case]
    elif case == "no end":
        yield _of_absent_ends(evidence["end_token"])
    elif case == "prompt trained":
        yield from _of_prompts(run)
    elif case == "end masked":
        yield from _of_masked_ends(evidence, run)
    elif case == "cut off":
        yield from _of_cuts(evidence, run)
    else:
        yield from _of_a_mask(evidence, run)
