"""What the terminal shows of the last sample generations."""

from __future__ import annotations

from rich.cells import cell_len

from lorawatch.records import Sample, SampleReading
from lorawatch.run import Run
from lorawatch.terminal_samples import samples
from tests.terminal.test_live_view import HOSTILE


def asked(**changes: object) -> Run:
    given = {
        "step": 200, "kl": 1.976, "perplexity": 3.437, "base_perplexity": 2.301, "max_new_tokens": 64,
        "samples": [
            Sample("2 + 2?", "5", ended=True, tokens=1, probe="general", right=False),
            Sample("3 + 3?", "6", ended=True, tokens=1, probe="general", right=True),
            Sample("What is a tent?", "It is a tent is a tent", ended=False, tokens=64),
        ],
        "base": [
            Sample("2 + 2?", "4", ended=True, tokens=1, probe="general", right=True),
            Sample("3 + 3?", "6", ended=True, tokens=1, probe="general", right=True),
            Sample("What is a tent?", "A house.", ended=True, tokens=3),
        ],
    }  # fmt: skip
    run = Run("run")
    run.observe(SampleReading(**(given | changes)))  # type: ignore[arg-type]
    return run


def shown(run: Run, width: int = 132, most: int = 2) -> list[str]:
    return [line.plain for line in samples(run, width, most)]


def test_what_was_measured_stands_in_a_line_and_task_prompts_come_first() -> None:
    head, prompt, reply, *rest = shown(asked())
    assert head.startswith("says  at step 200   general right 1 of 2 (base 2 of 2)   ended 2 of 3   perplexity 3.437")
    assert "(base 2.301)" in head
    assert "KL from base 1.976" in head
    assert prompt == "  asked    What is a tent?"
    assert reply == "  replies  It is a tent is a tent … (cut at the limit)"
    assert rest == ["  asked    2 + 2?", "  replies  5"]


def test_a_later_reading_is_held_against_the_first_ones_base() -> None:
    run = asked()
    run.observe(SampleReading(300, [Sample("2 + 2?", "4", ended=True, tokens=1, probe="general", right=True)]))
    assert shown(run)[0] == "says  at step 300   general right 1 of 1 (base 2 of 2)"


def test_nothing_is_shown_where_nothing_was_asked() -> None:
    assert shown(Run("run")) == []


def test_an_empty_reply_is_said() -> None:
    assert shown(asked(samples=[Sample("Hello?", " ", ended=True, tokens=1)]))[-1] == "  replies  (nothing)"


def test_nothing_that_a_model_says_reaches_the_terminal_raw_or_is_too_wide() -> None:
    for text in HOSTILE:
        for width in (20, 40, 110):
            for words in shown(asked(samples=[Sample(text, text, ended=True, tokens=1)]), width):
                assert words.isprintable()
                assert cell_len(words) <= width
