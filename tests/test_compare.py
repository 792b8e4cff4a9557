"""``lorawatch compare``: what differs, which findings came and went, and whether the change helped."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorawatch.cli.main import main
from lorawatch.comparison.compare import CompareError, Comparison, FindingChange, Measure, _combine, compare
from lorawatch.comparison.history import History, paired, read_history
from lorawatch.comparison.losses import binomial_p, count_spikes, difference_error, lost_step
from lorawatch.findings import Finding, Severity
from lorawatch.records import AllocatorReading, FactUpdate, LifecycleEvent, MetricRow, Record, Step, StepTiming
from lorawatch.registry import RuleSet
from lorawatch.run_watch import RunWatch
from lorawatch.settings import Settings
from lorawatch.sources.lorawatch_jsonl import encode
from lorawatch.watch import judge

RUNS = Path(__file__).parent / "runs"
RULES = RuleSet(Settings())
FACTS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 2e-4, "max_length": 1024,
    "packing": False, "seed": 42, "lora_alpha": 32, "r": 16, "model_name_or_path": "base/model-1b", "train_rows": 5000,
    "lr_scheduler_type": "constant",
}  # fmt: skip


def state(
    folder: Path,
    losses: Sequence[float],
    *,
    every: int = 10,
    evals: dict[int, float] | None = None,
    columns: dict[str, Callable[[int], float]] | None = None,
    **facts: Any,
) -> Path:
    """Write a run's ``trainer_state.json`` and its training arguments, as a Trainer and a script would."""
    folder.mkdir(parents=True)
    history: list[dict[str, Any]] = []
    for index, loss in enumerate(losses, 1):
        row = {"step": index * every, "loss": loss, "learning_rate": 2e-4, "epoch": index * every / 600}
        history.append(row | {name: column(index * every) for name, column in (columns or {}).items()})
        if evals and index * every in evals:
            history.append({"step": index * every, "eval_loss": evals[index * every]})
    last = len(losses) * every
    history.append({"step": last, "train_runtime": 1.0})
    document = {"global_step": last, "max_steps": last, "logging_steps": every, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(document))
    (folder / "training_args.json").write_text(json.dumps(FACTS | {"output_dir": str(folder)} | facts))
    return folder


def run(path: Path) -> RunWatch:
    judged = judge([path], RULES)
    assert not judged.errors
    (watch,) = judged.runs
    return watch


def compared(before: Path, after: Path) -> Comparison:
    return compare(run(before), run(after))


def measure(found: Comparison, name: str) -> Measure:
    return next(one for one in found.measures if one.name == name)


def curve(count: int, level: float, *, noise: float = 0.02, seed: int = 0, every: float = 10.0) -> list[float]:
    """A loss that falls from 2.5 to ``level`` as steps of ``every`` sequences go by, with noise of its own."""
    draw = random.Random(seed)  # noqa: S311
    return [level + (2.5 - level) * math.exp(-(index * every) / 200) + draw.gauss(0, noise) for index in range(count)]


class TestRecordedRuns:
    @pytest.mark.parametrize(
        ("before", "after", "verdict", "reason"),
        [
            ("lr-too-low", "healthy-sft", "helped", "loss/not-learning (step 150) is gone"),
            ("healthy-sft", "lr-too-low", "worse", "loss/not-learning came"),
            ("lr-too-high", "healthy-sft", "helped", "loss/at-uniform (step 6) is gone"),
            ("healthy-sft", "lr-too-high", "worse", "loss/at-uniform came"),
            ("nan-from-step-40", "healthy-sft", "helped", "finite to its end"),
            ("healthy-sft", "nan-from-step-40", "worse", "not finite from step 41 on after"),
            ("labels-masked", "healthy-sft", "helped", "sig/no-supervision (step 3) is gone"),
            ("overfit", "healthy-sft", "helped", "eval/overfit (step 100) is gone"),
            ("healthy-trl", "healthy-trl", "no effect", "eval_loss +0"),
            ("healthy-trl", "healthy-dpo", "refused", "another method: sft before, dpo after"),
        ],
    )
    def test_the_verdict_is_the_one_a_person_would_give(
        self, before: str, after: str, verdict: str, reason: str
    ) -> None:
        found = compared(RUNS / before, RUNS / after)
        assert found.verdict == verdict
        assert reason in found.why

    def test_trained_tokens_are_the_axis_where_both_log_them(self) -> None:
        assert compared(RUNS / "healthy-trl", RUNS / "healthy-trl").axis == "trained tokens (num_tokens)"

    def test_the_loss_is_refused_where_the_data_set_changed_and_the_evaluation_is_not(self) -> None:
        found = compared(RUNS / "overfit", RUNS / "healthy-sft")
        assert measure(found, "loss").refused
        assert "train_rows 48 → 2000" in measure(found, "loss").why
        assert measure(found, "eval_loss").verdict == "helped"
        assert "both evaluation sets have 64 rows" in measure(found, "eval_loss").why

    def test_a_rule_that_could_not_judge_again_is_not_called_gone(self) -> None:
        found = compared(RUNS / "waits-for-data", RUNS / "healthy-sft")
        told = [(one.rule, one.change) for one in found.findings if not one.rule.startswith("cfg/")]
        assert told == [("perf/data-wait", "not judged")]

    def test_a_resumed_run_counts_once_what_it_did_twice(self) -> None:
        history = read_history(run(RUNS / "resumed"))
        rows = [json.loads(line) for line in (RUNS / "resumed" / "lorawatch.jsonl").read_text().splitlines()]
        losses = [row for row in rows if row["type"] == "metrics" and "loss" in row["values"]]
        steps = sorted({row["step"] for row in losses})
        assert len(losses) > len(steps)
        assert list(history.finite("loss")) == steps
        last_told = {row["step"]: row["values"]["loss"] for row in losses}
        assert history.finite("loss") == last_told

    def test_what_a_resumed_run_left_behind_does_not_count(self, tmp_path: Path) -> None:
        records: list[Record] = [MetricRow(step, {"loss": 2.0}) for step in range(10, 131, 10)]
        records += [LifecycleEvent("resumed", step=100), MetricRow(105, {"loss": 1.0}), MetricRow(115, {"loss": 1.0})]
        (tmp_path / "lorawatch.jsonl").write_bytes(b"".join(map(encode, records)))
        history = read_history(run(tmp_path))
        assert list(history.finite("loss")) == [*range(10, 101, 10), 105, 115]
        assert history.last_step == 115

    def test_reading_again_leaves_the_watch_as_it_is(self) -> None:
        watch = run(RUNS / "healthy-sft")
        rows = watch.rows
        read_history(watch)
        watch.read()
        assert watch.rows == rows


class TestLoss:
    def test_a_lower_loss_at_equal_training_helped(self, tmp_path: Path) -> None:
        before = state(tmp_path / "a", curve(100, 1.5))
        found = compared(before, state(tmp_path / "b", curve(100, 1.4, seed=1), learning_rate=5e-4))
        loss = measure(found, "loss")
        assert found.verdict == loss.verdict == "helped"
        assert loss.effect == pytest.approx(-0.1 / 1.5, abs=0.01)
        assert loss.standard_error is not None
        assert 0 < 2 * loss.standard_error < 0.02

    def test_a_difference_within_the_noise_is_inconclusive(self, tmp_path: Path) -> None:
        noisy = curve(40, 1.5, noise=0.4, seed=3)
        found = compared(state(tmp_path / "a", curve(40, 1.5, noise=0.4, seed=2)), state(tmp_path / "b", noisy))
        assert measure(found, "loss").verdict == found.verdict == "inconclusive"

    def test_less_than_half_a_percent_is_no_effect_however_certain(self, tmp_path: Path) -> None:
        losses = curve(100, 1.5)
        found = compared(state(tmp_path / "a", losses), state(tmp_path / "b", [0.996 * loss for loss in losses]))
        assert found.verdict == "no effect"

    def test_steps_of_other_batches_are_compared_by_what_they_train(self, tmp_path: Path) -> None:
        # Twice the batch: after as many sequences the same loss, after as many steps a much lower one.
        before = state(tmp_path / "a", curve(120, 1.0, noise=0.0, every=10))
        after = state(tmp_path / "b", curve(60, 1.0, noise=0.0, every=20), gradient_accumulation_steps=4)
        found = compared(before, after)
        assert "effective batch of 8 and 16" in found.axis
        assert measure(found, "loss").verdict == "no effect"

    def test_token_counts_win_over_batches(self, tmp_path: Path) -> None:
        before = state(tmp_path / "a", curve(60, 1.0), columns={"num_tokens": lambda step: 100.0 * step})
        after = state(tmp_path / "b", curve(60, 1.0), columns={"num_tokens": lambda step: 50.0 * step})
        found = compared(before, after)
        assert found.axis == "trained tokens (num_tokens)"
        assert any("50 % of the first run" in note for note in found.notes)

    def test_an_evaluation_counts_more_than_the_training_loss(self, tmp_path: Path) -> None:
        steps = range(100, 1001, 100)
        before = state(tmp_path / "a", curve(100, 1.5), evals={step: 1.6 + 20 / step for step in steps})
        after = state(tmp_path / "b", curve(100, 1.3), evals={step: 1.68 + 20 / step for step in steps}, r=64)
        found = compared(before, after)
        assert measure(found, "loss").verdict == "helped"
        assert measure(found, "eval_loss").verdict == "worse"
        assert found.verdict == "worse"

    @pytest.mark.parametrize(
        ("fact", "value"),
        [
            ("max_length", 2048),
            ("packing", True),
            ("completion_only_loss", True),
            ("assistant_only_loss", True),
            ("template", "llama3"),
            ("loss_type", "dft"),
            ("train_rows", 9000),
            ("lora_dropout", 0.1),
        ],
    )
    def test_a_loss_that_means_something_else_is_refused(
        self, fact: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        default: dict[str, Any] = {
            "completion_only_loss": False, "assistant_only_loss": False, "template": "qwen", "loss_type": "nll",
            "lora_dropout": 0.0,
        }  # fmt: skip
        before = state(tmp_path / "a", curve(100, 1.5), **default)
        after = state(tmp_path / "b", curve(100, 1.0), **default | {fact: value})
        found = compared(before, after)
        assert found.verdict == "refused"
        assert fact in found.why
        assert main(["compare", str(before), str(after)]) == 2
        assert capsys.readouterr().out.startswith("REFUSED: loss: ")

    def test_what_only_one_run_tells_refuses_nothing(self, tmp_path: Path) -> None:
        before = state(tmp_path / "a", curve(100, 1.5))
        found = compared(before, state(tmp_path / "b", curve(100, 1.5), loss_type="nll"))
        assert found.verdict == "no effect"
        assert [(one.name, one.one_sided) for one in found.facts] == [("loss_type", True)]

    def test_another_model_is_refused_whole(self, tmp_path: Path) -> None:
        before = state(tmp_path / "a", curve(100, 1.5))
        found = compared(before, state(tmp_path / "b", curve(100, 1.0), model_name_or_path="base/model-3b"))
        assert (found.verdict, found.findings) == ("refused", [])
        assert found.why == "another model: model_name_or_path base/model-1b → base/model-3b"

    def test_means_over_other_stretches_are_averaged_by_their_parts(self) -> None:
        fine = [(0.0, 1.0, 4.0), (1.0, 2.0, 2.0), (2.0, 3.0, 1.0), (3.0, 4.0, 3.0)]
        coarse = [(0.0, 1.5, 10.0), (1.5, 3.0, 20.0), (3.0, 4.5, 30.0)]
        ends, means, others = zip(*paired(fine, coarse), strict=True)
        assert ends == (1.5, 3.0)  # the third stretch is not covered whole
        assert means == pytest.approx(((4 + 0.5 * 2) / 1.5, (0.5 * 2 + 1) / 1.5))
        assert others == (10.0, 20.0)
        assert list(zip(*paired(coarse, fine), strict=True)) == [ends, others, means]

    def test_series_without_a_difference_are_seldom_told_apart(self) -> None:
        draw, wrong = random.Random(5), 0  # noqa: S311
        for _ in range(400):
            value, series = 0.0, []
            for _ in range(30):
                value = 0.4 * value + draw.gauss(0, 0.05)
                series.append(value)
            mean = sum(series) / len(series)
            wrong += abs(mean) > max(0.005, 2 * difference_error(series))
        assert wrong <= 0.08 * 400


class TestFacts:
    def test_noise_is_left_out_and_a_seed_is_marked(self, tmp_path: Path) -> None:
        before = state(tmp_path / "a", curve(60, 1.5), run_name="monday")
        after = state(
            tmp_path / "b", curve(60, 1.5), run_name="tuesday", seed=7, r=32, model_name_or_path="/data/model-1b"
        )
        found = compared(before, after)
        assert {one.name: (one.before, one.after) for one in found.facts} == {"seed": (42, 7), "r": (16, 32)}
        assert "another order" in next(one.note for one in found.facts if one.name == "seed")
        assert any(note.startswith("The seeds differ") for note in found.notes)


class TestFindings:
    def test_a_run_that_stays_finite_helped_against_one_that_did_not(self, tmp_path: Path) -> None:
        losses = curve(100, 1.5)
        lost = state(tmp_path / "a", [*losses[:50], *[math.nan] * 50])
        kept = state(tmp_path / "b", losses, learning_rate=5e-5)
        found = compared(lost, kept)
        assert found.verdict == "helped"
        assert measure(found, "finite loss").before == 510
        assert measure(found, "loss").refused
        assert compared(kept, lost).verdict == "worse"

    def test_a_loss_of_zero_beside_a_gradient_that_is_not_finite_is_lost(self) -> None:
        losses = {step: 1.0 if step < 8 else 0.0 for step in range(1, 11)}
        norms = {step: 0.5 if step < 8 else math.nan for step in range(1, 11)}
        assert lost_step(History({"loss": losses, "grad_norm": norms})) == 8
        skipped = dict.fromkeys(range(1, 11), 1.0)  # a step that fp16's scaler skips
        assert lost_step(History({"loss": skipped, "grad_norm": norms})) is None

    def test_a_run_that_ends_before_the_loss_was_lost_tells_nothing(self, tmp_path: Path) -> None:
        losses = curve(100, 1.5)
        lost = state(tmp_path / "a", [*losses[:80], *[math.nan] * 20])
        found = compared(lost, state(tmp_path / "b", losses[:30], learning_rate=5e-5))
        assert measure(found, "finite loss").verdict == "inconclusive"
        assert found.verdict == "inconclusive"

    def test_divergence_that_is_gone_is_weaker_where_it_was_not_watched_long_enough(self, tmp_path: Path) -> None:
        losses = curve(100, 1.3)
        rising = [*losses[:60], *[losses[60] + index / 10 for index in range(40)]]
        before, after = state(tmp_path / "a", rising), state(tmp_path / "b", losses, learning_rate=7e-5)
        found = compared(before, after)
        assert found.verdict == "helped"
        (change,) = [one for one in found.findings if one.rule == "loss/diverging"]
        assert change.change == "gone"
        assert change.before is not None
        assert f"watched for 1000 steps, {2 * change.before.opened_step} would be enough" in change.note

    def test_overfitting_is_mended_by_ending_before_it(self, tmp_path: Path) -> None:
        evals = {step: 1.5 + 30 / step if step <= 500 else 1.56 + (step - 500) / 1500 for step in range(50, 1001, 50)}
        losses = curve(100, 1.0)
        before = state(tmp_path / "a", losses, evals=evals)
        early = {step: value for step, value in evals.items() if step <= 500}
        found = compared(before, state(tmp_path / "b", losses[:50], evals=early))
        assert found.verdict == "helped"
        assert "before it could overfit" in found.why
        too_early = {step: value for step, value in evals.items() if step <= 150}
        assert compared(before, state(tmp_path / "c", losses[:15], evals=too_early)).verdict == "worse"

    def test_overfitting_is_not_gone_where_nothing_was_evaluated(self, tmp_path: Path) -> None:
        evals = {step: 1.5 + abs(step - 300) / 1000 for step in range(50, 1001, 50)}
        losses = curve(100, 1.0)
        found = compared(state(tmp_path / "a", losses, evals=evals), state(tmp_path / "b", losses))
        assert found.findings[0].rule == "eval/overfit"
        assert found.findings[0].change == "not judged"
        assert found.verdict != "helped"

    def test_a_lower_training_loss_does_not_help_a_run_that_learns_by_heart(self, tmp_path: Path) -> None:
        evals = {step: 1.5 + abs(step - 300) / 1000 for step in range(50, 1001, 50)}
        before = state(tmp_path / "a", curve(100, 1.0), evals=evals)
        uneven = {step: value + (0.02 if step % 100 else -0.02) for step, value in evals.items()}
        found = compared(before, state(tmp_path / "b", curve(100, 0.8), evals=uneven, r=64))
        assert measure(found, "loss").verdict == "helped"
        assert measure(found, "eval_loss").verdict == found.verdict == "inconclusive"

    def test_an_alarm_in_half_the_time_is_worse_unless_the_log_is_finer(self, tmp_path: Path) -> None:
        def rising(from_step: int, every: int) -> list[float]:
            steps = range(every, 1001, every)
            return [1.3 + math.exp(-step / 50) + max(step - from_step, 0) / 100 for step in steps]

        late = state(tmp_path / "a", rising(800, 10))
        assert compared(late, state(tmp_path / "b", rising(250, 10))).verdict == "worse"
        found = compared(late, state(tmp_path / "c", rising(250, 2), every=2, logging_steps=2))
        assert next(one.change for one in found.findings if one.rule == "loss/diverging") == "stayed"
        assert found.verdict == "no effect"

    def test_the_reward_counts_where_the_loss_says_nothing(self, tmp_path: Path) -> None:
        def rewarded(name: str, top: float, **facts: Any) -> Path:
            columns: dict[str, Callable[[int], float]] = {
                "reward": lambda step: top * (1 - math.exp(-step / 300)), "reward_std": lambda _: 0.3,
            }  # fmt: skip
            return state(tmp_path / name, [0.001] * 100, columns=columns, trainer_class="GRPOTrainer", **facts)

        found = compared(rewarded("a", 1.0, beta=0.04), rewarded("b", 1.2, beta=0.0))
        assert [(one.name, one.verdict) for one in found.measures] == [("reward", "helped")]
        assert found.verdict == "helped"

    def test_a_loss_that_an_exploding_margin_made_look_good_does_not_count(self, tmp_path: Path) -> None:
        def preferred(name: str, margin: float, low: float) -> Path:
            columns: dict[str, Callable[[int], float]] = {
                "rewards/margins": lambda step: margin * (1 - math.exp(-step / 100)),
                "rewards/accuracies": lambda step: 0.5 + 0.5 * (1 - math.exp(-step / 50)),
                "rewards/chosen": lambda _: margin / 2, "rewards/rejected": lambda _: -margin / 2,
            }  # fmt: skip
            losses = [0.69 * math.exp(-index / 8) + low for index in range(60)]
            facts: dict[str, Any] = {"trainer_class": "DPOTrainer", "beta": 0.1, "max_length": None}
            return state(tmp_path / name, losses, evals={300: low, 600: low}, columns=columns, **facts)

        found = compared(preferred("a", 60.0, 1e-6), preferred("b", 1.5, 0.3))
        assert [one.change for one in found.findings if one.rule == "pref/margin-explosion"] == ["gone"]
        assert measure(found, "eval_loss").verdict == "worse"
        assert found.verdict == "helped"

    @pytest.mark.parametrize(("maturity", "verdict"), [("experimental", "helped"), ("stable", "inconclusive")])
    def test_what_an_experimental_rule_warns_of_is_told_beside_a_better_loss(self, maturity: Any, verdict: str) -> None:
        finding = Finding("base/ppl", "Perplexity", Severity.WARNING, maturity, "grew", {}, 100, 100, 200)
        better = Measure("eval_loss", 2.0, 1.0, -0.5, 0.01, "helped", "eval_loss 2 → 1")
        got, why = _combine([FindingChange("base/ppl", "new", None, finding)], better, [better])
        assert got == verdict
        assert "base/ppl came (warning, step 100)" in why

    def test_a_divergence_in_another_ones_place_is_the_same_trouble(self, tmp_path: Path) -> None:
        blown = [1.6, 1.6, 1.7, 9.0, 9.5, 9.9, *[10.0 + 0.01 * (index % 3) for index in range(94)]]
        losses = curve(100, 1.3)
        rising = [*losses[:80], *[losses[80] + index / 10 for index in range(20)]]
        found = compared(state(tmp_path / "a", blown), state(tmp_path / "b", rising))
        assert found.verdict == "helped"
        assert "loss/blow-up (step 50) is later: now loss/diverging" in found.why

    def test_spikes_are_judged_by_their_rate(self, tmp_path: Path) -> None:
        calm = curve(300, 1.5)
        spiked = [loss + (4.0 if index in range(60, 300, 30) else 0.0) for index, loss in enumerate(calm)]
        assert count_spikes(dict(enumerate(spiked))) == 8
        found = compared(state(tmp_path / "a", spiked), state(tmp_path / "b", calm))
        assert measure(found, "spikes").verdict == "helped"
        assert "8 in" in measure(found, "spikes").why

    def test_the_exact_test_of_two_rates(self) -> None:
        assert binomial_p(0, 6, 0.5) == pytest.approx(2 / 64)
        assert binomial_p(1, 6, 0.5) == pytest.approx(14 / 64)
        assert binomial_p(3, 6, 0.5) == pytest.approx(1.0)
        assert binomial_p(4, 4, 0.25) == pytest.approx(0.25**4)


def recorded(folder: Path, seconds: float, *, peak: int, size: int = 4096, steps: int = 200) -> Path:
    """Write a run as the callback does, with the time of each step and what the allocator says."""
    draw = random.Random(1)  # noqa: S311
    records: list[Record] = [FactUpdate(FACTS | {"max_steps": steps}, "callback")]
    for step in range(10, steps + 1, 10):
        records.append(MetricRow(step, {"loss": 1.0 + 20 / (step + 10)}))
        times = [
            Step(0.01, seconds * (1 + draw.gauss(0, 0.03)), 0.01, padded_tokens=size, largest_micro_batch=size)
            for _ in range(10)
        ]
        allocator = AllocatorReading(allocated=peak // 2, peak_allocated=peak, reserved=peak, peak_reserved=peak)
        records.append(StepTiming(step, 10, times, allocator=allocator))
    folder.mkdir()
    (folder / "lorawatch.jsonl").write_bytes(b"".join(map(encode, records)))
    return folder


class TestSpeedAndMemory:
    def test_a_faster_run_helped_where_the_loss_is_the_same(self, tmp_path: Path) -> None:
        slow, fast = (recorded(tmp_path / name, each, peak=8 << 30) for name, each in (("a", 0.5), ("b", 0.4)))
        found = compared(slow, fast)
        speed = measure(found, "speed")
        assert speed.verdict == found.verdict == "helped"
        assert speed.effect == pytest.approx(0.52 / 0.42 - 1, abs=0.02)
        assert speed.unit == "sequences/s"
        assert compared(slow, fast).measures == found.measures
        assert compared(fast, slow).verdict == "worse"
        assert compared(slow, slow).verdict == "no effect"

    def test_peaks_are_compared_at_one_size_of_batch(self, tmp_path: Path) -> None:
        high, low = recorded(tmp_path / "a", 0.5, peak=8 << 30), recorded(tmp_path / "b", 0.5, peak=6 << 30)
        found = measure(compared(high, low), "peak memory")
        assert (found.verdict, found.before, found.after) == ("helped", 8.0, 6.0)
        assert found.effect == pytest.approx(-0.25)
        other = recorded(tmp_path / "c", 0.5, peak=6 << 30, size=8192)
        assert measure(compared(high, other), "peak memory").refused


class TestCommand:
    def compare(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        code = main(["compare", *words])
        out, err = capsys.readouterr()
        return code, out, err

    @pytest.mark.parametrize(
        ("before", "after", "code"),
        [("lr-too-low", "healthy-sft", 0), ("healthy-sft", "lr-too-low", 1), ("healthy-trl", "healthy-dpo", 2)],
    )
    def test_the_exit_code_tells_the_verdict(
        self, before: str, after: str, code: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.compare(capsys, str(RUNS / before), str(RUNS / after))[0] == code

    def test_the_text_says_the_verdict_first_and_what_it_rests_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, err = self.compare(capsys, str(RUNS / "lr-too-high"), str(RUNS / "healthy-sft"))
        assert err == ""
        assert out.startswith("HELPED: loss/at-uniform (step 6) is gone; loss -66.3 ± ")
        assert "learning_rate                1 → 0.005" in out
        assert "gone    loss/at-uniform   critical at step 6 → none" in out
        assert max(map(len, out.splitlines())) <= 102

    def test_json_is_strict_and_whole(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        losses = curve(60, 1.5)
        before = state(tmp_path / "a", [*losses[:30], *[math.nan] * 30])

        def refuse(constant: str) -> Any:
            raise AssertionError(f"{constant} is not strict JSON")

        code, out, _ = self.compare(capsys, str(before), str(state(tmp_path / "b", losses)), "--format", "json")
        found = json.loads(out, parse_constant=refuse)
        assert code == 0
        assert found["verdict"] == "helped"
        assert {"name", "before", "after", "unit", "effect", "standard_error", "verdict", "why", "refused"} == set(
            found["measures"][0]
        )
        assert found["findings"][0]["before"]["severity"] == "critical"

    def test_markdown_is_tables(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = self.compare(capsys, str(RUNS / "lr-too-low"), str(RUNS / "healthy-sft"), "--format", "markdown")
        assert out.startswith("## lr-too-low → healthy-sft: helped\n")
        assert "| `learning_rate` | 1e-7 → 0.005 |" in out

    def one_line(self, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        code, out, err = self.compare(capsys, *words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1, err
        return err

    def test_a_path_that_is_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "absent" in self.one_line(capsys, str(RUNS / "healthy-sft"), str(tmp_path / "absent"))

    def test_a_folder_of_several_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        err = self.one_line(capsys, str(RUNS), str(RUNS / "healthy-sft"))
        assert "holds 11 runs (healthy-dpo, healthy-sft, healthy-trl and 8 more); give one of them" in err

    def test_a_log_that_holds_several_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [{"step": step, "loss": 2.0} for step in (10, 20, 30, 10, 20, 30)]
        document = {"global_step": 30, "log_history": rows}
        (tmp_path / "trainer_state.json").write_text(json.dumps(document))
        err = self.one_line(capsys, str(tmp_path / "trainer_state.json"), str(RUNS / "healthy-sft"))
        assert "holds 2 runs (trainer_state.json#1, trainer_state.json#2); give the log of one run" in err
        with pytest.raises(CompareError):
            compared(tmp_path / "trainer_state.json", RUNS / "healthy-sft")
