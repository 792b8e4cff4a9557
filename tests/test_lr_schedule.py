"""lr/schedule where the stated rate changes on the way, or comes from a callback: what a fixture cannot state."""

from __future__ import annotations

from lorawatch.engine import Engine
from lorawatch.findings import Severity
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow
from lorawatch.registry import builtin_classes
from lorawatch.run import Run

LR_SCHEDULE = next(one for one in builtin_classes() if one.id == "lr/schedule")
WARM_UP = [2e-5 * (index + 1) for index in range(10)]


def feed(engine: Engine, rates: list[float]) -> None:
    """Log these rates, one a step, with a loss."""
    for rate in rates:
        engine.feed(MetricRow(engine.run.step + 1, {"loss": 1.5, "learning_rate": rate}))


def engine_of(origin: str, learning_rate: float) -> Engine:
    engine = Engine(Run("test"), [LR_SCHEDULE()])
    engine.feed(FactUpdate({"learning_rate": learning_rate, "warmup_steps": 10, "max_steps": 300}, origin))
    return engine


def resume(engine: Engine, learning_rate: float) -> None:
    engine.feed(LifecycleEvent("resumed", step=engine.run.step))
    engine.feed(FactUpdate({"learning_rate": learning_rate}, "callback"))


class TestResumedWithALowerRate:
    def test_warns_when_the_run_goes_on_with_the_old_one(self) -> None:
        engine = engine_of("callback", 2e-4)
        feed(engine, [*WARM_UP, *[2e-4] * 40])
        resume(engine, 5e-5)
        feed(engine, [2e-4] * 20)
        (finding,) = engine.findings
        assert finding.severity is Severity.WARNING
        assert finding.opened_step == 52
        assert "resumed at step 50" in finding.summary
        assert "4 times" in finding.summary
        assert any("scheduler.pt" in str(one.proposed) for one in finding.adjustments)

    def test_says_nothing_when_the_new_one_counts(self) -> None:
        engine = engine_of("callback", 2e-4)
        feed(engine, [*WARM_UP, *[2e-4] * 40])
        resume(engine, 5e-5)
        feed(engine, [5e-5] * 20)
        assert engine.findings == []

    def test_says_nothing_of_a_higher_one(self) -> None:
        engine = engine_of("callback", 5e-5)
        feed(engine, [*[rate / 4 for rate in WARM_UP], *[5e-5] * 40])
        resume(engine, 2e-4)
        feed(engine, [2e-4] * 20)
        assert engine.findings == []


class TestNeverNearTheStatedRate:
    def test_is_information_where_the_callback_told_it(self) -> None:
        engine = engine_of("callback", 5e-5)
        feed(engine, [*WARM_UP, *[2e-4] * 40])
        (finding,) = engine.findings
        assert finding.severity is Severity.INFO
        assert "4 times the stated learning_rate 5e-05" in finding.summary
        assert len(finding.adjustments) == 1

    def test_is_nothing_where_a_file_beside_the_log_states_it(self) -> None:
        engine = engine_of("training_args.json", 5e-5)
        feed(engine, [*WARM_UP, *[2e-4] * 40])
        assert engine.findings == []


def test_a_jump_is_a_warning_whoever_states_the_rate() -> None:
    for origin in ("callback", "training_args.json"):
        engine = engine_of(origin, 2e-4)
        feed(engine, [*WARM_UP, *[2e-4] * 40, *[4e-3] * 10])
        (finding,) = engine.findings
        assert finding.severity is Severity.WARNING
        assert finding.opened_step == 51
        assert finding.evidence["since_step"] == 51
        assert "what changed there" in str(finding.adjustments[0].proposed)


def test_a_jump_does_not_make_the_rate_afterwards_look_like_the_end() -> None:
    engine = engine_of("callback", 2e-4)
    feed(engine, [*WARM_UP, *[2e-4] * 40, 4e-2, *[2e-4] * 100])
    (finding,) = engine.findings
    assert finding.evidence["case"] == "above"
    assert finding.state == "resolved"


def test_a_jump_at_a_resume_is_for_the_case_of_the_resume() -> None:
    engine = Engine(Run("test"), [LR_SCHEDULE()])
    feed(engine, [*[rate / 4 for rate in WARM_UP], *[5e-5] * 40])
    engine.feed(LifecycleEvent("resumed", step=engine.run.step))
    feed(engine, [2e-4] * 20)
    assert engine.findings == []
