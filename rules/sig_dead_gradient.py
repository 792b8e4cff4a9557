"""The rule sig/dead-gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import AdapterReading, Judged, MetricRow
from lorawatch.rule import Rule, param, state
from lorawatch.run import PREFERENCE, SUPERVISED, Run

REMEMBERED = 4096
"""Losses remembered for the search for repetitions; longer epochs are not seen to repeat."""
MAX_EVALUATION_SETS = 16
"""Evaluation losses, by name, that are followed; more are ignored."""


@dataclass(slots=True)
class SigDeadGradient(Rule):
    """No gradient reaches the adapter, or the optimizer never moves it: the loss is real and nothing is learnt.

    ## Why it matters
    The forward pass works, so the loss looks plausible, and only its flatness hints that the weights never change.
    Such a run is usually found out when its adapter behaves exactly like the base model.

    ## How it decides
    Any of four signs, all exact.

    - The gradient norm is at most 1e-8 for 5 logs in a row while the loss is above 0.05.
    - The losses of an epoch come again, digit by digit: 6 different logged losses in a row, each equal to the one a
      constant number of logs earlier (2 or more), at later steps and epochs. Were the weights moving, the same
      batches would give other losses. Logs in which equal losses turn up everywhere (more than 10 % of the logs
      outside that row) do not count: a loss in bf16 has few values.
    - 3 evaluations in a row have the same loss, above 0.05, to the last digit, at later steps each and with a learning
      rate above 1 % of its peak at the later two. An evaluation takes the same rows each time, in order and without
      dropout, so that it gives another loss as soon as the weights move: equal ones mean that nothing trains. The loss
      must be logged with 4 significant digits or more; below 6 it is a warning, because a rate that is far too low may
      move it by less than they show. Values that fit the 11 bits of fp16 or the 8 of bf16 are coarse and do not count.
      Where there are several evaluation sets, none of them may change. A log without a learning rate is not judged by
      this sign: it may be a schedule that has ended.
    - After step 5 (30 in fp16, whose loss scaler skips steps at first) the B of every module of the adapter is exactly
      0, where it began. A single step with a gradient moves it. Where the logged learning rates are all 0 so far, this
      is not judged.

    ## What to change
    Look at what the optimizer holds. It must be made after the model was wrapped by PEFT and moved to its device;
    the adapter must be trainable (`is_trainable=True` when it is loaded with `PeftModel.from_pretrained`); with
    activation checkpointing on a frozen base model, `model.enable_input_require_grads()` must be called, or
    `use_reentrant=False` be set.

    ## Known false alarms
    None known. Reinforcement runs are not judged: without an advantage their gradient is rightly 0. A log that one
    process after another printed in full repeats too, but at the same steps and epochs, and does not count.

    ## Sources
    PEFT's troubleshooting page (*model does not improve*); transformers issue 42489, through TRL. The repetition is
    the sign of TRACE issue 5 (its second epoch repeats the first to 4 digits). No other public run repeats 3 losses
    or has a gradient norm at or below 1e-8 beside a loss above 0.05, reinforcement runs apart. Adapters that are
    merged or not trainable at all fail with `element 0 of tensors does not require grad` before the first log.
    Evaluations: of the 33 public logs with evaluations none has even two in a row that are equal. Of 247 runs of the
    reference trainer 13 have three at full precision, all of them with a frozen adapter, an optimizer made too early
    or no labels; rounded to 4 digits one with a learning rate that is too low has them too, and no healthy one.
    That B begins at 0: Hu et al., *LoRA* (2021), and PEFT's default.
    """

    id: ClassVar[str] = "sig/dead-gradient"
    title: ClassVar[str] = "The adapter is not being trained"
    severity: ClassVar[Severity] = Severity.CRITICAL
    judges: ClassVar[tuple[type[Judged], ...]] = (MetricRow, AdapterReading)
    needs_any: ClassVar[tuple[str, ...]] = ("loss", "eval_loss", "eval_*_loss")
    kinds = SUPERVISED | PREFERENCE
    suppresses: ClassVar[tuple[str, ...]] = (
        "loss/not-learning", "loss/slow-start", "loss/plateau", "loss/periodic", "loss/oscillation", "loss/noisy",
        "pref/no-signal", "lr/schedule", "lora/dead-modules",
    )  # fmt: skip

    dead: float = param(1e-8, unit="norm", help="Gradient norm at or below which no gradient is there.")
    logs: int = param(5, unit="logs", help="Logs in a row with such a norm.")
    least_loss: float = param(0.05, unit="nats", help="Loss above which there is something to learn.")
    repeats: int = param(6, unit="logs", help="Losses in a row that repeat those of an earlier epoch exactly.")
    evaluations: int = param(3, unit="evaluations", help="Evaluations in a row with exactly the same loss.")
    digits: int = param(4, unit="digits", help="Significant digits that such a loss must have.")
    sure_digits: int = param(6, unit="digits", help="Significant digits below which it is a warning.")
    least_rate: float = param(0.01, unit="share of peak", help="Learning rate below which nothing need change.")
    first_steps: int = param(5, unit="steps", help="Steps after which a B of 0 tells that nothing was trained.")
    streak: int = state(int)
    index: int = state(int)
    seen: dict[float, tuple[int, int, float | None]] = state(dict)
    period: int = state(int)
    run_length: int = state(int)
    matches: int = state(int)
    different: set[float] = state(set)
    in_training: Breach | None = state(lambda: None)
    in_evaluation: Breach | None = state(lambda: None)
    in_weights: Breach | None = state(lambda: None)
    evaluated: dict[str, tuple[float, int, int]] = state(dict)

    def judge(self, row: MetricRow | AdapterReading, run: Run) -> Breach | None:
        """Look for a norm of 0, for losses that come again, for evaluations that do not change, for a B of 0.

        What one sort of row told stands until a later row of that sort takes it back.
        """
        if isinstance(row, AdapterReading):
            self.in_weights = self._judge_weights(row, run)
            return self.in_training or self.in_evaluation or self.in_weights
        loss = row.values.get("loss")
        if loss is None:
            self._judge_evaluation(row, run)
        else:
            self.in_training = self._judge_training(loss, row, run)
        return self.in_training or self.in_evaluation or self.in_weights

    def _judge_weights(self, reading: AdapterReading, run: Run) -> Breach | None:
        modules = reading.modules
        settled = self.first_steps * (6 if run.fact("fp16") else 1)
        if reading.step <= settled or not modules or any(module.norm_b != 0.0 for module in modules):
            return None
        rates = run.series.get("learning_rate")
        if rates is not None and rates.count and not run.peak_learning_rate:
            return None  # a rate of 0 moves nothing: lr/schedule's business
        return Breach(
            f"B is 0 in all {len(modules)} adapted modules at step {reading.step}, where it began: no step has reached "
            "the adapter",
            {"modules": len(modules), "step": reading.step, "learning_rate": run.last("learning_rate"),
             "grad_norm": run.last("grad_norm")},
        )  # fmt: skip

    def _judge_training(self, loss: float, row: MetricRow, run: Run) -> Breach | None:
        values = row.values
        norm = values.get("grad_norm")
        if norm is not None and 0.0 <= norm <= self.dead and loss > self.least_loss:
            self.streak += 1
            if self.streak < self.logs:
                return None
            return Breach(
                f"the gradient norm is {norm:g} for {self.streak} logs while the loss is {loss:.4g}: no gradient "
                "reaches the adapter",
                {"grad_norm": norm, "loss": loss, "logs_in_a_row": self.streak},
            )
        self.streak = 0
        self.index = index = self.index + 1
        seen = self.seen
        before = seen.get(loss)
        if len(seen) >= REMEMBERED:
            seen.clear()
        seen[loss] = (index, run.step, row.epoch)
        if before is None or not loss > self.least_loss:
            self.run_length = 0
            return None
        return self._repeated(loss, before, row.epoch, run)

    def _repeated(
        self, loss: float, before: tuple[int, int, float | None], epoch: float | None, run: Run
    ) -> Breach | None:
        earlier, step, epoch_before = before
        period = self.index - earlier
        self.matches += 1
        same_place = run.step <= step or (epoch is not None and epoch_before is not None and epoch <= epoch_before)
        if period < 2 or same_place:
            self.run_length = 0
            return None
        if period != self.period or not self.run_length:
            self.period, self.run_length = period, 0
            self.different.clear()
        self.run_length += 1
        if len(self.different) < self.repeats:
            self.different.add(loss)
        if self.run_length < self.repeats or len(self.different) < self.repeats:
            return None
        if self.matches - self.run_length > 0.1 * self.index:  # a coarse loss repeats everywhere: that tells nothing
            return None
        return Breach(
            f"the last {self.run_length} losses equal, digit by digit, those of {period} logs before: the weights do "
            "not change between epochs",
            {"repeated_losses": self.run_length, "period_logs": period, "loss": loss},
        )

    def _judge_evaluation(self, row: MetricRow, run: Run) -> None:
        evaluated = self.evaluated
        for name, loss in row.values.items():
            if not (name.startswith("eval_") and name.endswith("loss")):
                continue
            before = evaluated.get(name)
            if before is None and len(evaluated) >= MAX_EVALUATION_SETS:
                continue
            count = 1
            if before is not None and before[0] == loss and run.step > before[1]:
                count = before[2] + self._at_work(run)
            elif before is not None and before[0] == loss and run.step == before[1]:
                count = before[2]  # evaluated twice at one step: nothing was trained between
            evaluated[name] = (loss, run.step, count)
            if count == 1:
                self.in_evaluation = None
            elif count >= self.evaluations and all(one[2] >= self.evaluations for one in evaluated.values()):
                self.in_evaluation = self._unchanged(name, loss, count, run) or self.in_evaluation

    def _at_work(self, run: Run) -> bool:
        """Whether the learning rate, as far as it is logged, is one that moves the weights."""
        rate, peak = run.last("learning_rate"), run.peak_learning_rate
        return rate is not None and peak is not None and rate > self.least_rate * peak

    def _unchanged(self, name: str, loss: float, count: int, run: Run) -> Breach | None:
        shown = digits_of(loss)
        if shown < self.digits or not loss > self.least_loss:
            return None
        told = f"{name} is {loss!r} in {count} evaluations, at a learning rate of {run.last('learning_rate'):.3g}"
        return Breach(
            f"{told}: the weights do not change" if shown >= self.sure_digits else
            f"{told}: the weights do not change, or by less than {shown} digits show",
            {"metric": name, name: loss, "equal_evaluations": count, "digits": shown,
             "learning_rate": run.last("learning_rate"), "grad_norm": run.last("grad_norm")},
            None if shown >= self.sure_digits else Severity.WARNING,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Look at what the optimizer holds; then at checkpointing."""
        advice = [
            Adjustment(
                "", proposed="model.print_trainable_parameters(): it must name the LoRA weights; and "
                "sum(p.numel() for g in trainer.optimizer.param_groups for p in g['params']) must be that number",
                apply="check", confidence="high",
                why="an optimizer made before get_peft_model, or before the model moved, steps on other tensors",
            ),
            Adjustment(
                "", proposed="where the adapter is loaded from disk: PeftModel.from_pretrained(..., "
                "is_trainable=True)", apply="check", confidence="medium",
                why="a loaded adapter is frozen by default",
            ),
        ]  # fmt: skip
        if run.fact("gradient_checkpointing") or run.fact("activation_checkpointing"):
            advice.append(
                Adjustment(
                    "", proposed="model.enable_input_require_grads(), or gradient_checkpointing_kwargs="
                    "{'use_reentrant': False}", apply="check", confidence="high",
                    why="activation checkpointing on a frozen base passes no gradient on unless its inputs ask for one",
                )
            )  # fmt: skip
        rates = run.series.get("learning_rate")
        if rates is not None and rates.count >= self.logs and max(*rates.head, *rates.recent) == 0.0:
            advice.insert(
                0,
                Adjustment(
                    "", proposed="the learning rate is 0 in every log: look at learning_rate and at "
                    "trainer.lr_scheduler.get_last_lr()", apply="check", confidence="high",
                    why="with a rate of 0 the optimizer changes nothing",
                ),
            )  # fmt: skip
        return advice


def digits_of(value: float) -> int:
    """Significant digits that a number shows; 0 for one that fits 11 bits, as fp16 and bf16 values do."""
    if not math.isfinite(value) or (math.frexp(value)[0] * 2048.0).is_integer():
        return 0
    return len(repr(value).split("e")[0].replace(".", "").lstrip("-").strip("0"))
