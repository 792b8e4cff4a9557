"""When breaches become findings: hold, release, cooldown, incidents, isolation, abstention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from lorawatch.engine import MAX_FINDINGS_PER_RULE, Engine
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow
from lorawatch.rule import Rule, param
from lorawatch.run import MAX_SERIES, REINFORCEMENT, SUPERVISED, Kind, Run


@dataclass(slots=True)
class TooHigh(Rule):
    id: ClassVar[str] = "test/too-high"
    title: ClassVar[str] = "Too high"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    suppresses: ClassVar[tuple[str, ...]] = ("symptom/*",)
    hold: int = param(2, unit="judgements", help="Hold.")
    cooldown: int = param(5, unit="steps", help="Cooldown.")
    limit: float = param(10.0, unit="nats", help="Limit.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        loss = row.values["loss"]
        if loss <= self.limit * self.easing:
            return None
        return Breach(f"{loss}", {"loss": loss}, Severity.CRITICAL if loss > 100 else None)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        return [Adjustment("learning_rate", 1e-4, "it is too high", direction="down")]


@dataclass(slots=True)
class Symptom(Rule):
    id: ClassVar[str] = "symptom/seen"
    title: ClassVar[str] = "Symptom"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[str, ...]] = ("loss",)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        return Breach("seen", {"x": 1}) if row.values["loss"] > 10 else None

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        return [Adjustment("learning_rate", 1e-3, "it is too low", direction="up")]


@dataclass(slots=True)
class Raises(TooHigh):
    id: ClassVar[str] = "test/raises"

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        raise ZeroDivisionError("by zero")


@dataclass(slots=True)
class ForRl(TooHigh):
    id: ClassVar[str] = "test/for-rl"
    kinds = REINFORCEMENT
    needs: ClassVar[tuple[str, ...]] = ("reward",)
    needs_facts: ClassVar[tuple[str, ...]] = ("beta",)


def engine_of(*rules: Rule) -> Engine:
    return Engine(Run("test"), rules)


def feed(engine: Engine, *losses: float) -> None:
    start = engine.run.step
    for index, loss in enumerate(losses):
        engine.feed(MetricRow(start + index + 1, {"loss": loss}))


def test_a_finding_opens_only_after_its_hold() -> None:
    engine = engine_of(TooHigh())
    feed(engine, 11, 1, 11)
    assert engine.findings == []
    feed(engine, 11)
    [finding] = engine.findings
    assert (finding.since_step, finding.opened_step, finding.state) == (3, 4, "firing")


def test_it_resolves_only_below_the_lower_threshold() -> None:
    engine = engine_of(TooHigh())
    feed(engine, 11, 11, 8, 8, 8)  # below the limit of 10, above the 7 at which it lets go
    assert engine.findings[0].state == "firing"
    feed(engine, 6, 6)
    assert (engine.findings[0].state, engine.findings[0].resolved_step) == ("resolved", 7)


def test_a_breach_within_the_cooldown_reopens_the_same_finding() -> None:
    engine = engine_of(TooHigh())
    feed(engine, 11, 11, 1, 1, 11, 11)
    assert len(engine.findings) == 1
    assert engine.findings[0].state == "firing"


def test_a_breach_after_the_cooldown_is_a_new_finding() -> None:
    engine = engine_of(TooHigh())
    feed(engine, 11, 11, *[1] * 10, 11, 11)
    assert [finding.opened_step for finding in engine.findings] == [2, 14]


def test_it_grows_worse_but_never_better_while_it_is_open() -> None:
    engine = engine_of(TooHigh())
    heard: list[str] = []
    engine.listeners.append(lambda change, _: heard.append(change))
    feed(engine, 11, 11, 200, 11)
    assert engine.findings[0].severity is Severity.CRITICAL
    assert engine.findings[0].evidence == {"loss": 200}
    assert heard == ["opened", "escalated"]


def test_findings_of_one_rule_are_bounded_and_the_rest_is_counted() -> None:
    engine = engine_of(TooHigh(hold=1, cooldown=0, release=1))
    feed(engine, *[11, 1] * (MAX_FINDINGS_PER_RULE + 7))
    assert len(engine.findings) == MAX_FINDINGS_PER_RULE
    assert engine.dropped_findings == 7


@pytest.mark.parametrize("symptom_first", [True, False])
def test_a_symptom_is_folded_under_its_cause_whichever_opens_first(symptom_first: bool) -> None:
    engine = engine_of(TooHigh(hold=3 if symptom_first else 1), Symptom())
    feed(engine, 11, 11, 11)
    symptom, cause = sorted(engine.findings, key=lambda finding: finding.rule)
    assert cause.is_root
    assert not symptom.is_root
    assert symptom.incident == cause.id
    assert [finding.rule for finding in engine.active()] == ["test/too-high", "symptom/seen"]


def test_one_adjustment_is_next_and_it_is_the_causes_even_if_the_symptom_is_worse() -> None:
    engine = engine_of(TooHigh(hold=1), Symptom())
    feed(engine, 11)
    chosen = engine.next_adjustment()
    assert chosen is not None
    assert chosen.why == "it is too high"
    everything = [adjustment for finding in engine.findings for adjustment in finding.adjustments]
    assert sum(adjustment.next for adjustment in everything) == 1
    [other] = [adjustment for adjustment in everything if not adjustment.next]
    assert "contradicts" in other.conflicts


def test_no_adjustment_is_next_once_all_is_resolved() -> None:
    engine = engine_of(TooHigh(hold=1))
    feed(engine, 11, 1, 1)
    assert engine.next_adjustment() is None
    assert not any(adjustment.next for adjustment in engine.findings[0].adjustments)


def test_a_rule_that_raises_is_off_for_this_run_said_once_and_takes_nothing_down() -> None:
    engine = engine_of(Raises(), TooHigh())
    heard: list[str] = []
    engine.listeners.append(lambda change, _: heard.append(change))
    feed(engine, 11, 11, 11)
    assert engine.rule_errors == {"test/raises": "ZeroDivisionError: by zero"}
    assert heard.count("rule-error") == 1
    assert [finding.rule for finding in engine.findings] == ["test/too-high"]
    assert "switched off" in engine.abstained()[0].missing[0]


def test_a_rule_abstains_and_says_what_it_misses() -> None:
    engine = engine_of(TooHigh(), ForRl())
    assert {one.rule: one.missing for one in engine.abstained()} == {
        "test/too-high": ("loss",),
        "test/for-rl": ("not for a run of kind unknown",),
    }
    engine.feed(MetricRow(1, {"reward_std": 0.1}))
    assert [one.missing for one in engine.abstained()] == [("loss",), ("reward", "fact beta")]


def test_a_fact_that_becomes_known_late_brings_a_rule_to_work() -> None:
    engine = engine_of(ForRl(hold=1))
    engine.feed(MetricRow(1, {"reward_std": 0.1, "reward": 1.0}))
    engine.feed(FactUpdate({"beta": 0.1}, "config"))
    engine.feed(MetricRow(2, {"reward_std": 0.1, "reward": 1.0, "loss": 50.0}))
    assert engine.abstained() == []
    assert len(engine.findings) == 1


class TestRun:
    def test_what_was_stated_is_never_replaced_by_what_was_inferred(self) -> None:
        run = Run("test")
        assert run.learn(FactUpdate({"max_steps": 90}, "bar", inferred=True))
        assert run.learn(FactUpdate({"max_steps": 100}, "trainer_state.json"))
        assert not run.learn(FactUpdate({"max_steps": 90}, "bar", inferred=True))
        assert run.max_steps == 100
        assert run.facts["max_steps"].origin == "trainer_state.json"

    def test_memory_is_bounded_however_long_the_run_and_however_many_its_metrics(self) -> None:
        run = Run("test")
        for step in range(1, 3000):
            run.add(MetricRow(step, {"loss": 1.0, f"metric_{step}": 1.0}))
        assert len(run.series) == MAX_SERIES
        assert run.dropped_values == 3000 - 1 - (MAX_SERIES - 1)
        assert len(run.series["loss"].recent) == 256

    @pytest.mark.parametrize(
        ("row", "kind"),
        [
            ({"loss": 1.0}, Kind.SFT),
            ({"loss": 0.69, "rewards/margins": 0.0, "rewards/accuracies": 0.5}, Kind.DPO),
            ({"loss": 0.69, "rewards/margins": 0, "rewards/accuracies": 0.5, "log_odds_ratio": 1}, Kind.ORPO),
            ({"loss": 0.5, "rewards/chosen": 0.0, "kl": 0.0}, Kind.KTO),
            ({"loss": 0.0, "reward": 1.0, "reward_std": 0.1}, Kind.GRPO),
            ({"eval_loss": 0.3, "eval_accuracy": 0.9}, Kind.CLASSIFICATION),
            ({"eval_loss": 0.3, "eval_wer": 0.9}, Kind.SEQ2SEQ),
            ({"eval_loss": 0.3}, Kind.UNKNOWN),
        ],
    )
    def test_the_kind_is_told_from_the_logged_keys(self, row: dict[str, float], kind: Kind) -> None:
        run = Run("test")
        run.add(MetricRow(1, row))
        assert run.kind is kind

    def test_the_trainers_class_settles_the_kind(self) -> None:
        run = Run("test")
        run.learn(FactUpdate({"trainer_class": "DPOTrainer", "task_type": "CAUSAL_LM"}, "callback"))
        run.add(MetricRow(1, {"loss": 0.69}))
        assert run.kind is Kind.DPO
        assert run.kind not in SUPERVISED

    def test_a_row_without_a_step_counts_as_the_next_one(self) -> None:
        run = Run("test")
        run.add(MetricRow(None, {"loss": 1.0}))
        run.add(MetricRow(None, {"loss": 1.0}))
        assert run.step == 2
        assert run.steps_estimated

    def test_a_resumed_run_is_no_longer_ended(self) -> None:
        run = Run("test")
        run.happen(LifecycleEvent("ended"))
        run.happen(LifecycleEvent("resumed", step=40))
        assert not run.ended
        assert run.resumed_step == 40
