"""``lorawatch fix``: nothing but the value changes, of the right setting, and it is written whole or not at all."""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import shutil
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorawatch.cli import fix
from lorawatch.cli.errors import UsageError
from lorawatch.config_files.changes import AlreadySoError, Change, change, companions, in_words
from lorawatch.config_files.document import UNREAD, ConfigError, Document, Entry, same
from lorawatch.config_files.families import family_of, setting_of, stated_facts
from lorawatch.config_files.files import read_config, write_config
from lorawatch.config_files.json_document import JsonDocument
from lorawatch.config_files.python_document import PythonDocument
from lorawatch.config_files.scalars import number_text
from lorawatch.config_files.yaml_document import YamlDocument
from lorawatch.findings import Adjustment
from lorawatch.ledger import LEDGER, LedgerChange, LedgerEntry, adoption, adoption_notes, append_entry, read_ledger
from lorawatch.parameters import spell_parameter
from lorawatch.records import FactUpdate
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.settings import Settings
from lorawatch.watch import judge

FOLDER = Path(__file__).parent / "config_files"
CONFIGS = sorted(path.name.removesuffix(".txt") for path in FOLDER.iterdir())
"""Scripts end with .txt as well, so that nothing takes them for code of the project."""
KINDS: dict[str, type[Document]] = {
    ".yaml": YamlDocument, ".yml": YamlDocument, ".json": JsonDocument, ".py": PythonDocument,
}  # fmt: skip
RUNS = Path(__file__).parent / "runs"
QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def written(name: str) -> bytes:
    return (FOLDER / (f"{name}.txt" if name.endswith(".py") else name)).read_bytes()


def document(name: str) -> Document:
    return KINDS[Path(name).suffix](written(name).decode())


def loaded(name: str, text: str) -> Any:
    """What an independent reader of the format makes of a text."""
    if name.endswith(".json"):
        return json.loads(text)
    return yaml.safe_load(text) if name.endswith((".yaml", ".yml")) else ast.dump(ast.parse(text))


def keys(value: Any) -> list[str]:
    """All keys of a document, in its order."""
    if isinstance(value, dict):
        return [name for key, inner in value.items() for name in [str(key), *keys(inner)]]
    return [name for inner in value for name in keys(inner)] if isinstance(value, list) else []


def comments(name: str, text: str) -> list[str]:
    if name.endswith(".py"):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return [token.string for token in tokens if token.type == tokenize.COMMENT]
    return re.findall(r"(?:^|\s)(#.*)", text, re.MULTILINE) if not name.endswith(".json") else []


def another(value: Any) -> Any:
    """Another value of the same sort."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 3
    if isinstance(value, float):
        return value / 3 if value else 0.05
    if isinstance(value, list):
        return [*(f"{item}2" for item in value[1:]), "another"]
    return "another"


def proposed(family: str, parameter: str, value: Any, **more: Any) -> Adjustment:
    """An adjustment as the engine spells it for a run of a family."""
    run = Run("run")
    facts = {"transformers_version": "5.24.0", "trl_version": "1.16.0"}
    run.learn(FactUpdate(facts if family == "transformers" else facts | {"framework": family}, "test"))
    name, value = spell_parameter(parameter, value, run)
    return Adjustment(name, value, "because", **more)


def changed(found: Document, parameter: str, value: Any, **more: Any) -> Change:
    family = family_of(found)
    return change(found, family, [proposed(family, parameter, value, **more)], "lorawatch: loss/diverging")


def lines(made: Change) -> list[str]:
    return [line for line in made.diff("file")[2:] if line[:1] in "+-"]


class TestTheTenConfigurations:
    def test_they_are_ten_of_all_families_and_formats(self) -> None:
        found = [(family_of(document(name)), Path(name).suffix) for name in CONFIGS]
        assert len(found) == 10
        assert {family for family, _ in found} == {"axolotl", "llamafactory", "transformers"}
        assert {suffix for _, suffix in found} == {".yaml", ".yml", ".json", ".py"}

    @pytest.mark.parametrize("name", CONFIGS)
    def test_replacing_any_value_changes_no_byte_outside_of_it(self, name: str) -> None:
        found = document(name)
        entries = [entry for entry in found.entries if not entry.problem and not isinstance(entry.value, list)]
        assert len(entries) >= 4
        for entry in entries:
            wanted = another(entry.value)
            text = found.replace(entry, wanted).text
            after = len(found.text) - entry.end
            assert text[: entry.start] == found.text[: entry.start]
            assert text[len(text) - after :] == found.text[entry.end :]
            assert comments(name, text) == comments(name, found.text)
            assert keys(loaded(name, text)) == keys(loaded(name, found.text))

    @pytest.mark.parametrize("name", CONFIGS)
    def test_a_list_that_becomes_a_word_or_another_list_keeps_every_comment_and_key(self, name: str) -> None:
        found = document(name)
        for entry in found.entries:
            if isinstance(entry.value, list) and not entry.problem:
                for wanted in ("all-linear", another(entry.value), [*entry.value, "more"]):
                    new = found.replace(entry, wanted)
                    assert comments(name, new.text) == comments(name, found.text)
                    assert keys(loaded(name, new.text)) == keys(loaded(name, found.text))

    @pytest.mark.parametrize("name", CONFIGS)
    def test_a_new_setting_is_one_more_line_or_one_more_item_and_nothing_else(self, name: str) -> None:
        found = document(name)
        for entry in found.entries:
            if found.sections[entry.section].problem:
                continue
            new = found.insert(entry, "neftune_noise_alpha", 5.0, "why")
            kept = [comment for comment in comments(name, new.text) if comment != "# why"]
            assert kept == comments(name, found.text)
            added = [key for key in keys(loaded(name, new.text)) if key != "neftune_noise_alpha"]
            assert added == keys(loaded(name, found.text))
            without = new.text.replace("neftune_noise_alpha", "")
            assert len(without) > len(found.text)
            old, longer = found.text.splitlines(), new.text.splitlines()
            assert len(longer) - len(old) in (0, 1)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_reading_and_writing_nothing_gives_the_same_bytes(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(written(name))
        file = read_config(tmp_path / name)
        assert file.bytes_of(file.document) == written(name)

    @pytest.mark.parametrize("name", CONFIGS)
    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    def test_line_ends_and_a_byte_order_mark_stay(self, name: str, ends: str, tmp_path: Path) -> None:
        copy = tmp_path / name
        copy.write_bytes(b"\xef\xbb\xbf" + written(name).replace(b"\n", ends.encode()))
        file = read_config(copy)
        entry = next(one for one in file.document.entries if isinstance(one.value, float) and not one.problem)
        new = file.document.replace(entry, 0.125)
        place = next(one for one in new.entries if one.name == entry.name and not one.problem)
        if not new.sections[place.section].problem:
            new = new.insert(place, "neftune_noise_alpha", 5)
        data = file.bytes_of(new)
        assert data.startswith(b"\xef\xbb\xbf")
        assert data.count(b"\r\n") == data.count(b"\n") * (ends == "\r\n")


NAMES = st.from_regex(r"[a-z][a-z_]{0,11}", fullmatch=True).filter(
    lambda name: name not in {"on", "off", "yes", "no", "y", "n", "true", "false", "null"}
)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=12)
SCALARS = st.one_of(
    st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), WORDS
)
TREES = st.dictionaries(
    NAMES, st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(NAMES, SCALARS, min_size=1, max_size=3)),
    min_size=1, max_size=6,
)  # fmt: skip


def replaced_in(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    return {key: inner if key != path[0] else value if len(path) == 1 else replaced_in(inner, path[1:], value)
            for key, inner in tree.items()}  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    """Equal as documents: 1.0 and 1 differ, and NaN does not come up."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    return same(one, other) or one == other


class TestAnyDocument:
    @QUICK
    @given(tree=TREES, value=SCALARS, flow=st.booleans(), indent=st.integers(2, 6), data=st.data())
    def test_yaml_reads_back_as_meant_and_all_else_as_before(
        self, tree: dict[str, Any], value: Any, flow: bool, indent: int, data: st.DataObject
    ) -> None:
        text = yaml.safe_dump(
            tree, default_flow_style=flow, indent=indent, allow_unicode=True, sort_keys=False, width=10_000
        )
        self.holds(YamlDocument(text), yaml.safe_load, value, data)

    @QUICK
    @given(tree=TREES, value=SCALARS, indent=st.sampled_from([None, 0, 1, 2, "\t"]), data=st.data())
    def test_json_reads_back_as_meant_and_all_else_as_before(
        self, tree: dict[str, Any], value: Any, indent: Any, data: st.DataObject
    ) -> None:
        self.holds(JsonDocument(json.dumps(tree, indent=indent)), json.loads, value, data)

    @QUICK
    @given(tree=TREES, value=SCALARS, data=st.data())
    def test_python_reads_back_as_meant_and_all_else_as_before(
        self, tree: dict[str, Any], value: Any, data: st.DataObject
    ) -> None:
        settings_ = ",\n".join(f"    {key!r}: {inner!r}" for key, inner in tree.items())
        text = f"# ä {{ }}\nconfig = {{\n{settings_}\n}}\n"
        self.holds(PythonDocument(text), lambda words: ast.literal_eval(words.partition(" = ")[2]), value, data)

    @staticmethod
    def holds(found: Document, read: Callable[[str], Any], value: Any, data: st.DataObject) -> None:
        entries = [entry for entry in found.entries if not entry.problem]
        if not entries:
            return
        entry = data.draw(st.sampled_from(entries))
        path = (*found.sections[entry.section].path, entry.name)
        path = path[1:] if isinstance(found, PythonDocument) else path
        try:
            new = found.replace(entry, value)
        except ConfigError:
            assert isinstance(value, str)  # words that do not print are left to a person
            assert not value.isprintable()
            return
        before, after = read(found.text), read(new.text)
        assert equal(after, replaced_in(before, path, value))
        if not isinstance(entry.value, list):
            assert new.text.startswith(found.text[: entry.start])
            assert new.text.endswith(found.text[entry.end :])
        place = next(one for one in new.entries if (one.section, one.name) == (entry.section, entry.name))
        more = new.insert(place, "zz_new", value)
        assert "zz_new" in more.text
        removed = read(more.text)
        here = removed
        for key in path[:-1]:
            here = here[key]
        assert same(here.pop("zz_new"), value)
        assert equal(removed, after)

    @given(
        value=st.floats(allow_nan=False, allow_infinity=False),
        like=st.sampled_from(["", "2e-4", "2.0e-04", "1", "0.1", "1E-2", "yes"]),
    )
    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    def test_a_number_is_written_so_that_yaml_json_and_python_read_the_same(self, value: float, like: str) -> None:
        for dotted in (False, True):
            text = number_text(value, like, dotted=dotted)
            assert json.loads(text) == value
            assert ast.literal_eval(text) == value
            if dotted:
                assert yaml.safe_load(text) == value

    @pytest.mark.parametrize(
        ("value", "like", "text"),
        [
            (6.7e-4, "2e-3", "6.7e-4"), (6.7e-4, "0.002", "0.00067"), (2e-4, "1.0e-04", "2.0e-04"), (2, "3.0", "2.0"),
            (2e-4, "1", "0.0002"), (8, "16", "8"), (0.3, "1", "0.3"), (3.0, "5", "3"), (2e-5, "", "2.0e-5"),
            (0.05, "", "0.05"),
        ],
    )  # fmt: skip
    def test_a_number_is_written_as_the_one_before_it(self, value: float, like: str, text: str) -> None:
        assert number_text(value, like, dotted=True) == text


class TestWhatIsChanged:
    @pytest.mark.parametrize(
        ("name", "parameter", "value", "diff"),
        [
            (
                "axolotl_lora.yaml",
                "learning_rate",
                6.7e-4,
                ["-learning_rate: 2e-3    # from a blog post", "+learning_rate: 6.7e-4    # from a blog post"],
            ),
            ("axolotl_lora.yaml", "per_device_train_batch_size", 1, ["-micro_batch_size: 2", "+micro_batch_size: 1"]),
            ("axolotl_lora.yaml", "num_train_epochs", 2, ["-num_epochs: 4", "+num_epochs: 2"]),
            (
                "axolotl_lora.yaml",
                "target_modules",
                "all-linear",
                ["+lora_target_linear: true  # lorawatch: loss/diverging"],
            ),
            (
                "axolotl_lora.yaml",
                "activation_checkpointing",
                False,
                ["-gradient_checkpointing: true", "+gradient_checkpointing: false"],
            ),
            (
                "axolotl_lora.yaml",
                "optim",
                "paged_adamw_8bit",
                ["-optimizer: adamw_bnb_8bit", "+optimizer: paged_adamw_8bit"],
            ),
            ("axolotl_lora.yaml", "use_rslora", True, ["+peft_use_rslora: true  # lorawatch: loss/diverging"]),
            (
                "axolotl_qlora.yml",
                "target_modules",
                "all-linear",
                ["-lora_target_linear: no    # we name them below", "+lora_target_linear: yes    # we name them below"],
            ),
            ("axolotl_qlora.yml", "packing", False, ["-sample_packing: on", "+sample_packing: off"]),
            ("axolotl_qlora.yml", "r", 32, ["-lora_r: 64", "+lora_r: 32"]),
            (
                "axolotl_qlora.yml",
                "bf16",
                True,
                ["-fp16: true", "+fp16: false", "+bf16: true  # lorawatch: loss/diverging"],
            ),
            (
                "llamafactory_sft.yaml",
                "r",
                16,
                ["-lora_rank: 8   # small on purpose", "+lora_rank: 16   # small on purpose"],
            ),
            (
                "llamafactory_sft.yaml",
                "target_modules",
                "all-linear",
                ["-lora_target: q_proj,v_proj", "+lora_target: all"],
            ),
            ("llamafactory_sft.yaml", "max_length", 1024, ["-cutoff_len: 2048", "+cutoff_len: 1024"]),
            ("llamafactory_sft.yaml", "num_train_epochs", 2, ["-num_train_epochs: 3.0", "+num_train_epochs: 2.0"]),
            ("llamafactory_sft.yaml", "load_in_4bit", True, ["+quantization_bit: 4  # lorawatch: loss/diverging"]),
            ("llamafactory_sft.yaml", "warmup_steps", 0.03, ["-warmup_ratio: 0.1", "+warmup_ratio: 0.03"]),
            ("llamafactory_dpo.json", "beta", 0.3, ['-    "pref_beta": 0.1,', '+    "pref_beta": 0.3,']),
            ("llamafactory_dpo.json", "max_grad_norm", 0.3, ['+    "max_grad_norm": 0.3,']),
            ("trl_sft.yaml", "r", 16, ["-lora_r: 32", "+lora_r: 16"]),
            (
                "trl_sft.yaml",
                "target_modules",
                "all-linear",
                ["+lora_target_modules: all-linear  # lorawatch: loss/diverging"],
            ),
            ("trl_sft.yaml", "bf16", True, ["-bf16: False", "-fp16: True", "+bf16: True", "+fp16: False"]),
            ("trl_sft.yaml", "max_grad_norm", 0.3, ["+max_grad_norm: 0.3  # lorawatch: loss/diverging"]),
            ("trl_nested.yaml", "r", 8, ["-    r: 16", "+    r: 8"]),
            (
                "trl_nested.yaml",
                "target_modules",
                ["q_proj", "gate_proj", "v_proj"],
                ["-    - gate_prj   # the gate", "+    - gate_proj   # the gate"],
            ),
            ("trl_nested.yaml", "learning_rate", 2e-4, ["-    learning_rate: 0.01", "+    learning_rate: 0.0002"]),
            ("hf_tabs.json", "learning_rate", 2e-4, ['-\t\t"learning_rate": 0.002,', '+\t\t"learning_rate": 0.0002,']),
            ("hf_tabs.json", "lora_dropout", 0.05, ['+\t\t"lora_dropout": 0.05,']),
            (
                "trl_script.py",
                "learning_rate",
                6.7e-4,
                ["-LEARNING_RATE = 2e-3  # peak", "+LEARNING_RATE = 6.7e-4  # peak"],
            ),
            (
                "trl_script.py",
                "target_modules",
                "all-linear",
                ['-        target_modules=["q_proj", "v_proj"],', '+        target_modules="all-linear",'],
            ),
            ("trl_script.py", "packing", True, ["+        packing=True,  # lorawatch: loss/diverging"]),
            (
                "trl_script.py",
                "logging_nan_inf_filter",
                False,
                [
                    "-        logging_steps=10  # no comma here",
                    "+        logging_steps=10,  # no comma here",
                    "+        logging_nan_inf_filter=False,  # lorawatch: loss/diverging",
                ],
            ),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_the_setting_that_the_family_calls_so(self, name: str, parameter: str, value: Any, diff: list[str]) -> None:
        assert lines(changed(document(name), parameter, value)) == diff

    def test_a_call_on_one_line_takes_one_more_keyword(self) -> None:
        made = changed(document("trainer_script.py"), "max_grad_norm", 0.3)
        assert "warmup_ratio=0.03, max_grad_norm=0.3,\n" in made.after.text

    def test_compact_json_takes_one_more_name(self) -> None:
        made = changed(document("hf_compact.json"), "bf16", True)
        assert '"fp16": false, "bf16": true, "max_grad_norm"' in made.after.text

    def test_a_block_list_that_becomes_a_word_leaves_its_comments(self) -> None:
        made = changed(document("trl_nested.yaml"), "target_modules", "all-linear")
        assert lines(made) == [
            "-    target_modules:", "-    - q_proj", "-    - gate_prj   # the gate", "-    - v_proj",
            "+    target_modules: all-linear", "+    # the gate",
        ]  # fmt: skip
        assert yaml.safe_load(made.after.text)["peft"]["target_modules"] == "all-linear"

    def test_an_empty_value_is_filled(self) -> None:
        made = changed(
            YamlDocument("learning_rate: 1\nmax_grad_norm:   # default\nwarmup_steps:\n"), "max_grad_norm", 0.3
        )
        assert made.after.text == "learning_rate: 1\nmax_grad_norm: 0.3   # default\nwarmup_steps:\n"

    def test_a_number_in_quotes_stays_in_quotes(self) -> None:
        assert (
            changed(YamlDocument("learning_rate: '2e-3'\n"), "learning_rate", 2e-4).after.text
            == "learning_rate: '2e-4'\n"
        )
        assert (
            changed(JsonDocument('{"learning_rate": "2e-3"}'), "learning_rate", 2e-4).after.text
            == '{"learning_rate": "2e-4"}'
        )

    def test_a_word_that_yaml_takes_for_something_else_is_quoted(self) -> None:
        found = YamlDocument("eval_strategy: steps\n")
        for words in ("no", "1e3", "null", "2020-01-01", "a:b", "'", "*x", ""):
            text = changed(found, "eval_strategy", words).after.text
            assert yaml.safe_load(text) == {"eval_strategy": words}
        assert changed(found, "eval_strategy", "no").after.text == "eval_strategy: 'no'\n"

    def test_older_names_in_the_file_are_kept(self) -> None:
        found = YamlDocument(
            "learning_rate: 1.0\nwarmup_ratio: 0.0\ngroup_by_length: false\nevaluation_strategy: steps\n"
        )
        assert "warmup_ratio: 0.05\n" in changed(found, "warmup_steps", 0.05).after.text
        assert "group_by_length: true\n" in changed(found, "train_sampling_strategy", "group_by_length").after.text
        assert "evaluation_strategy: epoch\n" in changed(found, "eval_strategy", "epoch").after.text

    def test_settings_of_other_programs_with_the_same_name_are_left_alone(self) -> None:
        made = changed(document("axolotl_qlora.yml"), "gradient_accumulation_steps", 4)
        assert lines(made) == ["-gradient_accumulation_steps: 2", "+gradient_accumulation_steps: 4"]

    def test_text_that_only_looks_like_a_setting_is_left_alone(self) -> None:
        assert "says learning_rate: 5" in changed(document("trl_nested.yaml"), "learning_rate", 2e-4).after.text
        assert '\\"learning_rate\\": 3' in changed(document("hf_tabs.json"), "learning_rate", 2e-4).after.text

    def test_unsloth_is_read_as_it_is_written(self) -> None:
        found = PythonDocument(
            "max_seq_length = 2048\n"
            "model, t = FastLanguageModel.from_pretrained('x', max_seq_length=max_seq_length, load_in_4bit=True)\n"
            "model = FastLanguageModel.get_peft_model(model, r=16, target_modules=['q_proj'], lora_alpha=16)\n"
            "t = SFTTrainer(model, max_seq_length=max_seq_length, args=TrainingArguments(learning_rate=2e-3,\n"
            "    fp16=not is_bfloat16_supported(), bf16=is_bfloat16_supported()))\n"
        )
        assert "get_peft_model(model, r=8, target" in changed(found, "r", 8).after.text
        assert changed(found, "max_length", 1024).after.text.startswith("max_seq_length = 1024\n")
        with pytest.raises(ConfigError, match=r"line 5: bf16 is computed \(is_bfloat16_supported\(\)\)"):
            changed(found, "bf16", True)

    def test_a_dict_and_what_is_set_later_are_settings_too(self) -> None:
        found = PythonDocument(
            'config = {\n    "lr": 1e-3,  # peak\n    "lora_r": 8\n}\nconfig["max_grad_norm"] = 1.0\n'
        )
        assert '"lr": 2e-4,  # peak' in changed(found, "learning_rate", 2e-4).after.text
        assert 'config["max_grad_norm"] = 0.3' in changed(found, "max_grad_norm", 0.3).after.text
        made = changed(found, "lora_dropout", 0.05)
        assert '    "lora_r": 8,\n    "lora_dropout": 0.05,  # lorawatch: loss/diverging\n}' in made.after.text

    def test_a_run_that_names_its_framework_needs_one_name_of_it(self) -> None:
        found = YamlDocument("micro_batch_size: 2\nlearning_rate: 1.0\n")
        assert family_of(found) == "transformers"
        assert family_of(found, "axolotl") == "axolotl"
        assert family_of(found, "llamafactory") == "transformers"

    def test_a_rank_takes_its_alpha_along(self) -> None:
        rank = Adjustment("lora_r", 16, "why", current=32)
        alpha = Adjustment("lora_alpha", 8, "keeps alpha / r at 0.5", current=16)
        other = Adjustment("learning_rate", 1e-4, "why")
        assert companions(rank, [rank, alpha, other]) == [alpha]
        assert companions(other, [rank, alpha, other]) == []
        made = change(document("axolotl_lora.yaml"), "axolotl", [rank, alpha])
        assert [(edit.name, edit.parameter, edit.before, edit.after) for edit in made.edits] == [
            ("lora_r", "r", 32, 16), ("lora_alpha", "lora_alpha", 16, 8),
        ]  # fmt: skip
        assert [edit.line for edit in made.edits] == [25, 26]

    def test_what_the_file_says_already_is_no_change(self) -> None:
        with pytest.raises(AlreadySoError, match="line 5 says lora_r 32 already"):
            changed(document("trl_sft.yaml"), "r", 32)
        with pytest.raises(AlreadySoError, match=r"says learning_rate 0.002 already, which goes past 0.01"):
            changed(document("trl_sft.yaml"), "learning_rate", 0.01, direction="down")

    def test_a_file_that_is_not_what_the_run_used_is_told(self) -> None:
        made = changed(document("trl_sft.yaml"), "learning_rate", 1e-4, current=5e-4)
        assert made.differs == ["learning_rate is 0.002 here, and was 0.0005 in the run"]
        assert changed(document("trl_sft.yaml"), "learning_rate", 1e-4, current=0.0020004).differs == []

    def test_facts_are_read_from_every_family(self) -> None:
        assert stated_facts(document("axolotl_lora.yaml"), "axolotl").items() >= {
            "r": 32, "max_length": 4096, "per_device_train_batch_size": 2, "framework": "axolotl",
            "learning_rate": 2e-3,
        }.items()  # fmt: skip
        assert "bf16" not in stated_facts(document("axolotl_lora.yaml"), "axolotl")  # auto says nothing
        assert (
            stated_facts(document("trl_script.py"), "transformers").items() >= {"learning_rate": 2e-3, "r": 16}.items()
        )


BY_HAND = [
    (YamlDocument, "a: &x {learning_rate: 1}\nb: *x\n", "learning_rate", "stands in a group that carries an anchor"),
    (YamlDocument, "lr_of: &x 1.0\nlearning_rate: *x\n", "learning_rate", "line 2: learning_rate is an alias"),
    (YamlDocument, "learning_rate: &x 1.0\nother: *x\n", "learning_rate", "carries an anchor"),
    (YamlDocument, "learning_rate: !!float 1\n", "learning_rate", "carries an anchor or a tag"),
    (YamlDocument, "learning_rate: |\n  1.0\n", "learning_rate", "is a block of text"),
    (YamlDocument, "learning_rate: 1\nx: 1\nlearning_rate: 2\n", "learning_rate", "lines 1 (learning_rate) and 3"),
    (
        YamlDocument,
        "train:\n  learning_rate: 1\nother:\n  lr: 2\n",
        "learning_rate",
        "lines 2 (learning_rate) and 4 (lr)",
    ),
    (YamlDocument, "learning_rate: {peak: 1}\n", "learning_rate", "is a group of settings"),
    (
        YamlDocument,
        "learnig_rate: 1.0\nmax_steps: 3\n",
        "learning_rate",
        "unknown setting 'learnig_rate'; did you mean 'learning_rate'?",
    ),
    (YamlDocument, "learning_rate: 1.0\n", "r", "no section is the one for it"),
    (YamlDocument, "target_modules: [[a], b]\n", "target_modules", "is a list of more than"),
    (
        YamlDocument,
        "lora_alpha: 2\ntarget_modules: [a,  # c\n  b]\n",
        "target_modules",
        "a comment stands within the list",
    ),
    (JsonDocument, '{"learning_rate": 1, "learning_rate": 2}', "learning_rate", "lines 1 (learning_rate) and 1"),
    (JsonDocument, '{"learning_rate": {}}', "learning_rate", "is a group of settings"),
    (
        PythonDocument,
        "a = TrainingArguments(learning_rate=float(x))\n",
        "learning_rate",
        "line 1: learning_rate is computed (float(x))",
    ),
    (PythonDocument, "R = 8\nc = LoraConfig(r=R, lora_alpha=2 * R)\n", "r", "takes R, as lora_alpha does"),
    (
        PythonDocument,
        "LR = 1\nLR = 2\na = SFTConfig(learning_rate=LR)\n",
        "learning_rate",
        "not set by one literal in one place",
    ),
    (
        PythonDocument,
        "def f(LR=1):\n    return SFTConfig(learning_rate=LR)\n",
        "learning_rate",
        "not set by one literal",
    ),
    (
        PythonDocument,
        "a = SFTConfig(learning_rate=1)\nb = SFTConfig(learning_rate=2)\n",
        "learning_rate",
        "lines 1 (learning_rate) and 2",
    ),
    (
        PythonDocument,
        "a = SFTConfig(learning_rate=1)\na.learning_rate = 2\n",
        "learning_rate",
        "lines 1 (learning_rate) and",
    ),
    (PythonDocument, "a = SFTConfig(seed=1)\na.learning_rate *= 2\n", "learning_rate", "is computed (a.learning_rate"),
    (PythonDocument, "a = SFTConfig(output_dir='x', **more)\n", "learning_rate", "SFTConfig takes settings from a **"),
    (PythonDocument, "a = LoraConfig(r=1)\n", "max_length", "no section is the one for it"),
    (
        PythonDocument,
        "a = TrainingArguments(group_by_length=True)\n",
        "max_length",
        "TrainingArguments does not take it",
    ),
    (PythonDocument, "learning_rate = 1e-3\nweight_decay = 0.1\n", "max_grad_norm", "no section is the one for it"),
    (
        PythonDocument,
        "c = LoraConfig(r=8, target_modules=['a', # x\n 'b'])\n",
        "target_modules",
        "a comment may stand within",
    ),
]


class TestWhatIsLeftToAPerson:
    @pytest.mark.parametrize(("kind", "text", "parameter", "reason"), BY_HAND, ids=[one[1][:40] for one in BY_HAND])
    def test_one_line_says_where_and_why(self, kind: type[Document], text: str, parameter: str, reason: str) -> None:
        value = "all-linear" if parameter == "target_modules" else 16 if parameter == "r" else 0.5
        with pytest.raises(ConfigError) as caught:
            changed(kind(text), parameter, value)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_anchor_that_nothing_takes_over_is_no_hindrance(self) -> None:
        assert (
            "learning_rate: 0.5"
            in changed(YamlDocument("train: &t\n  learning_rate: 1.0\n"), "learning_rate", 0.5).after.text
        )

    def test_an_alias_elsewhere_is_no_hindrance(self) -> None:
        text = "a: &x [1, 2]\nb: *x\nlearning_rate: 1.0\n"
        assert changed(YamlDocument(text), "learning_rate", 0.5).after.text == text.replace("1.0", "0.5")

    def test_nested_aliases_cost_no_more_than_their_text(self) -> None:
        text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
        assert (
            "learning_rate: 0.5"
            in changed(YamlDocument(text + "learning_rate: 1.0\n"), "learning_rate", 0.5).after.text
        )

    @pytest.mark.parametrize(
        ("item", "words"),
        [
            (Adjustment("learning_rate", "a third of it", "why"), True),
            (Adjustment("", "look at the data", "why"), True),
            (Adjustment("r", "half", "why", current=8), True),
            (Adjustment("optim", "paged_adamw_8bit", "why"), False),
            (Adjustment("learning_rate", 1e-4, "why"), False),
            (Adjustment("bf16", True, "why", current=False), False),
            (Adjustment("target_modules", ["q_proj"], "why"), False),
        ],
    )
    def test_words_are_told_from_values(self, item: Adjustment, words: bool) -> None:
        assert in_words(item) is words

    def test_an_edit_that_would_not_be_read_back_is_refused(self) -> None:
        class Careless(YamlDocument):
            def _with_value(self, entry: Entry, value: Any) -> str:
                return self.text.replace("1.0", "0.5")

        found = Careless("learning_rate: 1.0\nweight_decay: 1.0\n")
        with pytest.raises(ConfigError, match="would change something else too"):
            found.replace(next(found.entries), 0.5)
        with pytest.raises(ConfigError, match="would not be read back"):
            found.replace(next(found.entries), 0.25)

    def test_a_script_is_never_run(self, tmp_path: Path) -> None:
        text = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\na = SFTConfig(learning_rate=1.0)\n"
        assert "learning_rate=0.5" in changed(PythonDocument(text), "learning_rate", 0.5).after.text
        assert not (tmp_path / "ran").exists()


UNUSABLE = [
    ("c.yaml", b"learning_rate: 1\n\tmax_steps: 3\n", "line 2: not valid YAML"),
    ("c.yaml", b"a: 1\n---\nb: 2\n", "holds several documents"),
    ("c.yaml", b"- 1\n- 2\n", "the top of the file is no mapping"),
    ("c.yaml", b"", "the top of the file is no mapping"),
    ("c.yaml", b"learning_rate: \xff\n", "not UTF-8 (byte 15)"),
    ("c.yaml", "learning_rate: 1\n".encode("utf-16"), "not UTF-8"),
    ("c.yaml", b"a: " + b"[" * 3000, "nested too deeply"),
    ("c.yaml", b"a: \x00\n", "not valid YAML"),
    ("c.yaml", b"#" * 300_000, "larger than 256 KiB"),
    ("c.yaml", b"a: 1\nb: 2\n", "none of its 2 settings is a training parameter"),
    ("c.json", b'{\n  // comment\n  "learning_rate": 1}', "line 2: a comment, which JSON does not have"),
    ("c.json", b'{"learning_rate": 1,}', "line 1: not valid JSON"),
    ("c.json", b"[1]", "the top of the file is no object"),
    ("c.json", b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    ("config.json", b'{"model_type": "llama", "architectures": ["L"], "hidden_size": 8}', "a model's config.json"),
    ("adapter_config.json", b'{"r": 8}', "PEFT wrote it to go with the weights"),
    ("c.py", b"a = (\n", "line 1: not valid Python"),
    ("c.py", b"# -*- coding: latin-1 -*-\na = 1\n", "declare latin-1"),
    ("c.py", b"a = " + b"-" * 200_000 + b"1\n", "nested too deeply"),
    ("c.toml", b"learning_rate = 1\n", "neither YAML, JSON nor Python"),
]  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run the verb as the command line does; gives exit code, what it printed, and its one line of error."""
    parser = argparse.ArgumentParser()
    fix.configure(parser)
    words = (*words, "--select", "loss,sig,grad")
    try:
        code, error = fix.run(parser.parse_args([str(word) for word in words])), ""
    except UsageError as raised:
        code, error = 2, str(raised)
    return code, capsys.readouterr().out, error


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """A copy of a recorded run that was lost to a learning rate of 1."""
    return Path(shutil.copytree(RUNS / "lr-too-high", tmp_path / "run"))


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """The configuration that started it."""
    path = tmp_path / "train.yaml"
    path.write_text("# mine\nlearning_rate: 1.0   # peak\nmax_grad_norm: 1000\nuse_peft: true\n")
    return path


def console(folder: Path, *rows: str) -> Path:
    folder.mkdir()
    path = folder / "train.log"
    path.write_text("\n".join(rows) + "\n")
    return path


class TestTheVerb:
    def test_it_shows_the_next_adjustment_as_a_diff_and_writes_nothing(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = started.read_bytes()
        code, out, _ = call(capsys, lost, "--config", started)
        assert code == 0
        assert "next:  learning_rate: 1 → 0.0002" in out
        assert "[loss/at-uniform, step 6]" in out
        assert "\n-learning_rate: 1.0   # peak\n+learning_rate: 0.0002   # peak\n" in out
        assert "then:" not in out
        assert started.read_bytes() == before
        assert sorted(path.name for path in started.parent.iterdir()) == ["run", "train.yaml"]
        assert not (lost / LEDGER).exists()

    def test_all_lists_what_stands_behind_it(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out, _ = call(capsys, lost, "--config", started, "--all")
        assert "then:  max_grad_norm: 1000 → 0.3" in out

    def test_write_changes_the_file_keeps_a_backup_and_notes_it(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = started.read_bytes()
        started.chmod(0o640)
        code, out, _ = call(capsys, lost, "--config", started, "--write")
        assert code == 0
        assert started.read_bytes() == before.replace(b"1.0 ", b"0.0002 ")
        assert started.stat().st_mode & 0o777 == 0o640
        assert started.with_name("train.yaml.bak").read_bytes() == before
        assert "train.yaml.bak" in out
        (entry,) = read_ledger(lost)
        assert (entry.rule, entry.finding, entry.severity) == ("loss/at-uniform", "loss/at-uniform@6", "critical")
        assert entry.changes == (LedgerChange("learning_rate", "learning_rate", 1.0, 0.0002),)
        assert (entry.run, entry.last_step, entry.rows) == ("run", 60, 60)
        assert entry.config == str(started)
        assert entry.started is not None
        assert entry.time > entry.started > 0

    def test_the_run_is_judged_as_before_with_a_ledger_in_its_folder(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rules = RuleSet(Settings())
        before = judge([lost], rules)
        call(capsys, lost, "--config", started, "--write")
        after = judge([lost], rules)
        assert [watch.name for watch in after.runs] == [watch.name for watch in before.runs]
        assert not after.errors
        assert len(after.runs[0].engine.findings) == len(before.runs[0].engine.findings)

    def test_a_second_change_waits_until_the_first_was_tried(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        call(capsys, lost, "--config", started, "--write")
        written = started.read_bytes()
        code, out, _ = call(capsys, lost, "--config", started, "--write")
        assert code == 0
        assert "made already: learning_rate 1 → 0.0002" in out
        assert started.read_bytes() == written
        assert len(read_ledger(lost)) == 1
        code, out, _ = call(capsys, lost, "--config", started, "--again")
        assert "nothing to change: line 2 says learning_rate 0.0002 already" in out
        started.write_text("learning_rate: 1.0\n")  # taken back by hand: the ledger's change is not in force
        assert "+learning_rate: 0.0002" in call(capsys, lost, "--config", started)[1]

    def test_backups_are_numbered_and_never_written_over(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number, name in enumerate(("train.yaml.bak", "train.yaml.bak.2", "train.yaml.bak.3")):
            started.write_text(f"learning_rate: 1.0\nseed: {number}\n")
            assert call(capsys, lost, "--config", started, "--write")[0] == 0
            assert started.with_name(name).read_text() == f"learning_rate: 1.0\nseed: {number}\n"

    def test_a_script_a_json_file_and_the_other_families_are_written_too(
        self, lost: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, old, new in (
            ("trl_script.py", "LEARNING_RATE = 2e-3", "LEARNING_RATE = 2e-4"),
            ("hf_tabs.json", '"learning_rate": 0.002', '"learning_rate": 0.0002'),
            ("axolotl_lora.yaml", "learning_rate: 2e-3 ", "learning_rate: 2.0e-4 "),
            ("llamafactory_sft.yaml", "learning_rate: 1.0e-2", "learning_rate: 2.0e-4"),
        ):
            copy = tmp_path / name
            copy.write_bytes(written(name))
            before = copy.read_text()
            code, _, error = call(capsys, lost, "--config", copy, "--write")
            assert code == 2
            assert "and was 1 in the run (--force writes it)" in error
            assert copy.read_text() == before
            assert call(capsys, lost, "--config", copy, "--write", "--force")[0] == 0
            assert copy.read_text() == before.replace(old, new)

    def test_a_look_is_left_to_a_person(self, started: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = call(capsys, RUNS / "labels-masked", "--config", started)
        assert code == 1
        assert "by hand: stop the run, take one batch" in out

    def test_a_run_without_an_open_finding_needs_no_change(
        self, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, _ = call(capsys, RUNS / "healthy-sft", "--config", started)
        assert code == 0
        assert "nothing to change: no finding is open" in out

    def test_words_become_a_number_where_the_file_tells_what_the_log_does_not(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        diverging = [2.5 - index / 50 for index in range(60)] + [1.3 + index / 10 for index in range(40)]
        log = console(
            tmp_path / "run", *(f"{{'loss': {loss:.4f}, 'epoch': {n / 100}}}" for n, loss in enumerate(diverging))
        )
        path = tmp_path / "train.yaml"
        path.write_text("lora_r: 8\nlora_alpha: 16\nlearning_rate: 9e-4\n")
        code, out, _ = call(capsys, log, "--config", path)
        assert code == 0
        assert "\n-learning_rate: 9e-4\n+learning_rate: 3.0e-4\n" in out
        path.write_text("lora_r: 8\nlora_alpha: 16\n")
        code, out, _ = call(capsys, log, "--config", path)
        assert code == 1
        assert "by hand: learning_rate: a third of it; its value now is not known" in out.replace("\n       ", "")

    def test_a_file_of_another_family_than_the_run_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = Path(shutil.copytree(RUNS / "lr-too-high", tmp_path / "run"))
        rows = [json.loads(line) for line in (copy / "lorawatch.jsonl").read_text().splitlines()]
        facts = next(row for row in rows if row["type"] == "facts")
        facts["values"]["framework"] = "llamafactory"
        (copy / "lorawatch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, _, error = call(capsys, copy, "--config", FOLDER / "axolotl_lora.yaml")
        assert code == 2
        assert "has the names of axolotl, but the run is one of LLaMA-Factory" in error

    @pytest.mark.parametrize(("name", "data", "reason"), UNUSABLE, ids=[one[2][:40] for one in UNUSABLE])
    def test_a_file_that_cannot_be_used_gives_one_line(
        self, name: str, data: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        code, out, error = call(capsys, RUNS / "healthy-sft", "--config", path)
        assert (code, out) == (2, "")
        assert reason in error
        assert str(path) in error
        assert "\n" not in error
        assert len(error) < 400

    def test_no_file_a_folder_and_a_pipe_give_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(tmp_path / "pipe.yaml")
        for name, reason in (("none.yaml", "no such file"), (".", "no file"), ("pipe.yaml", "no file")):
            code, _, error = call(capsys, RUNS / "healthy-sft", "--config", tmp_path / name)
            assert code == 2
            assert reason in error

    def test_no_run_several_runs_and_several_runs_in_one_log_give_one_line(
        self, started: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        row = json.dumps({"type": "metrics", "values": {"loss": 2.0}, "step": 1})
        start = json.dumps({"type": "event", "event": "started"})
        (tmp_path / "two").mkdir()
        two = tmp_path / "two" / "lorawatch.jsonl"
        two.write_text("\n".join([start, row, start, row]) + "\n")
        for path, reason in (
            (tmp_path / "none", "no such file or folder"),
            (RUNS, "holds 11 runs (healthy-dpo, healthy-sft, healthy-trl and 8 more); give one of them"),
            (two, "holds 2 runs (lorawatch.jsonl#1, lorawatch.jsonl#2); give one of them"),
        ):
            code, _, error = call(capsys, path, "--config", started)
            assert code == 2
            assert reason in error

    def test_what_comes_from_a_file_reaches_the_terminal_only_as_text(
        self, lost: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "train.yaml"
        path.write_text("learning_rate: 1.0  # \u202ereversed\nnote: \u200bhidden\n")
        _, out, _ = call(capsys, lost, "--config", path)
        assert "\u202e" not in out
        assert "\u200b" not in out


class TestWritingWholeOrNotAtAll:
    @pytest.mark.parametrize("broken", ["replace", "open"])
    def test_a_disk_that_refuses_leaves_the_file_as_it_was(
        self, broken: str, started: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = started.read_bytes()
        file = read_config(started)
        made = changed(file.document, "learning_rate", 0.5)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(Path, broken, refuse)
            with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\); it is as it was"):
                write_config(file, made.after)
        assert started.read_bytes() == before
        assert not list(started.parent.glob(".lorawatch*"))

    def test_a_file_that_is_not_writable_is_refused(
        self, lost: Path, started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        code, _, error = call(capsys, lost, "--config", started, "--write")
        assert code == 2
        assert "not writable; nothing was changed" in error
        assert read_ledger(lost) == []

    def test_a_ledger_that_cannot_be_written_stops_it_before_anything_is_changed(
        self, lost: Path, started: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (lost / LEDGER).mkdir()
        before = started.read_bytes()
        code, _, error = call(capsys, lost, "--config", started, "--write")
        assert code == 2
        assert "nothing was changed" in error
        assert started.read_bytes() == before

    def test_a_file_that_was_changed_in_the_meantime_is_not_written_over(self, started: Path) -> None:
        file = read_config(started)
        made = changed(file.document, "learning_rate", 0.5)
        started.write_text("learning_rate: 0.7\n")
        with pytest.raises(ConfigError, match="was changed in the meantime"):
            write_config(file, made.after)
        assert started.read_text() == "learning_rate: 0.7\n"

    def test_a_link_goes_on_pointing_to_the_file(self, started: Path, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        link = tmp_path / "links" / "config.yaml"
        link.symlink_to(started)
        file = read_config(link)
        backup = write_config(file, changed(file.document, "learning_rate", 0.5).after)
        assert link.is_symlink()
        assert "learning_rate: 0.5 " in started.read_text()
        assert backup.name == "train.yaml.bak"
        assert backup.exists()


class TestTheLedger:
    @staticmethod
    def entry(**more: Any) -> LedgerEntry:
        known: dict[str, Any] = {
            "time": 2.0, "run": "r", "started": None, "last_step": 5, "rows": 5, "rule": "loss/diverging",
            "finding": "loss/diverging@3", "severity": "critical", "summary": "é \u2028", "why": "w", "apply": "resume",
            "config": "c", "backup": "b", "changes": (LedgerChange("lora_r", "r", 8, 4),), "lorawatch": "0",
        }  # fmt: skip
        return LedgerEntry(**(known | more))

    def test_what_was_written_is_read_and_hostile_or_torn_lines_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / LEDGER
        append_entry(path, self.entry())
        with path.open("ab") as opened:
            opened.write(
                b'{"type": "change", "time": NaN}\n{"type": "change", "changes": 3}\n[]\n\xff\n' + b"[" * 5000 + b"\n"
            )
            opened.write(b'{"type": "other"}\n{"type": "change", "tim')  # torn
        append_entry(path, self.entry(rows=6))
        assert read_ledger(tmp_path) == [self.entry(), self.entry(rows=6)]

    def test_no_ledger_is_no_entry(self, tmp_path: Path) -> None:
        assert read_ledger(tmp_path) == []
        assert read_ledger(tmp_path / "train.log") == []

    def test_a_log_has_its_ledger_beside_it(self, tmp_path: Path) -> None:
        append_entry(tmp_path / LEDGER, self.entry())
        (tmp_path / "train.log").touch()
        assert len(read_ledger(tmp_path / "train.log")) == 1

    def test_a_later_run_tells_whether_it_was_started_with_the_change(self) -> None:
        entries = [
            self.entry(),
            self.entry(changes=(LedgerChange("learning_rate", "learning_rate", 1e-3, 3.33e-4),)),
            self.entry(changes=(LedgerChange("bf16", "bf16", None, True), LedgerChange("fp16", "fp16", True, False))),
            self.entry(changes=(LedgerChange("target_modules", "target_modules", ["a"], ["a", "b"]),)),
        ]
        facts: dict[str, Any] = {"learning_rate": 0.000333, "bf16": True, "fp16": True, "target_modules": ["b", "a"]}
        assert [taken for _, taken in adoption(entries, facts.get)] == [None, True, False, True]
        notes = adoption_notes(entries, facts.get)
        assert notes[1] == (
            "lorawatch fix changed learning_rate 0.001 → 0.000333 for loss/diverging: "
            "the second run was started with it"
        )
        assert notes[2].startswith("lorawatch fix changed bf16 not set → True, fp16 True → False for loss/diverging")


def test_nothing_heavy_is_imported_with_the_verb() -> None:
    source = Path(fix.__file__).read_text()
    tree = ast.parse(source)
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith(("lorawatch.config_files", "torch", "yaml"))]


def test_unread_is_told_apart_from_every_value() -> None:
    found = PythonDocument("a = SFTConfig(learning_rate=f())\n")
    entry = setting_of(found, "learning_rate")
    assert entry is not None
    assert entry.value is UNREAD
    assert not same(entry.value, None)
