"""The statistics against numpy-free definitions, and the false-alarm figures that the rules rest on."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from lorawatch.stats import (
    Level,
    is_steep,
    linear_fit,
    mann_kendall_z,
    mcnemar,
    quadratic_residuals,
    strongest_period,
    theil_sen,
    von_neumann_ratio,
    welch_t,
)


def white(count: int, seed: int) -> list[float]:
    rng = random.Random(seed)  # noqa: S311
    return [rng.gauss(0, 1) for _ in range(count)]


def test_the_moving_range_tells_noise_from_trend() -> None:
    level = Level()
    rng = random.Random(1)  # noqa: S311
    for step in range(400):
        level.add(10 - 0.01 * step + rng.gauss(0, 0.2), step)
    assert level.sigma == pytest.approx(0.2, rel=0.35)


def test_one_outlier_does_not_teach_the_noise() -> None:
    level = Level()
    for step, noise in enumerate(white(200, 2)):
        level.add(2 + 0.05 * noise, step)
    before = level.sigma
    level.add(50.0, 200)
    assert level.z > 500
    assert level.sigma < 1.4 * before


def test_the_best_level_is_kept_with_its_step() -> None:
    level = Level()
    for step in range(100):
        level.add(abs(step - 60) / 10 + 1, step)
    assert 60 <= level.best_step <= 85
    assert level.best < level.slow


def test_a_line_is_fitted_exactly() -> None:
    assert linear_fit([1 + 2 * x for x in range(10)]) == pytest.approx((1, 2))
    assert max(map(abs, quadratic_residuals([3 - x + 0.5 * x * x for x in range(20)]))) < 1e-9


def test_von_neumanns_ratio_is_two_for_white_noise_four_for_alternation_and_nothing_for_a_line() -> None:
    ratios = [von_neumann_ratio(white(64, seed)) for seed in range(300)]
    assert statistics.mean(ratios) == pytest.approx(2.0, abs=0.1)
    assert sum(ratio > 2.8 for ratio in ratios) <= 2
    assert von_neumann_ratio([1.0, 2.0] * 32) == pytest.approx(4.0, rel=0.05)
    assert math.isnan(von_neumann_ratio([1.0 + 0.5 * x for x in range(64)]))


def test_a_period_is_found_and_white_noise_has_none() -> None:
    lag, strength = strongest_period([math.sin(2 * math.pi * x / 7) for x in range(64)])
    assert lag == 7
    assert strength > 0.8
    assert sum(strongest_period(white(64, seed))[1] > 0.6 for seed in range(300)) == 0


def test_slope_and_trend_survive_outliers_and_correlation() -> None:
    values = [0.1 * x + noise for x, noise in enumerate(white(64, 3))]
    values[10] = 1000.0
    assert theil_sen(values) == pytest.approx(0.1, abs=0.03)
    assert mann_kendall_z(values) > 3
    assert abs(mann_kendall_z(white(64, 4))) < 3


def test_the_quick_tests_agree_with_the_figures_that_they_spare() -> None:
    for seed in range(300):
        slope = random.Random(seed).uniform(-0.05, 0.05)  # noqa: S311
        values = [round(slope * place + noise, seed % 3 + 1) for place, noise in enumerate(white(64, seed))]
        assert is_steep(values, 0.0203) == (abs(theil_sen(values)) >= 0.0203)
        z = mann_kendall_z(values)
        assert (abs(mann_kendall_z(values, 1.96)) >= 1.96) == (abs(z) >= 1.96)
        pairs = [(early, late) for place, late in enumerate(values) for early in values[:place]]
        score = sum((late > early) - (late < early) for early, late in pairs)
        assert mann_kendall_z(values, math.inf) == pytest.approx(score / math.sqrt(64 * 63 * 133 / 18))


def test_welchs_t_is_positive_for_a_fall() -> None:
    assert welch_t([2.0, 2.1, 1.9, 2.0], [1.0, 1.1, 0.9, 1.0]) > 10
    assert welch_t([1.0, 1.0], [1.0, 1.0]) == 0.0
    assert welch_t([2.0, 2.0], [1.0, 1.0]) == math.inf


@pytest.mark.parametrize(("lost", "won", "chance"), [(0, 0, 1.0), (5, 0, 1 / 32), (10, 1, 12 / 2048), (0, 1, 1.0)])
def test_mcnemar_is_the_tail_of_a_fair_coin(lost: int, won: int, chance: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(chance)
