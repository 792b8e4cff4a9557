"""Real, tiny runs in which the callback looks at the model: modules, labels, adapter, and what it says."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "transformers", "peft", "datasets", "trl"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")

import torch
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lorawatch import LoraWatchCallback
from lorawatch.integrations import model_looks
from lorawatch.integrations.model_looks import ModelLooks
from lorawatch.lora.adapter_health import AdapterLooks
from lorawatch.lora.probes import Probe, ProbeSet
from lorawatch.settings import Settings

from . import lab

ASKED = ProbeSet(
    tuple(Probe(f"w{word} w{word + 1}", reference="w1 w2") for word in range(6)),
    tuple(Probe(f"w{word}", "general", answer="w1") for word in range(4)),
    ("w1 w2 w3 w4", "w5 w6 w7 w8"),
)


def trained(folder: Path, watch: LoraWatchCallback, model: Any = None, **changes: Any) -> Any:
    """A short supervised run with its tokenizer, which TRL took by another name before 0.12."""
    args = lab.arguments(folder, SFTConfig, **{"max_length": 32, "dataset_text_field": "text"} | changes)
    name = (
        "processing_class" if "processing_class" in inspect.signature(SFTTrainer.__init__).parameters else "tokenizer"
    )
    made: Any = SFTTrainer(
        args=args, callbacks=[watch], model=model or lab.adapted(), train_dataset=lab.texts(64),
        **{name: lab.tokenizer()},
    )  # fmt: skip
    made.train()
    return made


def records(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The records of these types in a run's own log."""
    rows = [json.loads(line) for line in (folder / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["type"] in kinds]


def test_every_look_is_taken_written_down_and_judged(tmp_path: Path) -> None:
    watch = LoraWatchCallback(Settings(sample_steps=4, sample_share=1.0, adapter_steps=5), quiet=True, probes=ASKED)
    trained(tmp_path, watch, max_steps=20)
    assert watch.engine is not None
    run = watch.engine.run
    assert not watch.engine.rule_errors
    assert [len(records(tmp_path, kind)) for kind in ("model", "labels")] == [1, 1]
    assert records(tmp_path, "adapter")
    first, *later = records(tmp_path, "samples")
    assert [first["step"], *(row["step"] for row in later)] == [4, 8, 12, 16, 20]
    assert len(first["base"]) == len(first["samples"]) == 10
    assert not any(row.get("base") for row in later)
    assert run.samples is not None
    assert run.samples.step == 20
    assert run.base_samples
    assert run.samples.perplexity is not None
    assert run.samples.kl is not None


def test_training_is_the_same_with_and_without_looks(tmp_path: Path) -> None:
    found = []
    for steps in (0, 2):
        watch = LoraWatchCallback(Settings(sample_steps=steps, sample_share=1.0), quiet=True, probes=ASKED)
        model = lab.adapted(lab.base_model(layers=1, hidden=32, seed=3), lora_dropout=0.1)
        trained(tmp_path / str(steps), watch, model)
        found.append(lab.weights(model))
    assert records(tmp_path / "2", "samples")
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_their_share_of_the_time_is_kept_and_a_short_run_has_none(tmp_path: Path) -> None:
    watch = LoraWatchCallback(Settings(sample_steps=2), quiet=True, probes=ASKED)
    trained(tmp_path, watch)
    assert not records(tmp_path, "samples")  # 2 % of half a second


def test_a_wrong_file_of_prompts_is_said_in_a_line_and_the_other_looks_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    trained(tmp_path / "run", LoraWatchCallback(Settings(probes=str(file), sample_steps=2)))
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("lorawatch: no sample generations:") == 1
    assert "prompts that are not text (no UTF-8 at byte 0); save it as UTF-8" in told
    assert len(records(tmp_path / "run", "model", "labels")) == 2


def test_a_model_without_adapter_is_asked_nothing_and_nothing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, LoraWatchCallback(Settings(sample_steps=2)), lab.base_model(layers=1, hidden=32))
    assert not records(tmp_path, "samples", "adapter")
    assert "sample generations" not in capfd.readouterr().err


def test_where_there_is_no_tokenizer_it_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lab.train(tmp_path, LoraWatchCallback(Settings(sample_steps=2)))
    assert (
        capfd.readouterr().err.count("no sample generations: sample generations need the model and its tokenizer") == 1
    )


def test_nothing_is_looked_at_where_the_settings_say_so(tmp_path: Path) -> None:
    trained(tmp_path, LoraWatchCallback(Settings(model=False, sample_steps=2), quiet=True, probes=ASKED))
    assert not records(tmp_path, "model", "labels", "adapter", "samples")


def test_a_look_that_fails_is_said_once_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(AdapterLooks, "look", broken)
    monkeypatch.setattr(model_looks, "tree_of_model", broken)
    told: list[str] = []
    looks = ModelLooks(Settings(sample_steps=1, sample_share=1.0), told.append, ASKED)
    model, tokenizer = lab.adapted(), lab.tokenizer()
    assert looks.begin(model, tokenizer, lab.arguments(tmp_path)) == []
    kinds = [type(one).__name__ for step in (1, 2, 3) for one in looks.after_log(model, step)]
    assert kinds == ["SampleReading"] * 3
    assert told == [
        "the model's modules cannot be looked at: ZeroDivisionError: by zero",
        "the adapter cannot be looked at: ZeroDivisionError: by zero",
    ]


@pytest.mark.parametrize(("asked", "steps", "between"), [(100, 200, 10), (100, 4_000, 100), (100, -1, 100), (5, 40, 5)])
def test_a_short_run_is_looked_at_more_often(asked: int, steps: int, between: int) -> None:
    assert model_looks._steps_between(asked, steps) == between


def test_what_looks_take_is_no_logging_of_the_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def slow(self: ModelLooks, model: Any, step: int) -> list[Any]:
        began = time.perf_counter()
        while time.perf_counter() - began < 0.05:  # not asleep: a look works
            pass
        return []

    monkeypatch.setattr(ModelLooks, "after_log", slow)
    trained(tmp_path, LoraWatchCallback(Settings(), quiet=True))
    timings = records(tmp_path, "steps")
    assert sum(row["seconds"] for row in timings if row.get("seconds")) > 0.4
    assert sum(row["logging"] for row in timings) < 0.1
