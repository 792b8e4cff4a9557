"""Which series stand in one picture, and which findings are marked there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from lorawatch.findings import Finding
from lorawatch.records import AdapterReading, GpuReading, SampleReading, StepTiming
from lorawatch.report.history import Column, RunHistory
from lorawatch.rule import Rule

MAX_PANELS = 14
MAX_LINES = 4


@dataclass(frozen=True, slots=True)
class _Plan:
    """A picture that is drawn where any of its series was logged.

    Attributes:
        key: Short name, for ids.
        title: Heading.
        lines: Pattern of a series, and what to call it; "" for its own name.
        unit: Unit of the values; "" where they have none.
        smooth: Series that get a rolling median.
        families: Patterns of the rules whose findings belong here.
    """

    key: str
    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = ""
    smooth: tuple[str, ...] = ()
    families: tuple[str, ...] = ()


_REWARD = _Plan("reward", "Reward", (("reward", ""), ("eval_reward", "")), smooth=("reward",), families=("rl/*",))
_LOSS = _Plan(
    "loss", "Loss", (("loss", ""), ("eval_loss", ""), ("eval_*_loss", "")), smooth=("loss",),
    families=("loss/*", "sig/*", "eval/*"),
)  # fmt: skip
_PLANS = (
    _Plan("margins", "Reward margin", (("rewards/margins", ""), ("eval_rewards/margins", "")),
          smooth=("rewards/margins",), families=("pref/*",)),
    _Plan("accuracies", "Preference accuracy", (("rewards/accuracies", ""), ("eval_rewards/accuracies", "")),
          smooth=("rewards/accuracies",), families=("pref/*",)),
    _Plan("chosen", "Rewards of chosen and rejected", (("rewards/chosen", ""), ("rewards/rejected", ""))),
    _Plan("logps", "Log-probabilities of chosen and rejected", (("logps/chosen", ""), ("logps/rejected", "")),
          "nats"),
    _Plan("kl", "KL divergence", (("kl", ""), ("objective/kl", "")), smooth=("kl",)),
    _Plan("spread", "Groups without a difference in reward", (("frac_reward_zero_std", ""),),
          "share", smooth=("frac_reward_zero_std",)),
    _Plan("lengths", "Length of completions", (("completions/mean_length", ""), ("completion_length", "")), "tokens",
          smooth=("completions/mean_length", "completion_length")),
    _Plan("clipped", "Completions cut at the limit", (("completions/clipped_ratio", ""),), "share",
          smooth=("completions/clipped_ratio",)),
    _Plan("rate", "Learning rate", (("learning_rate", ""),), families=("lr/*",)),
    _Plan("gradient", "Gradient norm", (("grad_norm", ""),), smooth=("grad_norm",), families=("grad/*",)),
    _Plan("accuracy", "Token accuracy", (("mean_token_accuracy", ""), ("eval_mean_token_accuracy", "")),
          smooth=("mean_token_accuracy",)),
    _Plan("scores", "Evaluation scores", (("eval_accuracy", ""), ("eval_f1", ""), ("eval_rouge?", ""),
          ("eval_bleu", ""))),
    _Plan("time", "Step time", (("step seconds", "seconds a step"),), "s", smooth=("step seconds",),
          families=("perf/*", "host/*")),
    _Plan("speed", "Throughput", (("tokens per second", "tokens a second"),), "tokens/s",
          smooth=("tokens per second",)),
    _Plan("memory", "GPU memory", (("memory GPU*", ""), ("memory torch*", "")), "GiB", families=("mem/*", "hw/*")),
    _Plan("drift", "Distance from the base model", (("generation KL", "KL a token"),), "nats", families=("base/kl",)),
    _Plan("perplexity", "Perplexity of general text", (("generation perplexity", "tuned"),
          ("generation base perplexity", "base")), families=("base/ppl",)),
    _Plan("update", "Adapter update against base weights", (("adapter update", "median over modules"),),
          families=("lora/*",)),
    _Plan("rank", "Effective rank of the adapter", (("adapter effective rank", "median over modules"),)),
    _Plan("entropy", "Entropy", (("entropy", ""), ("eval_entropy", "")), "nats", smooth=("entropy",)),
)  # fmt: skip
_READINGS: dict[type, str] = {
    StepTiming: "time", GpuReading: "memory", AdapterReading: "update", SampleReading: "drift",
}  # fmt: skip
"""Where findings of rules stand that judge readings, not rows."""


@dataclass(slots=True)
class Line:
    """One series of a picture.

    Attributes:
        name: The series.
        label: What to call it.
        column: Its points.
        smooth: Whether it gets a rolling median.
        dotted: Whether its points are so few that each is to be seen.
        limit: A level to draw with it (a card's memory); None for none.
    """

    name: str
    label: str
    column: Column
    smooth: bool = False
    dotted: bool = False
    limit: float | None = None


@dataclass(slots=True)
class Panel:
    """One picture.

    Attributes:
        key: Short name, for ids.
        title: Heading.
        unit: Unit of the values.
        lines: Its series.
        left_out: Series beyond :data:`MAX_LINES`.
        main: Whether it stands first and large.
        families: Patterns of the rules whose findings belong here.
        marks: The findings that are marked, with the number of their incident.
        linear: Whether the vertical axis never is logarithmic.
    """

    key: str
    title: str
    unit: str
    lines: list[Line]
    left_out: int = 0
    main: bool = False
    families: tuple[str, ...] = ()
    marks: list[tuple[int, Finding]] = field(default_factory=list)
    linear: bool = False


def panels_of(history: RunHistory, *, reinforcement: bool) -> list[Panel]:
    """The pictures for which there are series, the main one first."""
    first = (_REWARD, _LOSS) if reinforcement else (_LOSS, _REWARD)
    found: list[Panel] = []
    for plan in (*first, *_PLANS):
        panel = _panel(plan, history)
        if panel is not None and len(found) < MAX_PANELS:
            panel.main = not found
            found.append(panel)
    return found


def _panel(plan: _Plan, history: RunHistory) -> Panel | None:
    lines: list[Line] = []
    for pattern, label in plan.lines:
        for name, column in history.columns.items():
            if not len(column) or any(line.name == name for line in lines):
                continue
            if name == pattern or (("*" in pattern or "?" in pattern) and fnmatchcase(name, pattern)):
                shown = label or (name.partition(" ")[2] if name.startswith("memory ") else name)
                lines.append(
                    Line(name, shown, column, name in plan.smooth, len(column) <= 60, history.limits.get(name))
                )
    if not any(len(line.column) > 1 for line in lines):
        return None
    title = plan.title
    if plan.key == "time" and not history.inside:
        title += ", logging and evaluation included"
    return Panel(plan.key, title, plan.unit, lines[:MAX_LINES], max(len(lines) - MAX_LINES, 0), families=plan.families,
                 linear=plan.key == "rate")  # fmt: skip


def mark(panels: Sequence[Panel], incidents: Iterable[tuple[int, Sequence[Finding]]],
         rules: Mapping[str, type[Rule]]) -> None:  # fmt: skip
    """Note on each picture the findings that were made from what it shows; on the first, those that fit none.

    Findings on the configuration are left out: they happened at no step.
    """
    for number, findings in incidents:
        for finding in findings:
            if finding.rule.startswith("cfg/"):
                continue
            rule = rules.get(finding.rule)
            fitting = [panel for panel in panels if _belongs(finding, panel, rule)]
            if not fitting and rule is not None:
                keys = {_READINGS.get(judged) for judged in rule.judges}
                fitting = [panel for panel in panels if panel.key in keys]
            for panel in fitting or panels[:1]:
                panel.marks.append((number, finding))


def _belongs(finding: Finding, panel: Panel, rule: type[Rule] | None) -> bool:
    if any(fnmatchcase(finding.rule, pattern) for pattern in panel.families):
        return True
    names = () if rule is None else (*rule.needs, *rule.needs_any)
    return any(fnmatchcase(line.name, name) for line in panel.lines for name in names)
