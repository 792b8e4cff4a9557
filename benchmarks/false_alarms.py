"""False alarms on synthetic healthy runs, by kind and size of noise: what no corpus is large enough to show.

A healthy run falls exponentially by 15 to 60 % and levels out; its noise is Gaussian, correlated (AR(1), 0.4) or
heavy-tailed (Student's t with 5 or 3 degrees of freedom), of 2 to 25 % of the level. Rows carry loss, gradient norm,
learning rate (5 % warm-up, linear decay) and 20 evaluations with 0.2 % noise. Half of the runs log each step, half
each tenth. The seeds are not those that any threshold was chosen with (0 to 119).
Usage: ``python benchmarks/false_alarms.py [--runs 60]``.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter

from results_file import write

from lorawatch.engine import Engine
from lorawatch.findings import Finding, Severity
from lorawatch.records import FactUpdate, MetricRow
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.settings import Settings

FIRST_SEED = 1000
KINDS = ("gaussian", "correlated", "t5", "t3")
SIZES = (0.02, 0.05, 0.1, 0.25)


class Noise:
    """Unit-variance noise of one kind."""

    def __init__(self, kind: str, rng: random.Random) -> None:
        self.kind, self.rng, self.last = kind, rng, 0.0

    def __call__(self) -> float:
        """The next value."""
        rng = self.rng
        if self.kind == "correlated":
            self.last = 0.4 * self.last + math.sqrt(1 - 0.16) * rng.gauss(0, 1)
            return self.last
        if self.kind in ("t5", "t3"):
            degrees = int(self.kind[1])
            student = rng.gauss(0, 1) / math.sqrt(rng.gammavariate(degrees / 2, 2) / degrees)
            return student / math.sqrt(degrees / (degrees - 2))
        return rng.gauss(0, 1)


def alarms(rules: RuleSet, seed: int, kind: str, size: float) -> list[Finding]:
    """The warnings and criticals on one healthy run."""
    rng = random.Random(f"{seed} {kind} {size}")  # noqa: S311
    noise = Noise(kind, rng)
    every, points = (1, 10)[seed % 2], (200, 500, 1000)[seed % 3]
    start = rng.uniform(1.2, 4.0)
    end = start * rng.uniform(0.4, 0.85)
    pace = rng.uniform(0.03, 0.2) * points
    engine = Engine(Run("synthetic"), rules.make())
    engine.feed(FactUpdate({"max_steps": points * every, "logging_steps": every, "learning_rate": 2e-4}, "synthetic"))
    for index in range(points):
        level = end + (start - end) * math.exp(-index / pace)
        step, epoch = (index + 1) * every, 3 * (index + 1) / points
        values = {
            "loss": max(level * (1 + size * noise()), 0.01),
            "grad_norm": math.exp(rng.gauss(0, 0.3)),
            "learning_rate": 2e-4 * min(1.0, (index + 1) / (0.05 * points)) * (1 - index / points),
        }
        engine.feed(MetricRow(step, values, epoch))
        if (index + 1) % (points // 20) == 0:
            engine.feed(MetricRow(step, {"eval_loss": level * 1.05 * (1 + 0.002 * rng.gauss(0, 1))}, epoch))
    return [finding for finding in engine.findings if finding.severity >= Severity.WARNING]


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="runs of each kind and size of noise")
    options = parser.parse_args()
    rules = RuleSet(Settings())
    lines = ["| noise | 2 % | 5 % | 10 % | 25 % |", "|---|---|---|---|---|"]
    by_rule: Counter[str] = Counter()
    total = 0
    for kind in KINDS:
        cells = []
        for size in SIZES:
            found = [alarms(rules, FIRST_SEED + seed, kind, size) for seed in range(options.runs)]
            alarmed = sum(bool(one) for one in found)
            total += alarmed
            cells.append(f"{alarmed}")
            by_rule.update(f"{finding.rule} at {size:.0%}" for one in found for finding in one)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    runs = options.runs * len(KINDS) * len(SIZES)
    lines += [
        "",
        f"Runs with a warning or critical, of {options.runs} each: {total} of {runs} in all ({total / runs:.1%}).",
        "",
        "Findings: " + (", ".join(f"{rule} {count}" for rule, count in by_rule.most_common()) or "none") + ".",
    ]
    write("false_alarms", "False alarms on synthetic healthy runs", "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
