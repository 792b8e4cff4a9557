"""Every rule's fixture: it fires on …, stays quiet on …"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from lorawatch.findings import Severity
from lorawatch.registry import builtin_classes
from lorawatch.rule import DOC_HEADINGS, Rule

from .rule_cases import Case, load_cases

FIXTURES = Path(__file__).parent / "rules"
CASES = [case for file in sorted(FIXTURES.glob("*.toml")) for case in load_cases(file)]
EXPECTATIONS = {"fires", "quiet", "abstains"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    engine = case.run()
    assert not engine.rule_errors
    expected = EXPECTATIONS & set(case.spec)
    assert len(expected) == 1, f"say one of {EXPECTATIONS}"
    if "abstains" in case.spec:
        assert [one.rule for one in engine.abstained()] == [case.rule]
        assert engine.findings == []
        return
    if "quiet" in case.spec:
        assert engine.findings == []
        assert engine.abstained() == [], "quiet because it abstained: the case proves nothing"
        return
    assert engine.findings, "no finding"
    finding = engine.findings[0]
    fires = case.spec["fires"]
    first, last = fires["between"]
    assert first <= finding.opened_step <= last, finding
    assert max(one.severity for one in engine.findings) == Severity.parse(fires["severity"])
    if "resolves" in case.spec:
        assert (finding.state == "resolved") == case.spec["resolves"]
    if "adjusts" in case.spec:
        assert [one.parameter for one in finding.adjustments] == case.spec["adjusts"]
    assert finding.summary
    assert finding.evidence


@pytest.mark.parametrize("rule", builtin_classes(), ids=lambda rule: rule.id)
class TestEveryRule:
    def test_has_a_fixture_that_fires_and_one_that_stays_quiet(self, rule: type[Rule]) -> None:
        cases = [case for case in CASES if case.rule == rule.id]
        assert any("fires" in case.spec for case in cases)
        assert any("quiet" in case.spec for case in cases)
        assert all(re.match(r"(fires|stays quiet|abstains|resolves) ", case.name) for case in cases)

    def test_has_the_sections_of_its_page(self, rule: type[Rule]) -> None:
        page = inspect.getdoc(rule) or ""
        places = [page.find(heading) for heading in DOC_HEADINGS]
        assert -1 not in places
        assert places == sorted(places)
        assert places[0] > 0, "no first paragraph"

    def test_is_named_after_its_file(self, rule: type[Rule]) -> None:
        family, name = rule.id.split("/")
        assert rule.__module__ == f"lorawatch.rules.{family}_{name.replace('-', '_')}"
        assert rule.__name__.lower() == (family + name).replace("-", "")

    def test_an_experimental_rule_warns_at_most(self, rule: type[Rule]) -> None:
        if rule.maturity == "experimental":
            assert rule.severity <= Severity.WARNING

    def test_says_unit_and_help_of_every_parameter(self, rule: type[Rule]) -> None:
        for parameter in rule.parameters():
            assert parameter.unit
            assert parameter.help.endswith(".")
