"""The live view: what it shows, that it fits, when it draws, and that nothing from a log reaches the terminal raw."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from rich.cells import cell_len
from rich.console import Console

from lorawatch.findings import Adjustment, Finding, Severity
from lorawatch.terminal_live import LiveView
from lorawatch.terminal_text import Line, clean, duration, wrapped
from tests.terminal.synthetic import FakeClock, SyntheticRun, SyntheticWatch

SIZES = [(80, 24), (120, 40), (200, 60), (60, 16), (40, 12), (20, 6), (3, 2), (1, 1)]
HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H",
    "\x1bPq#0;2;0;0;0\x1b\\",
    "\x9b31mC1",
    "back\x08\x08\x08space",
    "carriage\rreturn",
    "line\nfeed\x0b\x0c",
    "\x00nul\x7fdel",
    "\u202eright to left\u2066",
    "\u2028line\u2029paragraph\x85next",
    "zero\u200bwidth\ufeff",
    "\udcff surrogate",
    "[red]markup[/red] [link=http://evil.example]x[/link] [/]",
    "[bold",
    ":skull: emoji",
    "\U000e0041tag",
    "A" * 5000,
    "漢字" * 300,
]
OWN_CODES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?(?:1049|25)[hl]|\x1b\[H|\x1b\[[0-9]+;1H|\x1b\[2?J|\x1b\[K")


class Screen:
    """A view that draws into memory."""

    def __init__(self, width: int = 80, height: int = 24, *, no_color: bool = False) -> None:
        self.out = io.StringIO()
        console = Console(
            file=self.out, force_terminal=True, width=width, height=height, color_system="truecolor",
            no_color=no_color, highlight=False, markup=False, emoji=False,
        )  # fmt: skip
        self.clock = FakeClock()
        self.view = LiveView(console, "http://127.0.0.1:10910/metrics", self.clock)
        self.size = (width, height)

    def lines(self, watch: SyntheticWatch) -> list[Line]:
        width, height = self.size
        return self.view.lines(watch, watch.runs, self.clock(), max(width - 2, 18), height)

    def text(self, watch: SyntheticWatch) -> str:
        return "\n".join(line.plain for line in self.lines(watch))


def healthy() -> SyntheticWatch:
    run = SyntheticRun()
    run.learn(max_steps=1000, learning_rate=2e-3)
    run.train(range(1, 341))
    return SyntheticWatch([run])


def failing() -> SyntheticWatch:
    watch = healthy()
    watch.runs[0].fail(341, 60, 8)
    watch.runs[0].skipped_lines = 3
    return watch


def several() -> SyntheticWatch:
    watch = failing()
    for index in range(6):
        other = SyntheticRun(f"other-{index}")
        other.train(range(1, 20))
        if index == 4:
            other.fail(20)
        watch.runs.append(other)
    return watch


def hostile(payload: str) -> SyntheticWatch:
    """A run in which everything that may come from a log or a file system is hostile."""
    run = SyntheticRun(payload, f"/{payload}", sources=[payload, payload])
    run.train(range(1, 60))
    run.row(60, **{payload: 1.0, "loss": 2.0})
    run.engine.findings.append(
        Finding(payload, payload, Severity.CRITICAL, "experimental", payload, {payload: payload, "x": 1.0}, 50, 55, 60,
                adjustments=[Adjustment(payload, payload, payload, payload, payload, next=True),
                             Adjustment("", payload, payload)])
    )  # fmt: skip
    other = SyntheticRun(payload + "2", "/other", sources=[payload])
    return SyntheticWatch([run, other], payload, {payload: payload})


def test_it_shows_run_progress_metrics_and_that_all_is_well() -> None:
    shown = Screen().text(healthy())
    for words in ("qwen-sft", "● live", "sft", "console train.log + 1 more", "http://127.0.0.1:10910/metrics", " 34%",
                  "step 340 of 1,000", "epoch 1.70", "1.10 s/step", "12 min left", "loss 1.2", "level ", "eval 1.27",
                  "grad norm ", "lr 0.0001", "train loss", "● eval loss", "✓ No findings", "not for sft 1",
                  "last row 26 s ago"):  # fmt: skip
        assert words in shown


def test_a_finding_stands_with_its_severity_in_words_its_age_symptoms_and_the_next_change() -> None:
    shown = Screen().text(failing())
    for words in ("✖ CRITICAL  Training loss is too high  loss/too-high", "since step 341 (+7)", "loss is at 60",
                  "with it: Gradient norm is high (warning)", "Next  learning_rate: 0.002 → 0.00067", "high confidence",
                  "resume from a", "Cost: the steps since that checkpoint", "Then  max_grad_norm: 1 → 0.3", "+1 more",
                  "3 lines skipped"):  # fmt: skip
        assert words in shown


def test_with_more_room_it_shows_evidence_and_what_to_look_at() -> None:
    shown = Screen(120, 40).text(failing())
    assert "best_level 1." in shown
    assert "Look  the rows of the batch at step 212" in shown


def test_a_value_to_set_is_never_cut_off() -> None:
    watch = failing()
    [chosen] = [item for finding in watch.runs[0].engine.findings for item in finding.adjustments if item.next]
    for width in (80, 60, 46):
        shown = " ".join(Screen(width, 24).text(watch).split())
        assert f"learning_rate: 0.002 → {chosen.proposed}" in shown


def test_while_nothing_is_there_it_says_what_it_waits_for() -> None:
    shown = Screen().text(SyntheticWatch(problems={"/x": "/x: permission denied"}))
    assert "Waiting for /runs to hold a training log" in shown
    assert "/x: permission denied" in shown


def test_a_resolved_finding_is_told_once_all_is_well_again() -> None:
    watch = failing()
    watch.runs[0].train(range(360, 380))
    assert "resolved: Training loss is too high, step 341 to" in Screen().text(watch)


def test_a_rule_that_failed_is_named_in_the_footer() -> None:
    from tests.terminal.synthetic import LossTooHigh, Raises

    run = SyntheticRun(rules=[Raises(), LossTooHigh()])
    run.train(range(1, 5))
    assert "1 rule failed" in Screen().text(SyntheticWatch([run]))


def test_an_ended_run_has_no_time_left() -> None:
    watch = healthy()
    watch.runs[0].end()
    shown = Screen().text(watch)
    assert "■ ended" in shown
    assert " left" not in shown


def test_without_times_in_the_records_it_tells_no_pace() -> None:
    run = SyntheticRun()
    run.learn(max_steps=1000)
    run.train(range(1, 100), start=None)
    shown = Screen().text(SyntheticWatch([run]))
    assert "s/step" not in shown
    assert " left" not in shown


def test_a_nan_loss_is_shown_as_nan() -> None:
    watch = healthy()
    watch.runs[0].row(341, loss=float("nan"), grad_norm=float("inf"))
    shown = Screen().text(watch)
    assert "loss NaN" in shown
    assert "grad norm ∞" in shown


def test_other_runs_stand_below_the_worst_first() -> None:
    shown = Screen(120, 40).text(several())
    below = shown[shown.index("other-4") :]
    assert "warning Training loss is too high" in below.splitlines()[0]
    assert "and 2 more runs" in below


def test_the_run_that_is_shown_stays_until_it_ends() -> None:
    screen, watch = Screen(), several()
    first = screen.text(watch).splitlines()[0]
    watch.runs.append(SyntheticRun("newer"))
    watch.runs[-1].row(1, loss=4.0)
    assert screen.text(watch).splitlines()[0] == first
    shown = next(run for run in watch.runs if run.name in first)
    shown.end()
    assert screen.text(watch).splitlines()[0].split()[1] == "newer"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [SyntheticWatch, healthy, failing, several, lambda: hostile("漢字" * 300)])
def test_it_fits_the_screen(make: type[SyntheticWatch], size: tuple[int, int]) -> None:
    screen = Screen(*size)
    lines = screen.lines(make())
    width, height = size
    if height >= 12:
        assert len(lines) <= height
    assert all(cell_len(line.plain) <= max(width - 1, 19) for line in lines)
    screen.view.update(make())  # and is drawn without an error, whatever the size
    screen.view.close("done")


@pytest.mark.parametrize("payload", HOSTILE)
def test_nothing_from_a_log_reaches_the_terminal_raw(payload: str) -> None:
    for size in [(80, 24), (120, 40)]:
        screen, watch = Screen(*size), hostile(payload)
        screen.view.update(watch)
        screen.view.update(SyntheticWatch(waiting_for=payload, problems={payload: payload}))
        screen.view.close(f"summary {payload}\n  {payload}")
        written = OWN_CODES.sub("", screen.out.getvalue())
        acting = {char for char in written if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
        assert acting <= {"\n"}


def test_markup_from_a_log_is_shown_as_it_is_written() -> None:
    shown = Screen(120, 40).text(hostile("[red]x[/red]"))
    assert "[red]x[/red]" in shown


def test_without_colour_only_bold_and_dim_are_left() -> None:
    screen = Screen(no_color=True)
    screen.view.update(failing())
    codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", screen.out.getvalue()) for code in found.split(";")}
    assert codes <= {"0", "1", "2", ""}


class TestRedraws:
    def test_rows_alone_are_drawn_once_a_second(self) -> None:
        screen, watch = Screen(), healthy()
        screen.view.update(watch)
        for step in range(341, 351):
            watch.runs[0].train([step])
            screen.clock.now += 0.05
            screen.view.update(watch)
        assert screen.view.redraws == 1
        screen.clock.now += 0.6
        screen.view.update(watch)
        assert screen.view.redraws == 2

    def test_a_finding_is_drawn_at_once(self) -> None:
        screen, watch = Screen(), healthy()
        screen.view.update(watch)
        watch.runs[0].fail(341)
        screen.view.heard(watch.runs[0], "opened", watch.runs[0].engine.findings[0])
        screen.view.update(watch)
        assert screen.view.redraws == 2

    def test_while_nothing_happens_only_the_age_of_the_last_row_is_refreshed(self) -> None:
        screen, watch = Screen(), healthy()
        for _ in range(20):
            screen.view.update(watch)
            screen.clock.now += 1
        assert screen.view.redraws == 4

    def test_a_clock_that_goes_backwards_does_not_freeze_it(self) -> None:
        screen, watch = Screen(), healthy()
        screen.view.update(watch)
        screen.clock.now -= 5000
        screen.view.update(watch)
        assert screen.view.redraws == 2

    def test_the_screen_is_given_back_and_the_summary_left_on_it(self) -> None:
        screen = Screen()
        screen.view.update(healthy())
        screen.view.close("two\n  lines")
        left = screen.out.getvalue().rpartition("\x1b[?1049l")[2]
        assert "two\n  lines\n" in OWN_CODES.sub("", left)

    def test_closing_before_anything_was_drawn_prints_the_summary_alone(self) -> None:
        screen = Screen()
        screen.view.close("nothing")
        assert screen.out.getvalue() == "nothing\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (45.2, "45 s"), (180, "3 min"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_told_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_long_words_and_wide_characters_are_wrapped_within_the_width() -> None:
    for text in ("x" * 500, "漢字" * 100, "one " * 100):
        assert all(cell_len(line.plain) <= 30 for line in wrapped(clean(text), 30, 4, most=3))
        assert len(wrapped(clean(text), 30, 4, most=3)) == 3
