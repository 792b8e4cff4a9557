"""What may be set, and the words for what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorawatch.registry import RuleSet, rule_classes
from lorawatch.settings import Settings, SettingsError, load_settings

USER_RULE = '''
from dataclasses import dataclass
from typing import ClassVar
from lorawatch.findings import Breach, Severity
from lorawatch.rule import Rule, param

@dataclass(slots=True)
class MineAlways(Rule):
    """Always."""
    id: ClassVar[str] = "mine/always"
    title: ClassVar[str] = "Always"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    many: int = param(3, unit="points", help="How many.")

    def judge(self, row, run):
        return Breach("always", {"n": 1})
'''


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "lorawatch.toml"
    file.write_text(text)
    return file


def test_a_parameter_of_a_rule_is_set(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[rules."loss/diverging"]\nrelative = 1\nhold = 3\n'), {})
    [rule] = [rule for rule in RuleSet(settings).make() if rule.id == "loss/diverging"]
    assert rule.hold == 3
    assert rule.relative == 1.0  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_rule_is_switched_off(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[rules."loss/diverging"]\nenabled = false\n'), {})
    assert "loss/diverging" not in [rule.id for rule in RuleSet(settings).make()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("selct = ['loss']", "unknown setting 'selct'; did you mean 'select'?"),
        ('[rules."loss/divergin"]', "no such rule; did you mean 'loss/diverging'?"),
        ('[rules."loss/diverging"]\nrelativ = 1.0', "unknown parameter 'relativ'; did you mean 'relative'?"),
        ('[rules."loss/diverging"]\nrelative = "a"', "relative must be a number, is 'a'"),
        ('[rules."loss/diverging"]\nhold = 1.5', "hold must be a whole number of points, is 1.5"),
        ('[rules."loss/diverging"]\nrelative = -1', "must not be negative"),
        ('[rules."loss/diverging"]\nrelative = nan', "must not be negative"),
        ('[rules."loss/diverging"]\nenabled = 1', "enabled must be true or false"),
        ("select = ['los']", "no rule matches 'los'; did you mean 'loss'?"),
        ("fail_on = 'fatal'", "fail_on must be one of info, warning, critical, never"),
        ("select = 'loss'", "select must be a list of strings"),
        ("rules = 3", "under [rules."),
        ("machine = 'off'", "machine must be true or false"),
        ("= 3", "is not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RuleSet(load_settings(write(tmp_path, text), {}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value).strip() or "TOML" in words


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "absent.toml", {})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "ignore = ['loss']\nfail_on = 'info'\n")
    settings = load_settings(file, {"LORAWATCH_IGNORE": "sig, eval", "LORAWATCH_FAIL_ON": "never"})
    assert (settings.ignore, settings.fail_on) == (("sig", "eval"), "never")


@pytest.mark.parametrize(("word", "expected"), [("false", False), ("0", False), ("Off", False), ("yes", True)])
def test_a_switch_is_set_by_a_word_of_the_environment(tmp_path: Path, word: str, expected: bool) -> None:
    file = write(tmp_path, f"machine = {str(not expected).lower()}\n")
    assert load_settings(file, {"LORAWATCH_MACHINE": word}).machine is expected


def test_a_word_that_is_no_switch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LORAWATCH_MACHINE: machine must be true or false, is 'maybe'"):
        load_settings(write(tmp_path, ""), {"LORAWATCH_MACHINE": "maybe"})


def test_select_and_ignore_take_rules_families_and_patterns() -> None:
    ids = [rule.id for rule in RuleSet(Settings(select=("loss",), ignore=("loss/d*",))).classes]
    assert ids
    assert all(rule_id.startswith("loss/") and not rule_id.startswith("loss/d") for rule_id in ids)


def test_rules_of_a_folder_are_loaded_and_take_parameters(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_RULE)
    settings = Settings(rules_paths=(str(tmp_path),), rules={"mine/always": {"many": 5}})
    [rule] = [rule for rule in RuleSet(settings).make() if rule.id == "mine/always"]
    assert rule.many == 5  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("source", "words"),
    [("raise OSError('no')", "cannot be loaded: OSError: no"), ("def", "cannot be loaded: SyntaxError")],
)
def test_rules_that_cannot_be_loaded_are_named(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(SettingsError, match=r"broken\.py") as caught:
        rule_classes([str(tmp_path)])
    assert words in str(caught.value)


def test_two_rules_of_one_id_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twin.py").write_text(USER_RULE.replace("mine/always", "loss/diverging"))
    with pytest.raises(SettingsError, match="two rules have the id"):
        rule_classes([str(tmp_path)])


def test_a_third_partys_rules_come_through_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lorawatch_plugin_of_a_test.py").write_text(USER_RULE)
    metadata = tmp_path / "lorawatch_plugin_of_a_test-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lorawatch-plugin-of-a-test\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[lorawatch.rules]\nmine = lorawatch_plugin_of_a_test\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine/always" in [rule.id for rule in rule_classes()]
