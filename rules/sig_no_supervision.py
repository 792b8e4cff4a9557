"""The rule sig/no-supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class SigNoSupervision(Rule):
    """No token of the batches is trained on: every label is -100, so that there is no loss and no gradient.

    ## Why it matters
    The run takes its full time, its learning rate looks right and nothing crashes, but the adapter at the end is the
    adapter of the start. Nothing in the log says so, except two zeros.

    ## How it decides
    The loss is exactly 0 and the gradient norm is exactly 0 in the same log, 3 logs in a row. A loss that is 0 beside
    a gradient norm of NaN is another thing: see `sig/hidden-nan`. Runs whose loss had already been learnt down to
    less than 0.05 are left alone, because a memorised data set can round both to 0. Logs without a gradient norm
    (transformers before 4.38, LLaMA-Factory's `trainer_log.jsonl`) are judged only from their start: 10 logs, all of
    them 0, make a warning. A loss that falls to 0 there later is `sig/nan`.

    ## What to change
    Stop the run: it trains nothing. Decode one batch and look at which tokens keep their label. Four causes make up
    nearly all cases: the mask is computed from the prompt's length before truncation or padding, so that it covers
    the answer too; the response template of a completion-only collator does not occur in the tokenised text; the
    chat template has no `{% generation %}` block while `assistant_only_loss=True`; `max_length` cuts off every answer.

    ## Known false alarms
    None known. Preference and reinforcement runs are not judged: a loss of 0 is normal there.

    ## Sources
    Measured: a Trainer run with all labels at -100 logs loss 0, `grad_norm` 0, and `eval_loss` NaN. In the wild: of
    the public runs one Mistral-7B LoRA run logged 100 points of 0.0 and 0.0 over 1,000 steps (its script sets
    `labels[:, :instruction_length] = -100` on truncated rows); no other public run fires. TRL 1.16 drops fully masked
    rows instead, and fails when none is left.
    """

    id: ClassVar[str] = "sig/no-supervision"
    title: ClassVar[str] = "No token is trained on"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    suppresses: ClassVar[tuple[str, ...]] = (
        "loss/*", "eval/*", "grad/*", "lr/*", "sig/nan", "sig/hidden-nan", "sig/dead-gradient", "sig/ga-loss-scale",
        "lora/dead-modules", "gen/*", "base/*",
    )  # fmt: skip

    hold: int = param(3, unit="logs", help="Logs in a row with a loss and a gradient norm of exactly 0.")
    learnt: float = param(0.05, unit="nats", help="Below this last loss above 0, zeros mean a memorised data set.")
    blind_logs: int = param(10, unit="logs", help="Logs of loss 0 from the start that count without a gradient norm.")
    last_positive: float = state(lambda: -1.0)
    zeros: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look for a loss of exactly 0 beside a gradient norm of exactly 0."""
        values = row.values
        loss = values["loss"]
        if loss != 0.0:
            self.zeros = 0
            if loss > 0.0:
                self.last_positive = loss
            return None
        if 0.0 <= self.last_positive < self.learnt:
            return None
        self.zeros += 1
        norm = values.get("grad_norm")
        evidence = {"loss": 0.0, "grad_norm": norm, "learning_rate": values.get("learning_rate"), "logs": self.zeros}
        if norm is None:
            blind = self.last_positive < 0 and self.zeros >= self.blind_logs and "grad_norm" not in run.series
            if not blind:
                return None
            return Breach(
                f"the loss is exactly 0 in all {self.zeros} logs since the start: either no token is trained on, or a "
                "NaN loss is hidden; the log has no gradient norm to tell them apart",
                evidence,
                Severity.WARNING,
            )
        if norm != 0.0:
            return None
        start = "from the first log on" if self.last_positive < 0 else f"after a loss of {self.last_positive:.3g}"
        return Breach(
            f"loss and gradient norm are both exactly 0, {start}: no token of the batches is trained on", evidence
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Stop and look at the labels; then the settings that mask everything."""
        length = run.number("max_length") or run.number("max_seq_length")
        advice = [
            Adjustment(
                "", proposed="stop the run, take one batch of trainer.get_train_dataloader() and count the labels "
                "that are not -100; decode the tokens that keep their label: they must be the whole answer",
                apply="check", confidence="high",
                why="loss and gradient of exactly 0 mean that every label is -100: nothing is learnt however long it "
                "runs",
            ),
            Adjustment(
                "", proposed="compare the masked prompt length with the row length after truncation and padding, and "
                "the response template with the tokenised text",
                apply="check", confidence="high",
                why="a mask that is longer than the row, or a template that never matches, masks the answers as well",
            ),
        ]  # fmt: skip
        if run.fact("assistant_only_loss") is True:
            advice.append(
                Adjustment(
                    "assistant_only_loss", current=True, proposed=False, confidence="medium",
                    why="a chat template without a {% generation %} block gives a mask of zeros; mend the template, "
                    "or train on the whole conversation",
                    cost="the prompts are trained on as well",
                )
            )  # fmt: skip
        if run.fact("completion_only_loss") is True:
            advice.append(
                Adjustment(
                    "completion_only_loss", current=True, proposed=False, confidence="low",
                    why="shows within a few steps whether the completion mask is at fault: the loss is then above 0",
                    cost="the prompts are trained on as well",
                )
            )  # fmt: skip
        if length is not None and length < 2048:
            advice.append(
                Adjustment(
                    "max_length", current=int(length), proposed=int(2 * length), direction="up", confidence="low",
                    why="prompts that fill max_length leave no room for an answer to train on",
                    cost="memory and time grow with it",
                )
            )  # fmt: skip
        return advice
