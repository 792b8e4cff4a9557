"""Real, tiny Trainer runs that are watched from inside."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "transformers", "peft", "datasets"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")

import torch
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
from transformers import TrainerCallback

from lorawatch import LoraWatchCallback
from lorawatch.engine import Engine
from lorawatch.integrations.trainer_facts import plain, trainer_class
from lorawatch.integrations.trainer_rows import row_of
from lorawatch.records import LifecycleEvent, MetricRow, Record
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.settings import Settings, SettingsError
from lorawatch.sources.lorawatch_jsonl import LorawatchSource, encode

from . import lab

RULES = str(Path(__file__).parent / "user_rules.py")
FROM_STEP = Settings(rules_paths=(RULES,), select=("loss/from-step",))


def records(folder: Path) -> list[Record]:
    source = LorawatchSource(folder / "lorawatch.jsonl")
    return [*source.poll(), *source.finish()]


def rows(folder: Path) -> list[MetricRow]:
    return [record for record in records(folder) if isinstance(record, MetricRow)]


def events(folder: Path) -> list[tuple[str, int | None]]:
    return [(one.event, one.step) for one in records(folder) if isinstance(one, LifecycleEvent)]


def replayed(folder: Path, settings: Settings) -> Engine:
    """What reading the file finds, of its last run."""
    engine = Engine(Run("replayed"), RuleSet(settings).make())
    for record in records(folder):
        if isinstance(record, LifecycleEvent) and record.event == "started":
            engine = Engine(Run("replayed"), RuleSet(settings).make())
        engine.feed(record)
    return engine


def told(engine: Engine | None) -> list[tuple[str, str, int, int | None]]:
    assert engine is not None
    return [(one.rule, one.state, one.opened_step, one.resolved_step) for one in engine.findings]


class Poison(TrainerCallback):
    """Makes one weight infinite after a step, as a broken kernel or a bad checkpoint would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(one for one in model.parameters() if one.requires_grad).view(-1)[0] = math.inf


def test_a_run_with_accumulation_and_evaluation_is_recorded_and_judged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = LoraWatchCallback()
    trainer = lab.train(
        tmp_path, watch, max_steps=12, gradient_accumulation_steps=2, evaluation=lab.tokens(8, draw=1),
        eval_strategy="steps", eval_steps=6, save_strategy="steps", save_steps=6,
    )  # fmt: skip
    logged = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    assert [(row.step, row.values, row.epoch) for row in rows(tmp_path)] == [
        (entry["step"], {name: value for name, value in entry.items() if name not in ("step", "epoch")}, row.epoch)
        for entry, row in zip(logged, rows(tmp_path), strict=True)
    ]
    assert events(tmp_path) == [
        ("started", 0), ("evaluated", 6), ("saved", 6), ("evaluated", 12), ("saved", 12), ("ended", 12),
    ]  # fmt: skip
    assert all(row.time is not None and not row.estimated for row in rows(tmp_path))
    assert watch.engine is not None
    run = watch.engine.run
    assert run.ended
    assert run.max_steps == 12
    facts = {name: run.fact(name) for name in ("r", "lora_alpha", "gradient_accumulation_steps", "vocab_size")}
    assert facts == {"r": 8, "lora_alpha": 16, "gradient_accumulation_steps": 2, "vocab_size": lab.VOCABULARY}
    assert run.fact("train_rows") == 64
    assert run.fact("trainable_parameters") < run.fact("total_parameters")
    assert run.fact("transformers_version")
    assert told(watch.engine) == told(replayed(tmp_path, Settings()))
    assert "12 of 12" in capfd.readouterr().err


def test_facts_are_plain_json(tmp_path: Path) -> None:
    lab.train(tmp_path, LoraWatchCallback(quiet=True), max_steps=2)
    for line in (tmp_path / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_training_is_bit_identical_with_and_without_it(tmp_path: Path) -> None:
    outcomes = []
    for name, callbacks in (("with", [LoraWatchCallback(quiet=True)]), ("without", [])):
        trainer = lab.train(tmp_path / name, *callbacks, model=lab.adapted(lora_dropout=0.1), max_steps=12)
        logs = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
        outcomes.append((lab.weights(trainer.model), logs, torch.get_rng_state()))
    (weights, logs, dice), (other_weights, other_logs, other_dice) = outcomes
    assert logs == other_logs
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert torch.equal(dice, other_dice)


def test_a_resumed_run_takes_up_its_history(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "max_steps": 12}

    class Killed(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.train(tmp_path, LoraWatchCallback(FROM_STEP, quiet=True), Killed(), **saving)
    watch = LoraWatchCallback(FROM_STEP, quiet=True)
    lab.train(tmp_path, watch, resume=True, **saving)
    assert [row.step for row in rows(tmp_path)] == [*range(1, 8), *range(5, 13)]
    assert ("resumed", 4) in events(tmp_path)
    assert events(tmp_path).count(("started", 0)) == 1
    assert told(watch.engine) == told(replayed(tmp_path, FROM_STEP))
    assert [one.opened_step for one in watch.engine.findings] == [5]  # type: ignore[union-attr]


def test_a_resumed_run_without_a_file_starts_from_the_checkpoints_history(tmp_path: Path) -> None:
    lab.train(tmp_path, max_steps=4, save_strategy="steps", save_steps=4)
    watch = LoraWatchCallback(quiet=True)
    lab.train(tmp_path, watch, resume=True, max_steps=8, save_strategy="steps", save_steps=4)
    assert [row.step for row in rows(tmp_path)] == [*range(1, 9)]
    assert events(tmp_path)[:2] == [("started", 0), ("resumed", 4)]
    assert told(watch.engine) == told(replayed(tmp_path, Settings()))


def test_a_second_run_into_the_same_folder_begins_a_new_run(tmp_path: Path) -> None:
    file = tmp_path / "lorawatch.jsonl"
    lab.train(tmp_path, LoraWatchCallback(quiet=True), max_steps=3)
    file.write_bytes(file.read_bytes() + b'{"type":"metrics","st')  # the first process was cut off within a line
    watch = LoraWatchCallback(quiet=True)
    lab.train(tmp_path, watch, max_steps=2)
    assert [event for event, _ in events(tmp_path)] == ["started", "ended", "started", "ended"]
    assert [row.step for row in rows(tmp_path)] == [1, 2, 3, 1, 2]
    assert watch.engine is not None
    assert watch.engine.run.rows == 2


def test_a_hidden_nan_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch = LoraWatchCallback()
    lab.train(tmp_path, Poison(6), watch, max_steps=14)
    assert math.isnan(rows(tmp_path)[-1].values["grad_norm"])
    assert watch.engine is not None
    assert any(finding.rule == "sig/hidden-nan" and finding.opened_step <= 9 for finding in watch.engine.findings)
    assert told(watch.engine) == told(replayed(tmp_path, Settings()))
    assert "[sig/hidden-nan, step" in capfd.readouterr().err


def test_masked_labels_are_named(tmp_path: Path) -> None:
    watch = LoraWatchCallback(quiet=True)
    lab.train(tmp_path, watch, data=lab.tokens(64, masked=True), max_steps=14)
    assert watch.engine is not None
    assert {"sig/no-supervision", "sig/hidden-nan"} & {finding.rule for finding in watch.engine.findings}


def test_stop_ends_training_at_the_step_where_the_finding_opens(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = LoraWatchCallback(FROM_STEP, actions={"warning": "stop"})
    trainer = lab.train(tmp_path, watch, max_steps=30)
    assert trainer.state.global_step == 5
    assert events(tmp_path)[-1] == ("ended", 5)
    assert "training stops after this step" in capfd.readouterr().err


def test_save_writes_a_checkpoint_at_the_step_where_the_finding_opens(tmp_path: Path) -> None:
    lab.train(tmp_path, LoraWatchCallback(FROM_STEP, actions={"critical": "save"}, quiet=True), max_steps=8)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_nothing_is_done_unless_asked(tmp_path: Path) -> None:
    trainer = lab.train(tmp_path, LoraWatchCallback(FROM_STEP, actions={"critical": "none"}, quiet=True), max_steps=8)
    assert trainer.state.global_step == 8


def test_an_action_for_less_severe_findings_does_not_reach_down() -> None:
    watch = LoraWatchCallback(FROM_STEP, actions={"critical": "stop"})
    engine = Engine(Run("run"), RuleSet(FROM_STEP).make())
    for step in range(1, 7):
        engine.feed(MetricRow(step, {"loss": 1.0}))
    finding = engine.findings[0]
    assert watch._action(finding) == "stop"
    finding.severity = type(finding.severity)(1)
    assert watch._action(finding) == "none"


def test_a_failure_inside_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    feed = Engine.feed

    def failing(self: Engine, record: Record) -> None:
        if isinstance(record, MetricRow) and record.step == 4:
            raise RuntimeError("broken inside")
        feed(self, record)

    monkeypatch.setattr(Engine, "feed", failing)
    watch = LoraWatchCallback()
    trainer = lab.train(tmp_path, watch, max_steps=10)
    assert trainer.state.global_step == 10
    assert watch.engine is None
    assert capfd.readouterr().err.count("steps aside, training goes on: RuntimeError: broken inside") == 1


@pytest.mark.parametrize(
    "method", ["collect", "Run", "Journal", "row_of", "change_text", "engine_text", "RuleSet.make"]
)
def test_no_event_raises_whatever_fails_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("injected")

    watch = LoraWatchCallback(FROM_STEP)
    monkeypatch.setattr(f"lorawatch.integrations.transformers.{method}", failing)
    assert lab.train(tmp_path, watch, max_steps=6).state.global_step == 6
    assert capfd.readouterr().err.count("injected") == 1


def test_a_rule_that_raises_is_said_once_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = LoraWatchCallback(Settings(rules_paths=(RULES,), select=("loss/from-step", "base/faulty")))
    lab.train(tmp_path, watch, max_steps=8)
    assert told(watch.engine) == [("loss/from-step", "firing", 5, None)]
    assert "a rule's own fault" in capfd.readouterr().err


def test_a_file_that_cannot_be_written_is_said_once_and_judging_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "not a folder").write_text("")
    watch = LoraWatchCallback(FROM_STEP, path=tmp_path / "not a folder" / "lorawatch.jsonl")
    lab.train(tmp_path / "out", watch, max_steps=8)
    assert told(watch.engine) == [("loss/from-step", "firing", 5, None)]
    shown = capfd.readouterr().err
    assert shown.count("cannot be written") == 1
    assert "Late steps" in shown


def test_a_full_disk_is_said_once_and_judging_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which writes as a full disk does")
    watch = LoraWatchCallback(FROM_STEP, path="/dev/full")
    lab.train(tmp_path, watch, max_steps=8)
    assert told(watch.engine) == [("loss/from-step", "firing", 5, None)]
    assert capfd.readouterr().err.count("No space left on device") == 1


class OtherRank(TrainerCallback):
    """Makes the Trainer believe that it is not the first process."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.is_world_process_zero = False


def test_values_that_no_file_can_hold_are_left_out() -> None:
    row = row_of(3, {"loss": 1.0, "huge": 10**400, ("a", "b"): 1.0, "bad\ud800": 2.0}, None)  # type: ignore[dict-item]
    assert row is not None
    assert row.values == {"loss": 1.0, "bad?": 2.0}
    assert encode(row)


def test_the_second_of_two_watches_rests(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = LoraWatchCallback(quiet=True), LoraWatchCallback(quiet=True)
    lab.train(tmp_path, first, second, max_steps=4)
    assert second.engine is None
    assert [row.step for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert capfd.readouterr().err.count("the second one rests") == 1


def test_the_callbacks_can_be_pickled_while_training(tmp_path: Path) -> None:
    class Pickles(TrainerCallback):
        copies: list[Any] = []  # noqa: RUF012

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder = watch._recorder
            self.copies.append((pickle.loads(pickle.dumps(recorder)), copy.deepcopy(recorder)))  # noqa: S301

    watch = LoraWatchCallback(quiet=True)
    lab.train(tmp_path, watch, Pickles(), max_steps=2)
    assert all(type(one) is TrainerCallback for pair in Pickles.copies for one in pair)


def test_other_processes_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch = LoraWatchCallback(FROM_STEP)
    lab.train(tmp_path, OtherRank(), watch, max_steps=8, disable_tqdm=True)
    assert watch.engine is None
    assert not (tmp_path / "lorawatch.jsonl").exists()
    assert "lorawatch" not in "".join(capfd.readouterr())


def test_other_processes_stop_with_the_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch = LoraWatchCallback(FROM_STEP, actions={"critical": "stop"})
    trainer = lab.train(tmp_path, OtherRank(), watch, max_steps=8, disable_tqdm=True)
    assert trainer.state.global_step == 5
    assert not (tmp_path / "lorawatch.jsonl").exists()
    assert "lorawatch" not in "".join(capfd.readouterr())


def test_what_is_printed_stands_above_the_bar_on_lines_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bars: Any = tqdm  # what it keeps of the bars is nobody's business but its own
    bars._instances.clear()  # those of runs that other tests broke off
    lab.train(tmp_path, LoraWatchCallback(FROM_STEP), max_steps=8)
    # As a terminal shows it: a carriage return goes back to the start of the line and what follows covers it.
    lines = [line.rpartition("\r")[2] for line in capfd.readouterr().err.split("\n")]
    block = next(index for index, line in enumerate(lines) if line.startswith("lorawatch: CRITICAL Late steps"))
    assert lines[block + 1].strip() == "step 5 is not before step 5"
    assert lines[block + 2].strip().startswith("next:  learning_rate: 0.001 → 1e-5")
    assert not any("it/s]" in line and "lorawatch" in line for line in lines)
    assert any("8/8" in line for line in lines)


def test_logs_and_mode_are_left_alone(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, Any], bool]] = []

    class After(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any
        ) -> None:
            seen.append((dict(logs), model.training))

    trainer = lab.train(tmp_path, LoraWatchCallback(quiet=True), After(), max_steps=4)
    assert [logs for logs, _ in seen] == [
        {name: value for name, value in entry.items() if name != "step"} for entry in trainer.state.log_history
    ]
    assert all(training for _, training in seen)


def test_evaluating_before_and_after_training_is_no_trouble(tmp_path: Path) -> None:
    watch = LoraWatchCallback(quiet=True)
    trainer = lab.train(tmp_path / "first", max_steps=1, evaluation=lab.tokens(8))
    trainer.add_callback(watch)
    trainer.args.output_dir = str(tmp_path)
    trainer.evaluate()
    assert not (tmp_path / "lorawatch.jsonl").exists()
    trainer.train()
    trainer.evaluate()
    assert "eval_loss" in rows(tmp_path)[-1].values


def test_it_can_be_copied_and_pickled_even_while_it_watches(tmp_path: Path) -> None:
    watch = LoraWatchCallback(FROM_STEP, actions={"critical": "stop"}, path=tmp_path / "one.jsonl", quiet=True)
    lab.train(tmp_path, watch, max_steps=3)
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):  # noqa: S301
        assert (twin.settings, twin.actions, twin.path) == (watch.settings, watch.actions, watch.path)
        assert twin.engine is None
        assert lab.train(tmp_path, twin, max_steps=8).state.global_step == 5


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"actions": {"critcal": "stop"}}, ValueError, "unknown severity 'critcal'; did you mean 'critical'?"),
        ({"actions": {"critical": "halt"}}, ValueError, "unknown action 'halt'"),
        ({"actions": {3: "stop"}}, ValueError, "unknown severity 3"),
        ({"actions": {"critical": None}}, ValueError, "unknown action None"),
        ({"settings": Settings(), "config": "lorawatch.toml"}, ValueError, "not both"),
        ({"settings": Settings(select=("los",))}, SettingsError, "did you mean 'loss'"),
        ({"config": "absent.toml"}, SettingsError, "absent.toml"),
    ],
)
def test_misuse_is_refused_when_it_is_made(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("?", r"\?")):
        LoraWatchCallback(**given)


def test_only_what_is_plain_becomes_a_fact() -> None:
    assert plain({"b", "a"}) == ["a", "b"]
    assert plain(torch.zeros(1)) is None
    assert plain(math.nan) is None
    assert plain([1, object()]) is None
    assert plain({"a": 1}) is None


def test_a_subclass_of_known_arguments_names_its_trainer() -> None:
    sft = type("SFTConfig", (), {})
    assert trainer_class(type("MyConfig", (sft,), {})()) == "SFTTrainer"
    assert trainer_class(object()) == "Trainer"


def test_without_transformers_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['transformers'] = None; import lorawatch; lorawatch.LoraWatchCallback"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith("pip install transformers")
