"""What an evaluation tells beside its loss: the task's own metric."""

from __future__ import annotations

from collections.abc import Mapping

from lorawatch.run import Run

HIGHER_IS_BETTER = (
    "eval_f1", "eval_macro_f1", "eval_f1_macro", "eval_accuracy", "eval_matthews_correlation", "eval_rougeL",
    "eval_rouge1", "eval_bleu", "eval_mean_token_accuracy",
)  # fmt: skip
LOWER_IS_BETTER = ("eval_wer", "eval_cer")
NEAR = 0.01
"""Share of its best that a task metric may be away from it and still count as at its best."""


def task_metric(values: Mapping[str, float]) -> tuple[str, float] | None:
    """The first known task metric of a row, turned so that higher is better."""
    for name in HIGHER_IS_BETTER:
        if name in values:
            return name, values[name]
    for name in LOWER_IS_BETTER:
        if name in values:
            return name, -values[name]
    return None


def task_at_best(run: Run) -> bool:
    """Whether a task metric has improved since its first value and stands at its best: then only the loss is worse.

    The accuracy per token does not count: it follows the loss.
    """
    found = task_metric({name: 0.0 for name in run.series if name != "eval_mean_token_accuracy"})
    if found is None:
        return False
    sign = -1.0 if found[0] in LOWER_IS_BETTER else 1.0
    values = [sign * value for value in run.series[found[0]].window(256)]
    if len(values) < 2:
        return False
    best = max(values)
    return best > values[0] and values[-1] >= best - NEAR * abs(best)
