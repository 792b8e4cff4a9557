"""The rule sig/fp16-scaler."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run

SCALES = ("loss_scale", "grad_scale", "scaler_scale", "amp_scale", "scale")
"""Names under which trainers log the scale of the fp16 loss scaler. The Hugging Face Trainer does not log it."""


@dataclass(slots=True)
class SigFp16Scaler(Rule):
    """The loss scaler of fp16 keeps skipping steps, or has had to go very low: the gradients overflow again and again.

    ## Why it matters
    fp16 holds numbers up to 65,504. The scaler multiplies the loss so that small gradients do not vanish, and halves
    the scale and throws the step away when a gradient overflows. A skipped step now and then is normal. Many of them
    waste the steps, and a scale near 1 means that small gradients vanish while large ones overflow.

    ## How it decides
    After step 50 (the scale starts at 65,536 and comes down in the first steps), two signs:

    - The logged scale is below 128: a warning; below 1: critical. Each halving from one log to the next is counted as
      a skipped step.
    - 5 or more skipped steps in the last 100 logs: a warning. Where no scale is logged, a gradient norm that is not
      finite beside a loss that is finite and above 0 counts as one skipped step. Since a log shows the norm of its
      own step only, with `logging_steps=10` that stands for about ten times as many.

    Several such logs in a row are another thing: see `sig/hidden-nan`.

    ## What to change
    bf16, if the GPU can (Ampere or newer). Else half the learning rate, and the LoRA weights in fp32 (PEFT does that
    by itself when `autocast_adapter_dtype=True`).

    ## Known false alarms
    `scale` is a common word: a metric of that name that is not the scaler's can be below 128. It is read only in runs
    that say fp16.

    ## Sources
    torch.amp.GradScaler's documentation: start 65,536, factor 2 up after 2,000 clean steps, factor 0.5 down at an
    overflow. The limits 128 and 5 in 100 are background knowledge, not measured: none of the public runs logs a
    scale, and none has more than one norm that is not finite without being dead, so none of them fires.
    """

    id: ClassVar[str] = "sig/fp16-scaler"
    title: ClassVar[str] = "fp16 overflows again and again"
    severity: ClassVar[Severity] = Severity.WARNING
    needs_any: ClassVar[tuple[str, ...]] = (*SCALES, "grad_norm")
    suppresses: ClassVar[tuple[str, ...]] = ("grad/spike",)

    release: int = param(20, unit="logs", help="Calm logs in a row before it resolves.")
    settle: int = param(50, unit="steps", help="Steps at the start in which the scale may come down.")
    low: float = param(128.0, unit="scale", help="Scale below which it warns.")
    lost: float = param(1.0, unit="scale", help="Scale below which it is critical.")
    skipped: int = param(5, unit="steps", help="Skipped steps within the window that are too many.")
    window: int = param(100, unit="logs", help="Logs over which skipped steps are counted.")
    scale: float = state(float)
    name: str = state(str)
    looked_at: int = state(int)
    rows: int = state(int)
    skips: deque[tuple[int, int]] = state(lambda: deque(maxlen=64))

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Count skipped steps and look at the scale."""
        values = row.values
        self.rows += 1
        if run.rows > self.looked_at:
            self.looked_at = 2 * run.rows
            self.name = next((name for name in SCALES if name in run.series), "")
            if self.name == "scale" and not run.fact("fp16"):
                self.name = ""
        norm = values.get("grad_norm", 0.0)
        scale = values.get(self.name, 0.0) if self.name else 0.0
        if not 0.0 < scale < math.inf:
            if norm - norm == 0.0:
                return self._count(run, None, 0) if self.skips else None
            loss = values.get("loss", 0.0)
            return self._count(run, None, 1 if 0.0 < abs(loss) < math.inf else 0)
        before, self.scale = self.scale, scale
        halvings = round(math.log2(before) - math.log2(scale)) if before > scale else 0
        if halvings or self.skips or scale < self.low:
            return self._count(run, scale, halvings)
        return None

    def _count(self, run: Run, scale: float | None, new: int) -> Breach | None:
        if run.step <= self.settle:
            return None
        skips = self.skips
        if new:
            skips.append((self.rows, new))
        while skips and skips[0][0] <= self.rows - self.window:
            skips.popleft()
        count = sum(number for _, number in skips)
        evidence = {"scale": scale, "skipped_steps_seen": count, "window_logs": self.window}
        if scale is not None and scale < self.low / self.easing:
            lost = scale < self.lost
            return Breach(
                f"the fp16 loss scale is down to {scale:g}, below {self.lost if lost else self.low:g}: gradients "
                "overflow again and again",
                evidence,
                Severity.CRITICAL if lost else None,
            )
        if count >= self.skipped * self.easing:
            seen = "the scale was halved" if scale is not None else "the gradient norm was not finite"
            return Breach(f"{seen} {count} times in the last {self.window} logs: fp16 skips those steps", evidence)
        return None

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """bf16; else a lower rate and fp32 adapter weights."""
        return [
            Adjustment(
                "bf16", current=run.fact("bf16"), proposed=True, confidence="high", apply="resume",
                why="bf16 has the range of fp32 and needs no scaler (Ampere GPU or newer; set fp16=False with it)",
            ),
            lower_rate(
                run, 2, "smaller steps keep the activations, and with them the gradients, in fp16's range",
                confidence="medium",
            ),
            Adjustment(
                "", proposed="make sure that the LoRA weights are in fp32: get_peft_model(..., "
                "autocast_adapter_dtype=True) casts them",
                apply="check", confidence="medium",
                why="adapter weights in fp16 lose small updates and overflow first",
                cost="2 more bytes per LoRA parameter",
            ),
        ]  # fmt: skip
