"""The rule cfg/blind-spots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, Judged
from lorawatch.rule import Rule, param
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class CfgBlindSpots(Rule):
    """The settings hide what would show that the run goes wrong.

    ## Why it matters
    What is not logged cannot be judged: a run that logs every 500 steps says that it diverged hours after it did, one
    without evaluation cannot show overfitting, and the Trainer's default filter writes 0 where the loss was NaN.

    ## How it decides
    One finding names all that apply, for runs of 50 steps or more. All of it is information.

    - `logging_steps` is more than 2 % of the run, so that the whole log has fewer than 50 points.
    - No evaluation (`eval_strategy="no"`), in a supervised or preference run.
    - `logging_nan_inf_filter` is on: a NaN loss is logged as 0 or blended away.
    - `logging_first_step` is off, and more than one step goes into the first logged loss.
    - More than one epoch with evaluation, but `load_best_model_at_end` is off.
    - `save_total_limit` is not set, with more than 10 checkpoints to come.

    ## What to change
    `logging_steps` of 1 to 10, `eval_steps` of 5 % of the run, `logging_nan_inf_filter=False` (which also saves a
    synchronisation of the card in each micro-step), `logging_first_step=True`.

    ## Known false alarms
    None: it says what is not visible, not that something is wrong.

    ## Sources
    Read in transformers 5.23 (`trainer.py`, `_run_epoch`; `TrainingArguments`: `logging_steps` 500,
    `logging_nan_inf_filter` true, `logging_first_step` false). Measured: a NaN at step 4 is logged as `loss 0.0`. The
    tuning guide: watch the first 50 to 100 steps, and the gap to the evaluation loss. The shares are a heuristic.
    """

    id: ClassVar[str] = "cfg/blind-spots"
    title: ClassVar[str] = "Settings hide what goes wrong"
    severity: ClassVar[Severity] = Severity.INFO
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate,)
    needs_facts: ClassVar[tuple[str, ...]] = ("logging_steps",)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    share: float = param(0.02, unit="share of the run", help="Steps between logs above which the log is too coarse.")
    short: int = param(50, unit="steps", help="Runs shorter than this are not looked at.")
    saves: float = param(10.0, unit="checkpoints", help="Checkpoints from which a limit is missed.")

    def judge(self, facts: FactUpdate, run: Run) -> Breach | None:
        """Collect what applies."""
        steps, total = run.number("logging_steps") or 0.0, run.max_steps
        if total is not None and total < self.short:
            return None
        if 0.0 < steps < 1.0:
            steps *= total or 0
        spots: dict[str, str] = {}
        if (steps > self.share * total) if total is not None else steps >= 500:
            spots["logging_steps"] = f"logs every {steps:g} steps" + (f" of {total}" if total else "")
        evaluated = str(run.fact("eval_strategy", "")).lower()
        if evaluated == "no" and run.kind in SUPERVISED:
            spots["eval_strategy"] = "no evaluation"
        if run.fact("logging_nan_inf_filter") is True:
            spots["logging_nan_inf_filter"] = "a NaN loss is hidden"
        if run.fact("logging_first_step") is False and steps > 1:
            spots["logging_first_step"] = "the first loss is an average over the first steps"
        best, epochs = run.fact("load_best_model_at_end"), run.number("num_train_epochs")
        if best is False and evaluated in ("steps", "epoch") and epochs is not None and epochs > 1:
            spots["load_best_model_at_end"] = "the last checkpoint is kept, not the best one"
        every = run.number("save_steps")
        if (
            run.number("save_total_limit") is None and run.fact("save_strategy") == "steps" and total is not None
            and every is not None and every >= 1.0 and total / every > self.saves
        ):  # fmt: skip
            spots["save_total_limit"] = f"{total / every:.0f} checkpoints are kept"
        if not spots:
            return None
        return Breach(
            f"settings that hide what goes wrong: {'; '.join(spots.values())}",
            {"spots": list(spots), "logging_steps": steps, "max_steps": total, "case": ",".join(spots)},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """One setting for each."""
        told, total = breach.evidence["spots"], run.max_steps
        known = (
            Adjustment(
                "logging_steps", proposed=max(1, min(10, total // 100)) if total else 10, direction="down",
                why="a log fine enough to judge by",
            ),
            Adjustment(
                "eval_strategy", proposed="steps", why="with eval_steps=0.05: overfitting shows only there",
            ),
            Adjustment(
                "logging_nan_inf_filter", proposed=False,
                why="shows a NaN, and saves a synchronisation in each micro-step",
            ),
            Adjustment(
                "logging_first_step", proposed=True, why="the start tells a wrong template or a summed loss",
            ),
            Adjustment(
                "load_best_model_at_end", proposed=True,
                why='with metric_for_best_model="eval_loss": keeps the best adapter',
            ),
            Adjustment("save_total_limit", proposed=3, why="old checkpoints fill the disk"),
        )  # fmt: skip
        return [
            replace(one, current=run.fact(one.parameter), confidence="low") for one in known if one.parameter in told
        ]
