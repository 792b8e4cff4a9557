"""The restated published detectors: each fires where its source says so, and is quiet where its source is."""

from __future__ import annotations

import json
import math
import os
import random
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# The benchmarks are scripts beside each other, not a package.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from published_detectors import (  # pyright: ignore[reportMissingImports]
    DETECTORS,
    PEERS_PYTHON,
    AbstainError,
    Alarm,
    Detector,
    LoggedRow,
    exploding_tensor,
    kill_loss_spike,
    logged_rows,
    loss_not_decreasing,
    overfit,
    peer_versions,
    spike_detection,
    training_doctor,
    trainpulse,
    vanishing_gradient,
)

Judge = Callable[[list[LoggedRow]], list[Alarm]]
RUNS = Path(__file__).parent / "runs"
PEERS = [training_doctor, trainpulse]
RESTATED = [one for one in DETECTORS if one.judge not in PEERS]
needs_peers = pytest.mark.skipif(not os.environ.get(PEERS_PYTHON), reason=f"{PEERS_PYTHON} is not set")


def losses(values: Sequence[float], every: int = 1, start: int = 1) -> list[LoggedRow]:
    return [LoggedRow(start + index * every, {"loss": value}) for index, value in enumerate(values)]


def norms(values: Sequence[float]) -> list[LoggedRow]:
    return [LoggedRow(index, {"grad_norm": value}) for index, value in enumerate(values, start=1)]


def steps(alarms: list[Alarm]) -> list[int]:
    return [one.step for one in alarms]


def falling(count: int) -> list[float]:
    return [1 + 2 * math.exp(-index / 100) for index in range(count)]


def noisy(count: int, size: float) -> list[float]:
    rng = random.Random("noise")  # noqa: S311
    return [value * (1 + size * rng.gauss(0, 1)) for value in falling(count)]


def recorded(name: str) -> list[LoggedRow]:
    return logged_rows(json.loads((RUNS / name / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])


@pytest.mark.parametrize("detector", RESTATED, ids=lambda one: one.name)
def test_a_smooth_fall_with_evaluations_close_by_is_reported_by_none(detector: Detector) -> None:
    rows: list[LoggedRow] = []
    for step, value in enumerate(falling(400), start=1):
        rows.append(LoggedRow(step, {"loss": value, "grad_norm": 1.0, "learning_rate": 1e-4}))
        if step % 50 == 0:
            rows.append(LoggedRow(step, {"eval_loss": value * 1.02}))
    assert detector.judge(rows) == []


@pytest.mark.parametrize("detector", RESTATED, ids=lambda one: one.name)
def test_no_rows_and_one_row_are_reported_by_none(detector: Detector) -> None:
    assert detector.judge([]) == []
    assert detector.judge([LoggedRow(1, {"loss": 2.0, "grad_norm": 1.0})]) == []


def test_names_are_unique_and_each_says_its_source_and_what_it_sees() -> None:
    assert len({one.name for one in DETECTORS}) == len(DETECTORS)
    assert all(one.source and one.sees <= {"loss", "gradient", "eval", "learning rate"} for one in DETECTORS)
    assert all(one.sees for one in DETECTORS)


# SageMaker LossNotDecreasing


def test_loss_not_decreasing_answers_its_published_test() -> None:
    # awslabs/sagemaker-debugger tests/analysis/rules/test_loss_not_decreasing.py, test_default: saved each 4 steps,
    # the first check is at step 12 against step 0; one that starts at step 4 compares 0.28 with 0.33.
    rows = losses([0.30, 0.33, 0.31, 0.30, 0.28], every=4, start=0)
    assert steps(loss_not_decreasing(rows, diff_percent=0.0)) == [12]
    assert loss_not_decreasing(rows[1:], diff_percent=0.0) == []


def test_loss_not_decreasing_checks_at_the_documented_steps() -> None:
    # "if the loss is being saved every 3 steps": ten steps after 9 is 19, so 21 is checked, and then 33.
    assert steps(loss_not_decreasing(losses([1.0] * 10, every=3, start=9))) == [21, 33]


@pytest.mark.parametrize(
    ("last", "two_branches", "strict"),
    [
        pytest.param(0.998, False, False, id="fell by more than 0.1 %"),
        pytest.param(0.9995, True, True, id="fell by less than 0.1 %"),
        pytest.param(1.0, True, True, id="did not move"),
        pytest.param(1.04, False, True, id="rose by less than 5 %"),
        pytest.param(1.06, True, True, id="rose by more than 5 %"),
        pytest.param(math.nan, True, True, id="became NaN"),
    ],
)
def test_loss_not_decreasing_in_both_readings(last: float, two_branches: bool, strict: bool) -> None:
    rows = losses([1.0] + [0.5] * 9 + [last])
    assert bool(loss_not_decreasing(rows)) is two_branches
    assert bool(loss_not_decreasing(rows, increase_threshold_percent=None)) is strict


def test_loss_not_decreasing_reports_a_healthy_fall_under_ten_percent_of_noise() -> None:
    rows = losses(noisy(400, 0.10))
    assert len(loss_not_decreasing(rows)) > 3
    assert len(loss_not_decreasing(rows, increase_threshold_percent=None)) > len(loss_not_decreasing(rows))


def test_loss_not_decreasing_outlives_steps_that_go_back_after_a_resume() -> None:
    rows = losses([1.0] * 30) + losses([1.0] * 30, start=20)
    assert steps(loss_not_decreasing(rows)) == [11, 21, 31, 41]


# SageMaker Overfit


def evaluated(*evals: float, training: float = 1.0) -> list[LoggedRow]:
    rows: list[LoggedRow] = []
    for index, value in enumerate(evals, start=1):
        rows += [LoggedRow(10 * index - 5, {"loss": training - 0.1}), LoggedRow(10 * index, {"loss": training + 0.1})]
        rows.append(LoggedRow(10 * index, {"eval_loss": value}))
    return rows


def test_overfit_is_a_gap_of_more_than_a_tenth_of_the_training_loss() -> None:
    assert overfit(evaluated(1.05, 1.09, 1.0)) == []
    assert overfit(evaluated(1.05, 1.12, 1.09, 1.5)) == [Alarm(20, "Overfit"), Alarm(40, "Overfit")]


def test_overfit_with_patience_waits_for_evaluations_in_a_row() -> None:
    assert steps(overfit(evaluated(1.2, 1.0, 1.2, 1.2), patience=2)) == [40]
    assert steps(overfit(evaluated(1.2, 1.2), start_step=15)) == [20]


def test_overfit_passes_over_an_evaluation_without_training_before_it() -> None:
    rows = [LoggedRow(0, {"eval_loss": 9.0}), *evaluated(1.0), LoggedRow(10, {"eval_loss": 9.0})]
    assert overfit(rows) == []


def test_overfit_takes_a_training_loss_of_zero_and_one_below_zero() -> None:
    assert steps(overfit([LoggedRow(1, {"loss": 0.0}), LoggedRow(1, {"eval_loss": 0.1})])) == [1]
    assert overfit([LoggedRow(1, {"loss": 0.0}), LoggedRow(1, {"eval_loss": 0.0})]) == []
    assert overfit([LoggedRow(1, {"loss": -1.0}), LoggedRow(1, {"eval_loss": -0.5})]) == []


# SageMaker ExplodingTensor and VanishingGradient


@pytest.mark.parametrize("key", ["loss", "grad_norm", "eval_loss"])
def test_exploding_tensor_is_any_value_that_is_not_finite(key: str) -> None:
    rows = [LoggedRow(1, {key: 1e30}), LoggedRow(2, {key: math.nan}), LoggedRow(3, {key: -math.inf})]
    assert steps(exploding_tensor(rows)) == [2, 3]
    assert steps(exploding_tensor(rows, only_nan=True)) == [2]


def test_vanishing_gradient_is_a_norm_below_a_ten_millionth() -> None:
    assert steps(vanishing_gradient(norms([1e-3, 1e-7, 0.9e-7, 0.0, math.nan]))) == [3, 4]


# llm-foundry KillLossSpike


def test_kill_loss_spike_waits_for_a_full_window_and_five_outliers_in_a_row() -> None:
    spike = [9.0] * 5 + [1.0] * 5
    assert kill_loss_spike(losses([1.0] * 50 + spike + [1.0] * 100)) == []
    assert kill_loss_spike(losses([1.0] * 100 + [9.0] * 4 + [1.0] + [9.0] * 4)) == []
    assert kill_loss_spike(losses([1.0] * 100 + spike)) == [Alarm(105, "LossSpike")]


def test_kill_loss_spike_widens_its_window_to_a_twentieth_of_a_long_run() -> None:
    # 4000 batches make a window of 200: a spike that the window of 100 would see comes before it is full.
    spike = [1.0] * 150 + [9.0] * 6
    assert kill_loss_spike(losses(spike + [1.0] * (2000 - len(spike)))) != []
    assert kill_loss_spike(losses(spike + [1.0] * (4000 - len(spike)))) == []


def test_kill_loss_spike_reports_half_a_window_above_ten_from_two_windows_on() -> None:
    assert steps(kill_loss_spike(losses([11.0] * 202))) == [200, 201, 202]
    assert kill_loss_spike(losses([9.9] * 300)) == []


def test_kill_loss_spike_is_quiet_on_noise_and_on_nan() -> None:
    assert kill_loss_spike(losses(noisy(600, 0.25))) == []
    assert kill_loss_spike(losses([1.0] * 100 + [math.nan] * 50)) == []


# Lightning SpikeDetection


def test_spike_detection_ends_at_the_first_loss_of_three_times_the_running_mean() -> None:
    assert spike_detection(losses([1.0] * 20 + [2.9] * 3)) == []
    assert spike_detection(losses([1.0] * 20 + [3.0, 9.0])) == [Alarm(21, "TrainingSpike")]


def test_spike_detection_takes_only_a_rise_for_a_spike() -> None:
    assert spike_detection(losses([100.0, 0.001])) == []
    assert spike_detection(losses([-1.0, -1.0, -9.0])) == []


def test_spike_detection_reports_nan_after_its_warmup() -> None:
    assert steps(spike_detection(losses([1.0, math.nan, 1.0]))) == [2]
    assert spike_detection(losses([math.nan, 1.0, 1.0])) == []
    assert spike_detection(losses([1.0, math.nan, 1.0]), finite_only=False) == []


def test_spike_detection_is_quiet_on_noise() -> None:
    assert spike_detection(losses(noisy(600, 0.25))) == []


# Recorded runs


@pytest.mark.parametrize(
    ("name", "judge", "first"),
    [
        ("nan-from-step-40", exploding_tensor, 41),
        ("labels-masked", vanishing_gradient, 1),
        ("lr-too-low", loss_not_decreasing, 12),
        ("overfit", overfit, 40),
    ],
)
def test_a_recorded_fault_in_a_detectors_scope_is_reported(name: str, judge: Judge, first: int) -> None:
    assert judge(recorded(name))[0].step == first


def test_rows_of_a_trainer_state_keep_nan_and_leave_out_what_is_no_number() -> None:
    rows = logged_rows([{"step": 3, "loss": math.nan, "epoch": 1, "note": "x", "done": True, "none": None}])
    assert rows[0].step == 3
    assert math.isnan(rows[0].values["loss"])
    assert set(rows[0].values) == {"loss", "epoch"}


# Installed packages


@pytest.mark.parametrize("judge", PEERS)
def test_a_package_abstains_where_no_interpreter_is_named(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PEERS_PYTHON, raising=False)
    with pytest.raises(AbstainError, match=f"{PEERS_PYTHON} names no interpreter"):
        judge([])


def test_a_package_abstains_where_the_interpreter_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PEERS_PYTHON, "/no/such/python")
    with pytest.raises(AbstainError, match=r"trainpulse: /no/such/python did not run it: .*No such file"):
        trainpulse([])
    assert all("No such file" in said for said in peer_versions().values())


def test_a_package_abstains_with_the_last_line_of_a_failure(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'ModuleNotFoundError: no trainpulse' >&2\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(AbstainError, match=r"did not run it: ModuleNotFoundError: no trainpulse$"):
        trainpulse([], python=str(python))


@needs_peers
def test_the_packages_say_their_versions() -> None:
    assert set(peer_versions()) == {"training-doctor", "trainpulse"}
    assert all(version[0].isdigit() for version in peer_versions().values())


@needs_peers
def test_training_doctor_reports_nan_and_is_quiet_on_a_smooth_fall() -> None:
    assert training_doctor(losses(falling(300))) == []
    reported = training_doctor(losses([*falling(60), math.nan]))
    assert Alarm(61, "lr_too_high") in reported


@needs_peers
def test_trainpulse_reports_nan_a_plateau_and_a_spike_and_is_quiet_on_a_smooth_fall() -> None:
    assert trainpulse(losses(falling(300))) == []
    assert trainpulse(losses([1.0] * 101)) == [Alarm(101, "plateau")]
    assert trainpulse(losses([*falling(60), 50.0, math.nan])) == [
        Alarm(61, "loss_spike"),
        Alarm(62, "nan_detector"),
    ]
