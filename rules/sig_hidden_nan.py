"""The rule sig/hidden-nan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import against_nan
from lorawatch.rule import Rule, param, state
from lorawatch.run import REINFORCEMENT, Run


@dataclass(slots=True)
class SigHiddenNan(Rule):
    """The gradients are NaN or infinite while the logged loss looks finite: the log hides a dead run.

    ## Why it matters
    The Hugging Face Trainer replaces a NaN loss before it logs it (`logging_nan_inf_filter=True` is the default), but
    the optimizer steps all the same. One NaN gradient is enough to make the adapter and the optimizer's state NaN for
    good. The loss in the log then reads 0.0, which looks like a perfect fit, until somebody opens the checkpoint.

    ## How it decides
    - Loss exactly 0 beside a gradient norm of NaN: at once; 2 logs in a row where the run says that it uses fp16, and
      in preference and reinforcement runs, whose loss may be 0.
    - Loss above 0 beside a gradient norm that is not finite: at once where the run says that it uses bf16, or that it
      does not use fp16. These two are a warning at the first log, because the step may have been skipped, as DeepSpeed
      and guards do: the next gradient norm tells. They are critical at the second, be it the next log or a later one.
    - Loss above 0 beside such a norm in a run that uses fp16 or does not say: 2 logs in a row, because the loss scaler
      skips a step now and then, which is harmless. In the first 50 steps, where the scaler still looks for its scale,
      10 logs in a row. It is a warning until the 4th log in a row.
    - Loss exactly 0 beside a gradient norm that is the square root of a whole number and does not move: DeepSpeed
      writes -1 for the norm of each parameter group with a gradient that is not finite, so that 3 groups give 1.7321.

    ## What to change
    Stop the run. Go back to the last checkpoint before the first such log, and look whether its adapter holds NaN
    before resuming from it. Then bf16 in place of fp16, a learning rate of a third, a tighter clip; and look at the
    batch of that step: an empty answer, a row longer than the model's positions, a division by a token count of 0.

    ## Known false alarms
    A run in fp16 that does not say so may skip two logged steps in a row by chance: that is a warning, and resolves.
    A run whose guard skips two bad batches lives on, and is critical at the second: such batches come again.

    ## Sources
    Measured: a NaN put into step 4 of a Trainer run gives loss 0.0 and `grad_norm` NaN from then on, never a NaN
    loss; where a guard skips the one bad step, one log has loss 0.0 and NaN, and the norms after it are finite. Read
    in the source of transformers 5.23 (`_run_epoch`: the loss is replaced, the step is taken). trl issue 6702 reports
    it for GRPO. Of the public runs both that hide a NaN fire at the first log that shows it; the healthy run with one
    infinite norm (step 33) does not. The counts 2, 4 and 10 follow GradScaler's defaults (it starts at 65,536 and
    halves at each overflow, so that 16 skips at the start are still normal). DeepSpeed's -1 is background knowledge;
    one excerpt with a norm of exactly √3 beside a loss of 0 (LLaMA-Factory issue 9567) agrees with it.
    """

    id: ClassVar[str] = "sig/hidden-nan"
    title: ClassVar[str] = "The log hides NaN gradients"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[str, ...]] = ("loss", "grad_norm")
    suppresses: ClassVar[tuple[str, ...]] = (
        "sig/nan", "sig/fp16-scaler", "sig/dead-gradient", "sig/ga-loss-scale", "loss/*", "grad/*", "lr/*", "eval/*",
        "pref/*", "rl/*", "lora/*", "gen/*", "base/*",
    )  # fmt: skip

    hold: int = param(1, unit="logs", help="Breaches in a row before the finding opens; the rule counts by itself.")
    release: int = param(5, unit="logs", help="Finite logs in a row before it resolves.")
    skips: int = param(2, unit="logs", help="Logs in a row that are more than a skipped step of the fp16 scaler.")
    search_steps: int = param(50, unit="steps", help="Steps at the start in which the scaler looks for its scale.")
    search_skips: int = param(10, unit="logs", help="Logs in a row that are too many even then.")
    certain: int = param(4, unit="logs", help="Logs in a row that make it critical where a scaler may skip.")
    times: int = param(2, unit="logs", help="Logs, in a row or not, that make it critical where no scaler skips.")
    streak: int = state(int)
    same: int = state(int)
    previous: float = state(lambda: -2.0)
    first_step: int = state(int)
    last_finite: int = state(lambda: -1)
    seen: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look for a gradient norm that is not finite beside a finite loss."""
        values = row.values
        norm = values["grad_norm"]
        if norm - norm == 0.0 and norm >= 0.0:  # finite, without a call; DeepSpeed writes -1 for NaN
            if values["loss"] == 0.0 and 0.9 < norm < 100.0:
                return self._frozen_norm(norm, run)
            self.streak = self.same = 0
            self.previous = norm
            self.last_finite = run.step
            return None
        loss = values["loss"]
        if loss - loss != 0.0:  # an open NaN is for sig/nan
            return None
        self.streak += 1
        if self.streak == 1:
            self.first_step = run.step
        half, bfloat = run.fact("fp16"), run.fact("bf16")
        if loss == 0.0:
            zero_is_normal = run.kind in REINFORCEMENT or "rewards/chosen" in run.series
            if half or zero_is_normal:
                return self._breach(loss, norm, run, None) if self.streak >= self.skips else None
        elif half is not False and not (bfloat and not half):
            needed = self.search_skips if run.step <= self.search_steps else self.skips
            if self.streak < needed:
                return None
            return self._breach(loss, norm, run, None if self.streak >= self.certain else Severity.WARNING)
        self.seen += 1
        return self._breach(loss, norm, run, None if self.seen >= self.times else Severity.WARNING)

    def _frozen_norm(self, norm: float, run: Run) -> Breach | None:
        square = norm * norm
        again, self.previous, self.streak = norm == self.previous, norm, 0
        if not again or abs(square - round(square)) >= 2e-3:
            self.same, self.first_step = 0, run.step
            return None
        self.same += 1
        return Breach(
            f"loss is exactly 0 and the gradient norm stands at {norm:.5g}, the square root of {round(square)}: "
            "DeepSpeed writes that for gradients that are not finite",
            {"loss": 0.0, "grad_norm": norm, "first_step": self.first_step, "last_finite_step": self.last_finite},
            Severity.WARNING if self.same < 2 else None,
        )

    def _breach(self, loss: float, norm: float, run: Run, severity: Severity | None) -> Breach:
        lone = self.streak == 1
        since = f"at step {run.step}" if lone else f"since step {self.first_step}"
        if lone and self.seen > 1:
            since += f" ({self.seen - 1} such log{'s' if self.seen > 2 else ''} before)"
        told = f"grad_norm is {norm:g} {since}" if norm != -1.0 else f"grad_norm is -1 (DeepSpeed: not finite) {since}"
        if loss == 0.0:
            summary = (
                f"{told} while the log shows a loss of 0.0: the loss is NaN, and logging_nan_inf_filter hides it; "
                + ("the next log tells whether that step was skipped" if lone else "the optimizer keeps stepping")
            )
        else:
            summary = f"{told} while the log shows a loss of {loss:.4g}: the steps behind it are NaN or were skipped"
        return Breach(
            summary,
            {"loss": loss, "grad_norm": norm, "logs_in_a_row": self.streak, "first_step": self.first_step,
             "last_finite_step": self.last_finite if self.last_finite >= 0 else None},
            severity,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Back to a clean checkpoint; bf16, a lower rate, a tighter clip; a log that tells."""
        step = breach.evidence["first_step"]
        good = breach.evidence["last_finite_step"]
        where = f"at or before step {good}" if isinstance(good, int) and good >= 0 else f"before step {step}"
        where += " (the base model, where there is none)"
        lone = breach.evidence.get("logs_in_a_row") == 1
        stop = "if the next grad_norm is not finite either, stop the run" if lone else "stop the run"
        told = f"from step {good} to" if isinstance(good, int) and good >= 0 else "up to"
        advice = [
            Adjustment(
                "", proposed=f"{stop} and take the last checkpoint {where}; before resuming, look for NaN in "
                "its adapter: any(t.isnan().any() for t in safetensors.torch.load_file('adapter_model.safetensors')"
                ".values())",
                apply="check", confidence="high",
                why="Adam keeps a NaN for good: each later checkpoint holds it, and waiting does not heal it",
                cost="the steps since that checkpoint",
            )
        ]  # fmt: skip
        advice += against_nan(run)
        advice.append(
            Adjustment(
                "logging_nan_inf_filter", current=run.fact("logging_nan_inf_filter"), proposed=False,
                confidence="high", apply="resume",
                why="a NaN loss is then logged as NaN, at the step where it comes, not as 0",
                cost="the later losses: after one NaN all of them read NaN, even if the model is fine",
            )
        )  # fmt: skip
        batches = Adjustment(
            "", proposed=f"look at the batches {told} step {step}: rows without a trained token, empty rows, "
            "rows beyond the model's positions",
            apply="check", confidence="medium",
            why="a mean over 0 tokens is NaN in any precision, and comes back at the same batch",
        )  # fmt: skip
        # A lone NaN, or one that is only a warning, is more likely a bad batch than a rate that is too high.
        return [batches, *advice] if lone or breach.severity is Severity.WARNING else [*advice, batches]
