"""Published detectors of failing training runs, restated so that the same logged rows can be judged by each of them.

Each keeps its published defaults; what had to be decided to run it on logged rows is said in its docstring. All read
the rows of one run in the order in which they were logged. Two decisions hold for all: a row stands for one step of
the loop that the detector was written for, although with ``logging_steps`` above 1 its loss is a mean over those
steps; and every report is kept, so a detector that goes on after its first one may speak often.

Two more are installed packages (``training-doctor``, ``trainpulse``). These are not restated: their own code is run by
the interpreter that ``LORAWATCH_PEERS_PYTHON`` names, and they abstain, saying why, where there is none.

Usage: ``python benchmarks/published_detectors.py STATE...`` prints what each says of each ``trainer_state.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PEERS_PYTHON = "LORAWATCH_PEERS_PYTHON"
"""The environment variable that names an interpreter with ``training-doctor`` and ``trainpulse`` installed."""

SAGEMAKER = (
    "Amazon SageMaker Debugger built-in rules, "
    "https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html "
    "(awsdocs/amazon-sagemaker-developer-guide doc_source/debugger-built-in-rules.md at c6db92f)"
)
"""Documentation only: the package with the rules themselves, ``smdebug_rules``, is not published."""
LLM_FOUNDRY = "mosaicml/llm-foundry llmfoundry/callbacks/kill_loss_spike_callback.py, llm-foundry 0.22.0"
LIGHTNING = "Lightning-AI/pytorch-lightning lightning/fabric/utilities/spike.py, lightning-fabric 2.6.6"
TRAINING_DOCTOR = "https://pypi.org/project/training-doctor/, its HuggingFaceCallback"
TRAINPULSE = "https://pypi.org/project/trainpulse/, its Monitor as its Hugging Face callback feeds it"

LOSS, GRADIENT, EVAL, RATE = "loss", "gradient", "eval", "learning rate"
"""The signals a detector may read: training loss, gradient norm, evaluation loss, learning rate."""


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """What a trainer logged at one step.

    Attributes:
        step: Global step, counted from 1.
        values: Value by key as the Hugging Face Trainer logs it (``loss``, ``grad_norm``, ``learning_rate``,
            ``eval_loss``, …), NaN and infinity included.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One report of one detector: the step of the row that it spoke at, and the name of what it reports."""

    step: int
    name: str


class AbstainError(Exception):
    """A detector cannot judge here; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A published detector.

    Attributes:
        name: Whose it is and what it is called there.
        source: Where it is published, with the version that was restated.
        judge: Takes the rows of one run; returns its reports in the order in which they were made. Raises
            `AbstainError` where it cannot run.
        sees: The signals that it reads, of `LOSS`, `GRADIENT`, `EVAL` and `RATE`. A fault that shows in none of them
            is out of its scope.
    """

    name: str
    source: str
    judge: Callable[[list[LoggedRow]], list[Alarm]]
    sees: frozenset[str]


def logged_rows(history: Iterable[Mapping[str, Any]]) -> list[LoggedRow]:
    """Rows from the ``log_history`` of a ``trainer_state.json``; what is not a number is left out."""
    return [
        LoggedRow(
            int(row["step"]),
            {
                key: float(value)
                for key, value in row.items()
                if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
            },
        )
        for row in history
    ]


def _series(rows: list[LoggedRow], key: str) -> list[tuple[int, float]]:
    return [(row.step, row.values[key]) for row in rows if key in row.values]


def loss_not_decreasing(
    rows: list[LoggedRow],
    *,
    num_steps: int = 10,
    diff_percent: float = 0.1,
    increase_threshold_percent: float | None = 5.0,
) -> list[Alarm]:
    """LossNotDecreasing of SageMaker Debugger.

    Documented: every ``num_steps`` steps the loss is compared with that of the newest saved step which is at least
    ``num_steps`` behind; it should have decreased by ``diff_percent``, and ``increase_threshold_percent`` is "the
    maximum threshold percent that loss is allowed to increase in case loss has been increasing". A fall of exactly the
    threshold is a report, as in the published test of the rule (awslabs/sagemaker-debugger
    tests/analysis/rules/test_loss_not_decreasing.py, ``test_default``: 0.30 after 0.30 with a threshold of 0).

    Decided: the documents do not say how the two thresholds combine. Read here as two branches: a loss that fell must
    have fallen by more than ``diff_percent``, one that rose must not have risen by more than
    ``increase_threshold_percent``. ``None`` for the latter gives the stricter reading, in which any rise is a report.
    A saved step is a row with a loss; the configuration that ships with the rule saves losses each 500 steps only
    (smdebug-rulesconfig 1.0.1), which most fine-tunings do not reach. Of the losses only the training loss is
    compared. A NaN counts as a loss that has not decreased.
    """
    alarms: list[Alarm] = []
    losses = _series(rows, "loss")
    checked = losses[0][0] if losses else 0
    for index, (step, loss) in enumerate(losses):
        if step - checked < num_steps:
            continue
        before = next(value for at, value in reversed(losses[:index]) if at <= step - num_steps)
        checked = step
        fall = before - loss
        if fall < 0 and increase_threshold_percent is not None:
            bad = -fall > increase_threshold_percent / 100 * abs(before)
        else:
            bad = not fall > diff_percent / 100 * abs(before)
        if bad:
            alarms.append(Alarm(step, "LossNotDecreasing"))
    return alarms


def overfit(
    rows: list[LoggedRow], *, start_step: int = 0, patience: int = 1, ratio_threshold: float = 0.1
) -> list[Alarm]:
    """Overfit of SageMaker Debugger.

    Documented: the ratio of (mean validation loss - mean training loss) to the mean training loss; "if this threshold
    is exceeded for a ``patience`` number of steps, the model is being overfit".

    Decided: a step is an evaluation. Its mean validation loss is ``eval_loss``; the mean training loss is that of the
    rows since the evaluation before it. Both take equal weights. An evaluation with no training row before it is
    passed over. The count starts again at an evaluation that does not exceed the threshold.
    """
    alarms: list[Alarm] = []
    training: list[float] = []
    exceeded = 0
    for row in rows:
        if "loss" in row.values:
            training.append(row.values["loss"])
        if "eval_loss" not in row.values or not training:
            continue
        mean = sum(training) / len(training)
        training.clear()
        if row.step < start_step:
            continue
        gap = row.values["eval_loss"] - mean
        ratio = gap / mean if mean else gap * math.inf
        exceeded = exceeded + 1 if ratio > ratio_threshold else 0
        if exceeded >= patience:
            alarms.append(Alarm(row.step, "Overfit"))
    return alarms


def exploding_tensor(rows: list[LoggedRow], *, only_nan: bool = False) -> list[Alarm]:
    """ExplodingTensor of SageMaker Debugger: a tensor that was saved has a NaN or, unless ``only_nan``, an infinity.

    Decided: the tensors are ``loss``, ``grad_norm`` and ``eval_loss``. A gradient norm is not finite wherever one of
    its gradients is not. The Trainer's ``logging_nan_inf_filter``, on by default, keeps NaN out of ``loss``.
    """
    bad = math.isnan if only_nan else (lambda value: not math.isfinite(value))
    keys = ("loss", "grad_norm", "eval_loss")
    return [
        Alarm(row.step, "ExplodingTensor")
        for row in rows
        if any(bad(row.values[key]) for key in keys if key in row.values)
    ]


def vanishing_gradient(rows: list[LoggedRow], *, threshold: float = 1e-7) -> list[Alarm]:
    """VanishingGradient of SageMaker Debugger: the mean of a gradient's absolute values is below ``threshold``.

    Decided: judged by ``grad_norm``, the only gradient that is logged. A norm over all parameters bounds that mean
    for each of them, so the rule itself would speak here and earlier. With LoRA it would speak from the first step,
    at which the gradient of A is zero because B starts at zero.
    """
    return [Alarm(step, "VanishingGradient") for step, norm in _series(rows, "grad_norm") if norm < threshold]


def kill_loss_spike(
    rows: list[LoggedRow],
    *,
    patience: int = 4,
    outlier_multiplier: float = 2.0,
    window: int = 100,
    window_fraction: float = 0.05,
    loss_cap: float = 10.0,
) -> list[Alarm]:
    """KillLossSpike of llm-foundry 0.22.0.

    From its code, for each batch once the window is full: ``LossSpike`` when more than ``patience`` losses in a row
    are at least ``outlier_multiplier`` times the window's mean (outliers enter the window too); otherwise
    ``HighLoss`` when, from two windows on, half of the window is above ``loss_cap``. The window is ``window`` batches,
    or ``window_fraction`` of all batches where that is more. The cap is to be lowered to the largest loss of the
    first window, but the batch at which the code would do so is the last of that window and it looks from the next
    one on (composer counts a batch before ``BATCH_END``: mosaicml 0.32.1 composer/trainer/trainer.py), so the cap
    stays. Restated as it runs.

    Decided: a row is a batch, so below 101 rows it says nothing; the number of all batches is that of the rows.
    ``log_only`` is on by default, so it goes on after a report.
    """
    alarms: list[Alarm] = []
    losses = _series(rows, "loss")
    size, size_is_set = window, False
    recent: deque[float] = deque(maxlen=size)
    outliers = 0
    for batch, (step, loss) in enumerate(losses, start=1):
        if len(recent) < size:
            recent.append(loss)
            continue
        if not size_is_set:
            size, size_is_set = max(size, round(len(losses) * window_fraction)), True
            recent = deque(recent, maxlen=size)
            if size > window:
                recent.append(loss)
                continue
        if loss >= sum(recent) / size * outlier_multiplier:
            outliers += 1
        else:
            outliers = 0
        if outliers > patience:
            alarms.append(Alarm(step, "LossSpike"))
        elif batch >= 2 * size and sum(value > loss_cap for value in recent) >= size / 2:
            alarms.append(Alarm(step, "HighLoss"))
        recent.append(loss)
    return alarms


def spike_detection(
    rows: list[LoggedRow],
    *,
    window: int = 10,
    warmup: int = 1,
    atol: float | None = None,
    rtol: float | None = 2.0,
    finite_only: bool = True,
) -> list[Alarm]:
    """SpikeDetection of Lightning Fabric 2.6.6, in its mode ``min``.

    From its code: from batch ``warmup`` on, a loss above the one before that differs from the mean of the last
    ``window`` losses by at least ``rtol`` times that mean (and by ``atol``, where set) is a spike: at the defaults, a
    loss of at least three times the mean. So is any loss that is not finite, when ``finite_only``; the class's
    docstring says the opposite, the code decides. A spike ends the training, so there is one report at most.

    Decided: a row is a batch. torchmetrics' ``Running(MeanMetric())`` is a mean over the last ``window`` losses in
    double precision, NaN left out of it.
    """
    recent: deque[float] = deque(maxlen=window)
    last = 0.0
    for batch, (step, loss) in enumerate(_series(rows, "loss")):
        if batch >= warmup:
            kept = [value for value in recent if not math.isnan(value)]
            mean = sum(kept) / len(kept) if kept else math.nan
            spike = (
                not loss - last <= 0
                and (atol is None or abs(loss - mean) >= abs(atol))
                and (rtol is None or abs(loss - mean) >= abs(rtol * mean))
            )
            if spike or (finite_only and not math.isfinite(loss)):
                return [Alarm(step, "TrainingSpike")]
        if finite_only or math.isfinite(loss):
            recent.append(loss)
            last = loss
    return []


_READ = """
import json, sys
from importlib.metadata import version
rows = json.load(sys.stdin)
"""
_PEERS = {
    "training-doctor": _READ
    + """
from types import SimpleNamespace
from training_doctor.integrations import HuggingFaceCallback
watch = HuggingFaceCallback(auto_print=False)
for step, values in rows:
    state = SimpleNamespace(global_step=step)
    watch.on_log(None, state, None, logs=values)
    if any(key.startswith("eval_") for key in values):
        watch.on_evaluate(None, state, None, metrics=values)
alarms = [(one.step, one.detector_name) for one in watch.diagnoses]
json.dump({"version": version("training-doctor"), "alarms": alarms}, sys.stdout)
""",
    "trainpulse": _READ
    + """
from trainpulse import Monitor
monitor = Monitor()
for step, values in rows:
    for key in ("loss", "learning_rate", "grad_norm"):
        if key in values:
            monitor.log(key, step, values[key])
alarms = [(one.step, one.detector) for one in monitor.alerts]
json.dump({"version": version("trainpulse"), "alarms": alarms}, sys.stdout)
""",
}
"""By package, the program that judges rows with it: it reads ``[[step, values], …]`` and writes version and alarms."""


def _ask_peer(package: str, rows: list[LoggedRow], python: str | None) -> dict[str, Any]:
    """What ``package`` says of ``rows`` when run by ``python``, by default the one of the environment variable."""
    python = python or os.environ.get(PEERS_PYTHON)
    if not python:
        raise AbstainError(f"{package}: {PEERS_PYTHON} names no interpreter that has it installed.")
    given = json.dumps([(row.step, dict(row.values)) for row in rows])
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PEERS[package]], input=given, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbstainError(f"{package}: {python} did not run it: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise AbstainError(f"{package}: {python} did not run it: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def peer_versions(python: str | None = None) -> dict[str, str]:
    """The version of each installed package by name; for one that cannot run, the reason.

    Args:
        python: The interpreter to ask; by default the one that ``LORAWATCH_PEERS_PYTHON`` names.
    """
    found: dict[str, str] = {}
    for package in _PEERS:
        try:
            found[package] = str(_ask_peer(package, [], python)["version"])
        except AbstainError as error:
            found[package] = str(error)
    return found


def training_doctor(rows: list[LoggedRow], *, python: str | None = None) -> list[Alarm]:
    """The package ``training-doctor`` itself, through the callback that it has for the Hugging Face Trainer.

    Rows are handed over as the Trainer would: each to ``on_log``, an evaluation also to ``on_evaluate``. A report is
    one diagnosis, named after its detector, whatever its confidence.

    Raises:
        AbstainError: When no interpreter is named or it cannot run the package.
    """
    return [Alarm(step, name) for step, name in _ask_peer("training-doctor", rows, python)["alarms"]]


def trainpulse(rows: list[LoggedRow], *, python: str | None = None) -> list[Alarm]:
    """The package ``trainpulse`` itself: its ``Monitor``, given what its Hugging Face callback would give it.

    That is ``loss``, ``learning_rate`` and ``grad_norm``; evaluations are not passed on. The callback itself needs
    transformers, the monitor does not. The time between steps, which it would also watch, is not in the rows.

    Raises:
        AbstainError: When no interpreter is named or it cannot run the package.
    """
    return [Alarm(step, name) for step, name in _ask_peer("trainpulse", rows, python)["alarms"]]


DETECTORS: tuple[Detector, ...] = (
    Detector("SageMaker LossNotDecreasing", SAGEMAKER, loss_not_decreasing, frozenset({LOSS})),
    Detector(
        "SageMaker LossNotDecreasing, strict",
        SAGEMAKER,
        partial(loss_not_decreasing, increase_threshold_percent=None),
        frozenset({LOSS}),
    ),
    Detector("SageMaker Overfit", SAGEMAKER, overfit, frozenset({LOSS, EVAL})),
    Detector("SageMaker ExplodingTensor", SAGEMAKER, exploding_tensor, frozenset({LOSS, GRADIENT, EVAL})),
    Detector("SageMaker VanishingGradient", SAGEMAKER, vanishing_gradient, frozenset({GRADIENT})),
    Detector("llm-foundry KillLossSpike", LLM_FOUNDRY, kill_loss_spike, frozenset({LOSS})),
    Detector("Lightning SpikeDetection", LIGHTNING, spike_detection, frozenset({LOSS})),
    Detector("training-doctor", TRAINING_DOCTOR, training_doctor, frozenset({LOSS, GRADIENT, EVAL})),
    Detector("trainpulse", TRAINPULSE, trainpulse, frozenset({LOSS, GRADIENT, RATE})),
)
"""Every published detector, restated ones first. LossNotDecreasing is there in both readings of its documents."""


def says(detector: Detector, rows: list[LoggedRow]) -> str:
    """A detector's reports on one run in a few words: each name, how often, and the step it was first said at."""
    try:
        alarms = detector.judge(rows)
    except AbstainError as error:
        return f"abstains: {error}"
    counts = Counter(one.name for one in alarms)
    first = {one.name: one.step for one in reversed(alarms)}
    return ", ".join(f"{name} {count}x from {first[name]}" for name, count in counts.items()) or "–"


def main() -> int:
    """Print what each detector says of each file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", nargs="+", type=Path, metavar="STATE", help="a trainer_state.json")
    options = parser.parse_args()
    print(", ".join(f"{name} {version}" for name, version in peer_versions().items()))
    for path in options.states:
        rows = logged_rows(json.loads(path.read_text(encoding="utf-8"))["log_history"])
        print(f"\n{path.parent.name}, {len(rows)} rows")
        for detector in DETECTORS:
            print(f"  {detector.name:<36} {says(detector, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
