"""What frees memory: sizes by formula, names by version, nothing that is so already."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import pytest

from lorawatch.cards import is_desktop
from lorawatch.engine import Engine
from lorawatch.findings import Adjustment, Severity
from lorawatch.memory_remedies import batch_tokens, expandable_segments, larger_micro_batch, less_memory
from lorawatch.parameters import installed_version
from lorawatch.records import (
    AllocatorReading,
    Card,
    FactUpdate,
    GpuProcess,
    GpuReading,
    MetricRow,
    Step,
    StepTiming,
)
from lorawatch.registry import rule_classes
from lorawatch.run import Run

LLAMA = {
    "total_parameters": 8_198_033_408, "trainable_parameters": 167_772_160, "hidden_size": 4096,
    "num_hidden_layers": 32, "vocab_size": 128256, "r": 64, "lora_alpha": 128, "optim": "adamw_torch",
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_length": 1024, "use_liger_kernel": False,
    "gradient_checkpointing": False, "torch_version": "2.13.0", "trl_version": "1.12.0",
}  # fmt: skip


def run_with(**facts: Any) -> Run:
    run = Run("r")
    run.learn(FactUpdate({name: value for name, value in facts.items() if value is not None}, "test"))
    return run


def advice(run: Run) -> dict[str, Adjustment]:
    return {one.parameter: one for one in less_memory(run)}


def test_half_the_rank_of_an_8b_model_frees_little_and_says_so() -> None:
    found = advice(run_with(**LLAMA))
    assert found["r"].proposed == 32
    assert found["lora_alpha"].proposed == 64
    assert "usually little: at most 1.2 GiB" in found["r"].why  # 84 M parameters of 16 bytes
    assert list(found)[-2:] == ["r", "lora_alpha"]


def test_a_four_bit_base_frees_most_of_the_weights() -> None:
    assert "about 10.8 GiB less" in advice(run_with(**LLAMA))["load_in_4bit"].why  # 8.03 G parameters of 1.4375 bytes


def test_the_logits_of_a_batch_are_what_liger_spares() -> None:
    # 4096 tokens of 128256 logits, 8 to 12 bytes each
    assert "3.9 GiB to 5.9 GiB of the peak" in advice(run_with(**LLAMA))["use_liger_kernel"].why


def test_activations_are_counted_by_layer() -> None:
    # 4096 tokens of 4096 units: 34 bytes for 31 layers, less 2 for each of 32
    assert "about 15.5 GiB less" in advice(run_with(**LLAMA))["activation_checkpointing"].why


def test_what_a_step_needs_is_taken_from_torch_where_it_is_known() -> None:
    run = run_with(**LLAMA)
    allocator = AllocatorReading(20 * 2**30, 36 * 2**30, 37 * 2**30, 37 * 2**30)
    run.observe(StepTiming(10, 1, [Step(0.0, 0.1, 0.1)], allocator=allocator))
    assert "8.0 GiB of 16.0 GiB by torch's own figures" in advice(run)["per_device_train_batch_size"].why


def test_a_smaller_micro_batch_keeps_the_effective_batch() -> None:
    for rows, fewer, steps in ((4, 2, 8), (3, 1, 12), (2, 1, 8)):
        found = advice(run_with(**LLAMA | {"per_device_train_batch_size": rows}))
        assert found["per_device_train_batch_size"].proposed == fewer
        assert found["gradient_accumulation_steps"].proposed == steps


def test_nothing_is_advised_that_is_so_already() -> None:
    already = {
        "use_liger_kernel": True, "gradient_checkpointing": True, "per_device_train_batch_size": 1,
        "optim": "adamw_8bit", "load_in_4bit": True, "r": 4, "max_length": 128,
    }  # fmt: skip
    assert list(advice(run_with(**LLAMA | already))) == [""]


def test_liger_is_left_out_where_trl_has_the_loss_in_chunks() -> None:
    sft = LLAMA | {"trainer_class": "SFTTrainer"}
    assert "use_liger_kernel" in advice(run_with(**sft | {"trl_version": "1.15.0"}))
    assert "use_liger_kernel" not in advice(run_with(**sft | {"trl_version": "1.16.0"}))


@pytest.mark.parametrize(
    ("version", "name"),
    [("2.4.0", "CUDA_ALLOC"), ("2.9.1", "CUDA_ALLOC"), ("2.11.0", "H_ALLOC"), ("2.13.0+cu130", "H_ALLOC")],
)
def test_the_allocator_s_setting_has_the_name_that_its_torch_heeds(version: str, name: str) -> None:
    assert f"{name}_CONF=expandable_segments:True" in expandable_segments(run_with(torch_version=version), "x").proposed


def test_the_allocator_s_setting_has_the_name_that_every_torch_heeds_where_the_version_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)  # lorawatch alone in its environment, as pipx installs it
    installed_version.cache_clear()
    try:
        assert "set PYTORCH_CUDA_ALLOC_CONF=" in expandable_segments(run_with(), "x").proposed
        assert "set PYTORCH_ALLOC_CONF=" in expandable_segments(run_with(torch_version="2.13.0"), "x").proposed
    finally:
        installed_version.cache_clear()


def test_costs_read_after_the_word_cost() -> None:
    run = run_with(**LLAMA)
    for one in [*less_memory(run), *larger_micro_batch(run, "x", busy=False)]:
        assert not one.cost.startswith(("needs", "costs", "detail")), one.cost


def test_a_larger_micro_batch_names_the_memory_it_takes_and_the_batch_that_grows_with_it() -> None:
    assert larger_micro_batch(run_with(**LLAMA), "x", busy=False)[0].cost == "up to twice the memory of a step"
    odd = larger_micro_batch(run_with(**LLAMA | {"gradient_accumulation_steps": 3}), "x", busy=False)
    assert [one.parameter for one in odd] == ["per_device_train_batch_size"]
    assert "a larger effective batch" in odd[0].cost


# --- a card that is full, by whose figure -----------------------------------------------------------------------------


def full_card(*, known: bool, processes: Sequence[GpuProcess] = ()) -> Engine:
    """A card of 24 GB with 1 GB free for a minute and a half; with torch's own figures or without."""
    rules = [one() for one in rule_classes() if one.id == "mem/headroom"]
    engine = Engine(Run("r"), rules)
    engine.feed(FactUpdate(LLAMA, "test"))
    allocator = AllocatorReading(10 * 10**9, 22 * 10**9, 22 * 10**9, 22 * 10**9) if known else None
    for now in range(10, 100, 10):
        engine.feed(MetricRow(now, {"loss": 2.0}, time=float(now)))
        if known:
            engine.feed(StepTiming(now, 10, [Step(0.0, 0.1, 0.1)] * 10, time=float(now), allocator=allocator))
        card = Card(
            0, "GPU-0", memory_total=24 * 10**9, memory_used=23_500_000_000, utilization=0.97, processes=[*processes]
        )
        engine.feed(GpuReading(float(now), [card], 10.0))
    assert engine.rule_errors == {}
    return engine


def test_no_change_comes_first_on_a_figure_that_may_be_cache() -> None:
    engine = full_card(known=False)
    (finding,) = engine.findings
    assert finding.severity is Severity.WARNING
    assert "torch.cuda.memory_summary()" in finding.adjustments[0].proposed
    assert engine.next_adjustment() is None
    assert {one.confidence for one in finding.adjustments[1:]} == {"low"}


def test_by_torch_s_own_figures_a_change_comes_first_and_the_cache_is_not_spoken_of() -> None:
    engine = full_card(known=True)
    (finding,) = engine.findings
    chosen = engine.next_adjustment()
    assert chosen is not None
    assert chosen.parameter == "use_liger_kernel"
    assert not any("ALLOC_CONF" in str(one.proposed) for one in finding.adjustments)


def test_the_desktop_is_not_to_be_stopped() -> None:
    screen = [
        GpuProcess(900, 400 * 2**20, "/usr/lib/xorg/Xorg", False),
        GpuProcess(901, 112 * 2**20, "kwin_x11", False),
    ]
    (finding,) = full_card(known=True, processes=screen).findings
    assert "the desktop takes 512 MiB" in finding.summary
    assert "not of this run" not in finding.summary
    assert not any("stop it" in str(one.proposed) for one in finding.adjustments)
    assert (finding.adjustments[-1].why, finding.adjustments[-1].confidence) == (
        "the desktop takes 512 MiB of this", "low",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "own", "is_one"),
    [("Xorg", False, True), ("/usr/bin/gnome-shell", False, True), ("kwin_wayland", False, True), ("X", False, True),
     ("Xwayland", None, False), ("python", False, False), ("xgboost", False, False), ("", False, False)],
)  # fmt: skip
def test_what_draws_the_screen_is_told_by_its_name(name: str, own: bool | None, is_one: bool) -> None:
    assert is_desktop(GpuProcess(1, 1, name, own)) is is_one


def test_preference_trainers_put_two_answers_into_a_row() -> None:
    assert batch_tokens(run_with(**LLAMA)) == 4096
    assert batch_tokens(run_with(**LLAMA | {"trainer_class": "DPOTrainer"})) == 8192
    assert batch_tokens(run_with(max_length=1024)) is None


def test_vllm_in_the_trainer_comes_first() -> None:
    found = less_memory(run_with(**LLAMA | {"trainer_class": "GRPOTrainer"}))
    assert found[0].parameter == "vllm_gpu_memory_utilization"


def test_a_larger_micro_batch_does_not_make_the_effective_batch_too_large() -> None:
    assert [one.proposed for one in larger_micro_batch(run_with(**LLAMA), "x", busy=True)] == [8, 2]
    full = LLAMA | {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
    assert larger_micro_batch(run_with(**full), "x", busy=False) == []


@pytest.mark.parametrize("value", [0, -1, 0.5, 1e300, float("nan"), "x", True, None, 10**400])
def test_strange_facts_do_no_harm(value: Any) -> None:
    for name in LLAMA:
        run = run_with(**LLAMA | {name: value})
        assert all(one.why for one in [*less_memory(run), *larger_micro_batch(run, "x", busy=True)])
