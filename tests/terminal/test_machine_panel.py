"""What the terminal shows of the machine."""

from __future__ import annotations

from io import StringIO

from lorawatch.machine_text import machine_words, samples_per_second
from lorawatch.records import Card, FactUpdate, GpuProcess, GpuReading, HostReading, ProcessReading, Step, StepTiming
from lorawatch.run import Run
from lorawatch.terminal import PlainView
from lorawatch.terminal_machine import machine

from .synthetic import SyntheticRun, SyntheticWatch

GIB = 1 << 30


def shown(run: Run, width: int = 110, most_cards: int = 4) -> list[str]:
    return [line.plain for line in machine(run, width, most_cards)]


def observed() -> Run:
    run = Run("run")
    steps = [Step(0.25, 0.7, 0.05, 0.0)] * 10
    run.observe(StepTiming(step=10, span=10, steps=steps, time=1.0))
    card = Card(
        0, "GPU-0", "NVIDIA A100", memory_total=80 * GIB, memory_used=72 * GIB, utilization=0.64, power=290.0,
        power_limit=400.0, temperature=71.0, throttled={"hw_thermal": 0.9, "sw_power_cap": 1.0},
        processes=[GpuProcess(9, 12 * GIB, own=False), GpuProcess(10, 50 * GIB, own=True)],
    )  # fmt: skip
    run.observe(GpuReading(1.0, [card], 10.0))
    workers = [ProcessReading(11, "worker", 0.9), ProcessReading(12, "worker", 0.8)]
    run.observe(
        HostReading(
            1.0, memory_total=64 * GIB, memory_available=5 * GIB, cpus=16, cpu=3.2, disk_free=9 * GIB,
            checkpoint_bytes=5 * GIB, processes=workers,
        )
    )  # fmt: skip
    run.learn(FactUpdate({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, "test"))
    return run


def test_cards_times_and_host_have_a_line_each() -> None:
    card, time, host = shown(observed(), width=132)
    assert "GPU 0 NVIDIA A100" in card
    assert "72.0 of 80.0 GiB (12.0 GiB by others)" in card
    assert "busy 64%" in card
    assert "290 of 400 W" in card
    assert "71 °C" in card
    assert "slowed: hw_thermal" in card
    assert "sw_power_cap" not in card, "a power cap is normal"
    assert "data wait 25%  ·  passes 70%  ·  optimizer 5%" in time
    assert "8 samples/s" in time
    assert "RAM free 5.0 GiB of 64.0 GiB" in host
    assert "workers 2 on 1.7 cores" in host
    assert "disk free 9.0 GiB" in host


def test_nothing_is_shown_where_nothing_is_known() -> None:
    assert shown(Run("run")) == []
    assert machine_words(Run("run")) == ""
    assert samples_per_second(Run("run")) is None


def test_what_a_card_does_not_tell_is_left_out() -> None:
    run = Run("run")
    run.observe(GpuReading(1.0, [Card(3, "MIG-1", "A100 MIG 1g.5gb", memory_total=5 * GIB, memory_used=GIB, mig=True)]))
    [line] = shown(run)
    assert "1.0 of 5.0 GiB" in line
    assert "busy" not in line
    assert " W" not in line
    assert "°C" not in line


def test_a_lost_card_stands_first() -> None:
    run = Run("run")
    cards = [Card(0, "GPU-0", "A", memory_total=8 * GIB, memory_used=8 * GIB), Card(1, "GPU-1", "B", lost=True)]
    run.observe(GpuReading(1.0, cards))
    assert "GPU 1 B  lost" in shown(run)[0]


def test_many_cards_are_counted() -> None:
    run = Run("run")
    run.observe(GpuReading(1.0, [Card(n, f"GPU-{n}", memory_total=100, memory_used=10 * n) for n in range(8)]))
    lines = shown(run, most_cards=2)
    assert lines[0].startswith("GPU 7")
    assert lines[2] == "and 6 more GPUs"


def test_lines_fit_and_names_cannot_act_on_the_terminal() -> None:
    run = observed()
    run.observe(GpuReading(1.0, [Card(0, "x", "\x1b[31mEvil\x07" * 30, memory_total=80 * GIB, memory_used=GIB)]))
    for width in (20, 40, 80, 132):
        for line in machine(run, width):
            assert line.cells <= width
            assert "\x1b" not in line.plain


def test_plain_lines_tell_it_with_the_progress_and_notes_once() -> None:
    out = StringIO()
    view, one = PlainView(out), SyntheticRun()
    one.row(1, loss=1.0)
    for reading in (observed().gpu, observed().host):
        assert reading is not None
        one.engine.feed(reading)
    watch = SyntheticWatch([one], notes={"no driver": "run"})
    view.update(watch)
    view.update(watch)
    text = out.getvalue()
    assert "GPU 0 72.0 of 80.0 GiB 64% busy, RAM 5.0 GiB free" in text
    assert text.count("note: no driver") == 1
