"""The rule sig/nan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import against_nan
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class SigNan(Rule):
    """The training loss or an evaluation loss is NaN or infinite.

    ## Why it matters
    A NaN in the forward pass gives NaN gradients, and one step with them makes the adapter NaN for good. But a NaN in
    the log does not always mean that the model is dead: with `logging_nan_inf_filter=False` the Trainer keeps one NaN
    in its running sum, and every later loss in the log is NaN while training goes on. The two ask for opposite things.

    ## How it decides
    The other numbers of the log tell how bad it is.

    - Loss not finite, gradient norm not finite: critical; at the first such log where the run says that it uses bf16,
      else at the second in a row, because the loss scaler of fp16 may have skipped the first step: until then a
      warning, and the next gradient norm tells.
    - Loss not finite, gradient norm finite: the log is poisoned, the model probably lives. A warning.
    - Loss not finite, no gradient norm in the log: a warning, critical from the 3rd in a row.
    - No gradient norm in the log, and a supervised loss that goes from above 0.3 to exactly 0 and stays there for 10
      logs: a warning. The Trainer writes 0 for NaN, and without the norm nothing else shows it.
    - Evaluation loss not finite: critical where the training log beside it is broken too (gradient norm or loss not
      finite, or a loss of exactly 0). Else a warning: with gradients in order it is most often an evaluation row
      whose labels are all masked, for the mean over 0 tokens is NaN.

    ## What to change
    For a dead run: stop, back to the last clean checkpoint, bf16, a third of the learning rate, a tighter clip. For a
    poisoned log: nothing in the training; find the batch, and judge by evaluation. For evaluation alone: take the
    rows without labels out of the evaluation set.

    ## Known false alarms
    An evaluation set with label-less rows on transformers before 5.23, which drops them by itself: a warning.

    ## Sources
    Measured in Trainer runs: with the filter off one NaN loss stays in `tr_loss` and each later loss reads NaN with
    finite gradients; with all labels masked `eval_loss` is NaN. Of the public runs one logs a NaN evaluation loss,
    and it is a failure; none logs a NaN training loss, which the default filter hides. In TRL a NaN forward pass also
    logs `entropy: nan` and `mean_token_accuracy: 0`.
    """

    id: ClassVar[str] = "sig/nan"
    title: ClassVar[str] = "The loss is NaN"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs_any: ClassVar[tuple[str, ...]] = ("loss", "eval_loss", "eval_*_loss")
    retells: ClassVar[bool] = True
    suppresses: ClassVar[tuple[str, ...]] = (
        "sig/fp16-scaler", "sig/dead-gradient", "sig/ga-loss-scale", "loss/*", "grad/*", "lr/*", "eval/*", "pref/*",
        "rl/*", "lora/*", "gen/*", "base/*",
    )  # fmt: skip

    hold: int = param(1, unit="logs", help="Breaches in a row before the finding opens.")
    release: int = param(5, unit="logs", help="Logs without a NaN, in a row, before it resolves.")
    dead_logs: int = param(2, unit="logs", help="Logs in a row with NaN loss and NaN gradients that are no skip.")
    blind_logs: int = param(3, unit="logs", help="NaN losses in a row that are critical without a gradient norm.")
    zero_logs: int = param(10, unit="logs", help="Losses of exactly 0 in a row that count without a gradient norm.")
    fallen: float = param(0.3, unit="nats", help="Least last loss above 0 before such zeros: a lower one was learnt.")
    streak: int = state(int)
    zeros: int = state(int)
    last_loss: float = state(float)
    dead: int = state(int)
    last_finite: int = state(lambda: -1)
    broken_evals: dict[str, Breach] = state(dict)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look for a loss that is not finite, and at what stands beside it."""
        values = row.values
        loss = values.get("loss")
        if loss is None:
            return self._judge_eval(row, run)
        if loss - loss == 0.0:
            self.streak = self.dead = 0
            if loss == 0.0 and "grad_norm" not in values:
                return self._judge_zero(run)
            self.zeros, self.last_loss = 0, loss
            self.last_finite = run.step
            if self.broken_evals:
                return next(iter(self.broken_evals.values()))
            return None
        return self._judge_train(loss, values, run)

    def _judge_zero(self, run: Run) -> Breach | None:
        self.zeros += 1
        hidden = self.zeros >= self.zero_logs and self.last_loss >= self.fallen and run.kind in SUPERVISED
        if not hidden or "grad_norm" in run.series:
            return next(iter(self.broken_evals.values()), None)
        return Breach(
            f"the loss fell from {self.last_loss:.3g} (step {self.last_finite}) to exactly 0 and has been 0 for "
            f"{self.zeros} logs: most likely it is NaN, which the Trainer logs as 0; the log has no gradient norm to "
            "prove it",
            {"metric": "loss", "loss": 0.0, "grad_norm": None, "logs_in_a_row": self.zeros, "case": "dead",
             "last_loss": self.last_loss, "last_finite_step": self.last_finite},
            Severity.WARNING,
        )  # fmt: skip

    def _judge_train(self, loss: float, values: dict[str, float], run: Run) -> Breach:
        self.streak += 1
        norm = values.get("grad_norm")
        evidence: dict[str, Any] = {
            "metric": "loss", "loss": loss, "grad_norm": norm, "logs_in_a_row": self.streak,
            "last_finite_step": self.last_finite if self.last_finite >= 0 else None,
        }  # fmt: skip
        for name in ("entropy", "mean_token_accuracy"):
            if name in values:
                evidence[name] = values[name]
        since = f" for {self.streak} logs" if self.streak > 1 else ""
        if norm is None:
            return Breach(
                f"the training loss is {loss:g}{since}; the log has no gradient norm to tell whether the model is dead",
                evidence | {"case": "dead"},
                None if self.streak >= self.blind_logs else Severity.WARNING,
            )
        if norm - norm == 0.0 and norm >= 0.0:
            self.dead = 0
            return Breach(
                f"the training loss is {loss:g}{since} but the gradient norm is finite ({norm:.3g}): a NaN went into "
                "the Trainer's running sum and poisons every later loss in the log; the model probably lives",
                evidence | {"case": "poisoned", "eval_loss": run.last("eval_loss")},
                Severity.WARNING,
            )
        self.dead += 1
        sure = self.dead >= self.dead_logs or (run.fact("bf16") and not run.fact("fp16"))
        since = f" for {self.dead} logs" if self.dead > 1 else ""
        told = f"training loss and gradient norm are {loss:g} and {norm:g}{since}"
        if not sure:
            return Breach(
                f"{told}: the adapter is NaN, unless that step was skipped; the next gradient norm tells",
                evidence | {"case": "lone"},
                Severity.WARNING,
            )
        return Breach(f"{told}: the adapter is NaN, or becomes so with the next step", evidence | {"case": "dead"})

    def _judge_eval(self, row: MetricRow, run: Run) -> Breach | None:
        found: Breach | None = None
        for name, value in row.values.items():
            if not (name.startswith("eval_") and name.endswith("loss")):
                continue
            if value - value == 0.0:
                self.broken_evals.pop(name, None)
                continue
            norm, loss = run.last("grad_norm"), run.last("loss")
            broken = (norm is not None and norm - norm != 0.0) or (
                loss is not None and (loss == 0.0 or loss - loss != 0.0)
            )
            evidence = {"metric": name, name: value, "grad_norm": norm, "loss": loss,
                        "last_finite_step": self.last_finite if self.last_finite >= 0 else None}  # fmt: skip
            if broken:
                beside = [
                    f"{metric} {last:g}" for metric, last in (("loss", loss), ("grad_norm", norm)) if last is not None
                ]
                found = Breach(
                    f"{name} is {value:g}, and the training log beside it is broken too ({', '.join(beside)})",
                    evidence | {"case": "dead"},
                )
            else:
                found = Breach(
                    f"{name} is {value:g} while the last training loss and gradient norm are finite: most often "
                    "evaluation rows whose labels are all masked",
                    evidence | {"case": "eval"},
                    Severity.WARNING,
                )
            if len(self.broken_evals) < 16:
                self.broken_evals[name] = found
        return found or next(iter(self.broken_evals.values()), None)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """By the case: a dead run, one lone NaN, a poisoned log, or an evaluation set with label-less rows."""
        case, good = breach.evidence["case"], breach.evidence["last_finite_step"]
        if case == "eval":
            return [
                Adjustment(
                    "", proposed="count the evaluation rows whose labels are all -100 after tokenising and "
                    "truncating, and take them out", apply="check", confidence="high",
                    why="the mean over 0 tokens is NaN, and one such row makes the whole evaluation NaN",
                ),
                Adjustment(
                    "", proposed="if no such row is there: look for NaN in the adapter before training on",
                    apply="check", confidence="medium",
                    why="the gradient norm in the log is older than this evaluation; the next log tells",
                ),
            ]  # fmt: skip
        if case == "poisoned":
            return [
                Adjustment(
                    "", proposed="do not stop for this: go by grad_norm and eval_loss, which are not poisoned; check "
                    "the next checkpoint's adapter for NaN", apply="check", confidence="high",
                    why="with logging_nan_inf_filter=False one NaN stays in the Trainer's running sum for good",
                ),
                _batches(good),
            ]  # fmt: skip
        where = f"at or before step {good}" if good is not None else "that is clean, or from the base model"
        stop = "if the next grad_norm is not finite either, stop the run" if case == "lone" else "stop the run"
        advice = [
            Adjustment(
                "", proposed=f"{stop} and go back to the last checkpoint {where}; look for NaN in its adapter "
                "(torch.isnan over adapter_model.safetensors) before resuming, and never keep a later one",
                apply="check", confidence="high",
                why="Adam keeps a NaN for good: waiting does not heal it",
                cost="the steps since that checkpoint",
            )
        ]  # fmt: skip
        advice += against_nan(run)
        if breach.severity is Severity.WARNING:  # a lone NaN so far: more likely one bad batch than a high rate
            return [_batches(good), *advice]
        return advice


def _batches(good: int | None) -> Adjustment:
    """Look at what came after the last step that was finite."""
    return Adjustment(
        "", proposed=f"look at the batches {f'after step {good}' if good is not None else 'of the start'}:"
        " rows without a trained token give a NaN loss", apply="check", confidence="medium",
        why="the batch that gave the NaN comes back in the next epoch",
    )  # fmt: skip
