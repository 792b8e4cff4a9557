"""The label audit on rows of three chat templates, made by real tokenizers, collators and TRL's trainer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rich.console import Console  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402
from torch.utils.data import IterableDataset as Stream  # noqa: E402

from lorawatch.engine import Engine  # noqa: E402
from lorawatch.findings import Finding, Severity  # noqa: E402
from lorawatch.lora.label_audit import (  # noqa: E402
    IGNORED,
    MAX_PIECE,
    LabelError,
    NoLabelsError,
    audit_labels,
    audit_rich,
    audit_text,
    first_rows,
    read_markers,
    spread_rows,
)
from lorawatch.records import FactUpdate, LabelAudit, LabelledPiece  # noqa: E402
from lorawatch.registry import rule_classes  # noqa: E402
from lorawatch.run import Run  # noqa: E402

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}{% generation %}"
    "{{ message['content'] + '<end_of_turn>\n' }}{% endgeneration %}"
    "{% else %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] + '<end_of_turn>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES: dict[str, dict[str, Any]] = {
    "chatml": {
        "template": CHATML, "end": "<|im_end|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>",
        "others": ["<|im_start|>", "<|im_end|>"],
    },
    "llama": {
        "template": LLAMA, "end": "<|eot_id|>", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>", "others": ["<|start_header_id|>", "<|end_header_id|>"],
    },
    "gemma": {
        "template": GEMMA, "end": "<end_of_turn>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
        "others": ["<start_of_turn>", "<end_of_turn>"],
    },
}  # fmt: skip
WORDS = ["north", "river", "seven", "paper", "glass", "quick", "stone", "lamp", "green", "cloud", "wheel", "salt"]


@cache
def _make(name: str) -> Any:
    spec = TEMPLATES[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {one: spec[one] for one in ("bos_token", "eos_token", "pad_token") if one in spec}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.add_special_tokens({"additional_special_tokens": spec["others"]})
    made.chat_template = spec["template"]
    return made


def tokenizer_of(name: str) -> Any:
    import copy

    return copy.deepcopy(_make(name))


def chats(count: int = 64, turns: int = 1) -> list[list[dict[str, str]]]:
    dice = random.Random(7)  # noqa: S311

    def said(fewest: int, most: int) -> str:
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(fewest, most)))

    return [
        [
            {"role": role, "content": said(*size)}
            for _ in range(turns) for role, size in (("user", (2, 6)), ("assistant", (3, 9)))
        ]
        for _ in range(count)
    ]  # fmt: skip


def rows_of(tokenizer: Any, conversations: list[Any]) -> list[dict[str, list[int]]]:
    """Rows whose labels are the assistant's tokens, by the template's own mask."""
    rows = []
    for chat in conversations:
        made = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        labels = [
            one if kept else IGNORED for one, kept in zip(made["input_ids"], made["assistant_masks"], strict=True)
        ]
        rows.append({"input_ids": list(made["input_ids"]), "labels": labels})
    return rows


def collated(rows: list[Any], tokenizer: Any, size: int = 8) -> list[dict[str, Any]]:
    """Batches of transformers' own collator for rows that have labels."""
    collate = transformers.DataCollatorForSeq2Seq(tokenizer)
    return [
        dict(collate([dict(row) | {"attention_mask": [1] * len(row["input_ids"])} for row in rows[at : at + size]]))
        for at in range(0, len(rows), size)
    ]


def judged(audit: LabelAudit, **facts: Any) -> Finding | None:
    rule = next(one for one in rule_classes() if one.id == "cfg/label-audit")
    engine = Engine(Run("test"), [rule()])
    engine.feed(FactUpdate({"trainer_class": "SFTTrainer", "train_rows": 5000, **facts}, "test"))
    engine.feed(audit)
    assert not engine.rule_errors
    return engine.findings[0] if engine.findings else None


every_template = pytest.mark.parametrize("name", list(TEMPLATES))


@every_template
class TestOnEveryTemplate:
    def test_the_end_of_a_turn_is_told_from_the_template(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        markers = read_markers(tokenizer)
        assert markers.text == TEMPLATES[name]["end"]
        assert markers.ends == {tokenizer.convert_tokens_to_ids(markers.text), tokenizer.eos_token_id}

    @pytest.mark.parametrize("turns", [1, 3])
    def test_right_rows_are_silent(self, name: str, turns: int) -> None:
        tokenizer = tokenizer_of(name)
        audit = audit_labels(collated(rows_of(tokenizer, chats(turns=turns)), tokenizer), tokenizer, max_length=4096)
        assert (audit.rows, audit.ended_rows) == (64, 64)
        assert audit.trained < audit.tokens
        wrong = (
            audit.untrained_rows, audit.truncated_rows, audit.unsupervised_ends, audit.double_bos_rows,
            audit.duplicate_rows, audit.foreign_template_rows, audit.prompt_trained_rows,
        )  # fmt: skip
        assert wrong == (0,) * 7
        assert not audit.packed
        assert judged(audit) is None

    def test_right_rows_are_silent_with_padding_on_the_left(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        tokenizer.padding_side = "left"
        audit = audit_labels(collated(rows_of(tokenizer, chats()), tokenizer), tokenizer)
        assert (audit.ended_rows, audit.double_bos_rows) == (64, 0)
        assert judged(audit) is None

    def test_right_rows_are_silent_where_padding_is_the_end_token_but_is_masked_by_its_place(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        tokenizer.pad_token = TEMPLATES[name]["end"]
        audit = audit_labels(collated(rows_of(tokenizer, chats()), tokenizer), tokenizer)
        assert audit.pad_is_eos is True
        assert judged(audit) is None

    def test_a_full_mask_is_found(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        rows = [row | {"labels": [IGNORED] * len(row["labels"])} for row in rows_of(tokenizer, chats())]
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert (audit.trained, audit.untrained_rows) == (0, 64)
        finding = judged(audit)
        assert finding is not None
        assert finding.severity is Severity.CRITICAL
        assert finding.evidence["case"] == "all masked"

    def test_some_rows_without_a_trained_token_are_found(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        rows = rows_of(tokenizer, chats())
        rows[:8] = [row | {"labels": [IGNORED] * len(row["labels"])} for row in rows[:8]]
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert audit.untrained_rows == 8
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.WARNING, "untrained rows")

    @pytest.mark.parametrize("turns", [1, 3])
    def test_masked_end_tokens_are_found(self, name: str, turns: int) -> None:
        tokenizer = tokenizer_of(name)
        end = tokenizer.convert_tokens_to_ids(TEMPLATES[name]["end"])
        rows = [
            row | {"labels": [IGNORED if one == end else one for one in row["labels"]]}
            for row in rows_of(tokenizer, chats(turns=turns))
        ]
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert (audit.ended_rows, audit.unsupervised_ends) == (64, 64)
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.CRITICAL, "end masked")
        assert "end-of-turn" in str(finding.adjustments[0].proposed)

    def test_padding_by_the_end_token_is_found_where_it_masks_the_ends(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        tokenizer.pad_token = TEMPLATES[name]["end"]
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)  # masks labels by the padding's id
        rows = [{"input_ids": row["input_ids"]} for row in rows_of(tokenizer, chats())]
        audit = audit_labels(first_rows(rows, collate), tokenizer)
        assert (audit.pad_is_eos, audit.unsupervised_ends) == (True, 64)
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.CRITICAL, "end masked")
        assert finding.adjustments[0].parameter == "pad_token"

    def test_padding_by_the_end_token_is_found_where_the_attention_mask_hides_the_ends(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        tokenizer.pad_token = TEMPLATES[name]["end"]
        pad = tokenizer.pad_token_id

        def collate(rows: list[Any]) -> dict[str, Any]:  # as in Alpaca's train.py, but for its row of one length
            ids = [torch.tensor(row["input_ids"]).ravel() for row in rows]
            ids = [one[: one.tolist().index(pad, len(one) - 3) + 1] for one in ids]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
            return {
                "input_ids": padded, "attention_mask": padded.ne(pad), "labels": padded.masked_fill(padded == pad, -100)
            }  # fmt: skip

        audit = audit_labels(first_rows(rows_of(tokenizer, chats()), collate), tokenizer)
        assert audit.unsupervised_ends > 32
        finding = judged(audit)
        assert finding is not None
        assert finding.adjustments[0].parameter == "pad_token"

    @pytest.mark.parametrize("told", [True, False])
    def test_truncation_is_found(self, name: str, told: bool) -> None:
        tokenizer = tokenizer_of(name)
        rows = rows_of(tokenizer, chats())
        limit = sorted(len(row["input_ids"]) for row in rows)[44]
        cut = [{key: value[:limit] for key, value in row.items()} for row in rows]
        audit = audit_labels(collated(cut, tokenizer), tokenizer, max_length=limit if told else None)
        assert audit.max_length == limit
        end = tokenizer.convert_tokens_to_ids(TEMPLATES[name]["end"])
        lost = [end in row["input_ids"][limit:] for row in rows]  # not where a line break after it is cut off alone
        assert audit.truncated_rows == sum(lost) > 10
        finding = judged(audit, max_length=limit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.WARNING, "cut off")
        assert (finding.adjustments[0].parameter, finding.adjustments[0].proposed) == ("max_length", 2 * limit)

    def test_two_bos_tokens_are_found(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        tokenizer.bos_token = tokenizer.bos_token or "<|endoftext|>"
        begin = tokenizer.bos_token_id
        rows = [
            {"input_ids": [begin, *ids], "labels": [IGNORED, *row["labels"]]}
            for row in rows_of(tokenizer, chats())
            for ids in [row["input_ids"] if row["input_ids"][0] == begin else [begin, *row["input_ids"]][1:]]
        ]
        if name == "chatml":  # whose template writes none
            assert audit_labels(collated(rows, tokenizer), tokenizer).double_bos_rows == 0
            rows = [{"input_ids": [begin, *row["input_ids"]], "labels": [IGNORED, *row["labels"]]} for row in rows]
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert audit.double_bos_rows == 64
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.WARNING, "double bos")

    def test_replies_without_an_end_token_are_found(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        end = tokenizer.convert_tokens_to_ids(TEMPLATES[name]["end"])
        rows = []
        for row in rows_of(tokenizer, chats()):
            last = len(row["input_ids"]) - 1 - row["input_ids"][::-1].index(end)
            rows.append({key: value[:last] for key, value in row.items()})
        audit = audit_labels(collated(rows, tokenizer), tokenizer, max_length=4096)
        assert (audit.ended_rows, audit.truncated_rows) == (0, 0)
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.WARNING, "no end")

    def test_turns_of_another_template_are_found(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        other = tokenizer_of({"chatml": "llama", "llama": "gemma", "gemma": "chatml"}[name])
        texts = [other.apply_chat_template(chat, tokenize=False) + tokenizer.eos_token for chat in chats()]
        rows = [{"input_ids": ids, "labels": ids} for text in texts for ids in [tokenizer.encode(text)]]
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert audit.foreign_template_rows == 64
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.WARNING, "other template")

    def test_copies_are_counted(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        audit = audit_labels(collated(rows_of(tokenizer, chats(24) * 3), tokenizer), tokenizer)
        assert audit.duplicate_rows == 40
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.WARNING, "copies")

    def test_a_prompt_that_is_trained_on_is_information(self, name: str) -> None:
        tokenizer = tokenizer_of(name)
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows_of(tokenizer, chats())]
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert (audit.prompt_trained_rows, audit.ended_rows, audit.unsupervised_ends) == (64, 64, 0)
        finding = judged(audit)
        assert finding is not None
        assert (finding.severity, finding.evidence["case"]) == (Severity.INFO, "prompt trained")


@pytest.fixture(scope="module", params=list(TEMPLATES))
def sft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes TRL's trainer for a template: it tokenizes, masks, cuts and packs the rows."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    name = request.param

    def make(**arguments: Any) -> Any:
        tokenizer = tokenizer_of(name)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **size))
        chosen = chats(80)
        data = datasets.Dataset.from_list([{"prompt": one[:1], "completion": one[1:]} for one in chosen])
        config = trl.SFTConfig(
            output_dir=str(tmp_path_factory.mktemp("sft")), report_to="none", use_cpu=True, bf16=False,
            disable_tqdm=True, **arguments,
        )  # fmt: skip
        return trl.SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)

    return make


@pytest.mark.filterwarnings("ignore")
class TestOnTrlsTrainer:
    def test_completions_are_silent(self, sft: Callable[..., Any]) -> None:
        trainer = sft(max_length=1024)
        audit = audit_labels(spread_rows(trainer.get_train_dataloader()), trainer.processing_class, max_length=1024)
        assert (audit.rows, audit.ended_rows, audit.unsupervised_ends) == (64, 64, 0)
        assert judged(audit, max_length=1024) is None

    def test_a_short_max_length_is_found(self, sft: Callable[..., Any]) -> None:
        trainer = sft(max_length=90)
        audit = audit_labels(first_rows(trainer.get_train_dataloader()), trainer.processing_class, max_length=90)
        assert audit.truncated_rows > 6
        finding = judged(audit, max_length=90)
        assert finding is not None
        assert "cut off" in finding.evidence["signs"]

    def test_packed_rows_are_looked_at_one_by_one(self, sft: Callable[..., Any]) -> None:
        import inspect

        from trl.trainer import sft_trainer

        if "padding_free" not in inspect.signature(sft_trainer.DataCollatorForLanguageModeling).parameters:
            pytest.skip("this TRL packs without telling where examples begin")
        trainer = sft(max_length=512, packing=True)
        audit = audit_labels(first_rows(trainer.get_train_dataloader()), trainer.processing_class, max_length=512)
        assert audit.packed
        assert audit.rows == 64
        assert (audit.ended_rows, audit.unsupervised_ends, audit.double_bos_rows) == (64, 0, 0)
        assert judged(audit, max_length=512, packing=True) is None


def chatml_rows(count: int = 64) -> tuple[Any, list[dict[str, list[int]]]]:
    tokenizer = tokenizer_of("chatml")
    return tokenizer, rows_of(tokenizer, chats(count))


class TestForms:
    def test_packed_rows_are_told_by_positions_lengths_boundaries_and_numbered_masks(self) -> None:
        tokenizer, rows = chatml_rows(6)
        ids = [one for row in rows for one in row["input_ids"]]
        labels = [one for row in rows for one in row["labels"]]
        lengths = [len(row["input_ids"]) for row in rows]
        starts = [sum(lengths[:at]) for at in range(7)]
        forms: list[dict[str, Any]] = [
            {"position_ids": torch.tensor([[at for length in lengths for at in range(length)]])},
            {"cu_seq_lens_q": torch.tensor(starts, dtype=torch.int32)},
            {"seq_lengths": [lengths]},
            {"attention_mask": [[at + 1 for at, length in enumerate(lengths) for _ in range(length)]]},
        ]
        alone = audit_labels(collated(rows, tokenizer), tokenizer)
        for form in forms:
            audit = audit_labels(
                [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), **form}], tokenizer
            )
            assert audit.packed, form
            assert (audit.rows, audit.ended_rows, audit.trained) == (6, 6, alone.trained), form

    def test_a_mask_of_four_dimensions_and_multimodal_positions_are_left_alone(self) -> None:
        tokenizer, rows = chatml_rows(2)
        batch = collated(rows, tokenizer)[0]
        width = batch["input_ids"].shape[1]
        batch |= {"attention_mask": torch.ones(2, 1, width, width), "position_ids": torch.zeros(3, 2, width)}
        audit = audit_labels([batch], tokenizer)
        assert (audit.rows, audit.ended_rows, audit.packed) == (2, 2, False)

    def test_lists_and_arrays_count_like_tensors(self) -> None:
        tokenizer, rows = chatml_rows(8)
        batch = collated(rows, tokenizer)[0]
        audits = [
            audit_labels([{key: change(value) for key, value in batch.items()}], tokenizer)
            for change in (
                lambda one: one,
                lambda one: one.tolist(),
                lambda one: one.numpy(),
                lambda one: list(one.numpy()),
            )
        ]
        assert all(one == audits[0] for one in audits)

    def test_without_a_mask_padding_at_the_ends_is_left_out(self) -> None:
        tokenizer, rows = chatml_rows(8)
        batch = collated(rows, tokenizer)[0]
        assert audit_labels([{k: v for k, v in batch.items() if k != "attention_mask"}], tokenizer) == audit_labels(
            [batch], tokenizer
        )

    def test_no_more_than_64_rows_are_looked_at(self) -> None:
        tokenizer, rows = chatml_rows(8)
        batch, asked = collated(rows, tokenizer)[0], []

        def forever() -> Iterator[Any]:
            while True:
                asked.append(1)
                yield batch

        assert audit_labels(forever(), tokenizer).rows == 64
        assert len(asked) == 8

    def test_blocks_of_a_long_text_are_no_cut_off_rows(self) -> None:
        tokenizer = tokenizer_of("chatml")
        dice = random.Random(3)  # noqa: S311
        blocks = [[dice.randrange(256) for _ in range(128)] for _ in range(64)]
        audit = audit_labels([{"input_ids": blocks, "labels": blocks}], tokenizer)
        assert (audit.truncated_rows, audit.max_length) == (0, None)
        assert judged(audit) is None

    def test_rows_that_go_on_in_another_row_are_no_cut_off_rows(self) -> None:
        tokenizer, rows = chatml_rows()
        cut = [{key: value[:40] for key, value in row.items()} for row in rows]
        batches = collated(cut, tokenizer)
        assert audit_labels(batches, tokenizer, max_length=40, cuts=False).truncated_rows == 0
        assert audit_labels(batches, tokenizer, max_length=40).truncated_rows > 32

    def test_a_bare_tokenizer_is_enough(self) -> None:
        tokenizer, rows = chatml_rows(40)
        tokenizer.chat_template = tokenizer.eos_token = tokenizer.pad_token = None
        rows = [{key: value[:30] for key, value in row.items()} for row in rows]
        audit = audit_labels([{key: [row[key] for row in rows] for key in rows[0]}], tokenizer)
        assert (audit.rows, audit.pad_is_eos, audit.marker, audit.ended_rows) == (40, None, "", 0)
        assert audit_text(audit)

    def test_no_tokenizer_is_enough(self) -> None:
        audit = audit_labels([{"input_ids": [[5, 6, 7]] * 3, "labels": [[IGNORED, 6, 7]] * 3}])
        assert (audit.rows, audit.trained, audit.duplicate_rows) == (3, 6, 2)
        assert audit.examples[0] == [
            LabelledPiece("(1 tokens)", trained=False),
            LabelledPiece("(2 tokens)", trained=True),
        ]

    def test_a_processor_is_taken_by_its_tokenizer(self) -> None:
        tokenizer, rows = chatml_rows(8)

        class Processor:
            chat_template = tokenizer.chat_template

            def __init__(self) -> None:
                self.tokenizer = tokenizer

            def apply_chat_template(self, messages: Any, **options: Any) -> list[str]:
                if isinstance(messages[0]["content"], str):
                    raise TypeError("content must be a list of parts")
                plain = [one | {"content": one["content"][0]["text"]} for one in messages]
                return [tokenizer.apply_chat_template(plain, **options)]

        assert read_markers(Processor()) == read_markers(tokenizer)
        batches = collated(rows, tokenizer)
        assert audit_labels(batches, Processor()) == audit_labels(batches, tokenizer)

    def test_a_template_that_fails_leaves_the_end_of_sequence_token(self) -> None:
        tokenizer, _ = chatml_rows(1)
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        assert read_markers(tokenizer).ends == {tokenizer.eos_token_id}

    @pytest.mark.parametrize(
        ("batches", "error", "words"),
        [
            ([{"input_ids": [[1, 2]]}], NoLabelsError, "no labels"),
            ([{"input_ids": [[1, 2]], "labels": None}], NoLabelsError, "no labels"),
            ([[{"prompt": "x"}]], NoLabelsError, "no mapping"),
            ([{"labels": [[1]]}], LabelError, "no input_ids"),
            ([{"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]}], LabelError, "not one a token"),
            ([{"input_ids": [[1, 2, 3]], "labels": [[4, 5]]}], LabelError, "not one a token"),
            ([{"input_ids": [[1, 2, 3]] * 4, "labels": [[2, 3, IGNORED]] * 4}], LabelError, "shifted"),
            ([{"input_ids": [[0.5, 0.1]], "labels": [[0.5, 0.1]]}], LabelError, "whole numbers"),
            ([], LabelError, "no rows"),
        ],
    )
    def test_what_cannot_be_judged_says_so_in_a_line(self, batches: Any, error: type, words: str) -> None:
        with pytest.raises(error, match=words) as raised:
            audit_labels(batches)
        assert "\n" not in str(raised.value)


class Rows:
    """A data set that draws random numbers, as one that augments its rows does."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        _ = random.random(), np.random.rand(), torch.rand(1)  # noqa: S311
        return self._rows[index]


class TestRows:
    def test_neither_random_states_nor_the_loader_change(self) -> None:
        tokenizer, rows = chatml_rows(48)
        collate = transformers.DataCollatorForSeq2Seq(tokenizer)

        def order(*, look: bool) -> list[Any]:
            _ = random.seed(1), np.random.seed(1), torch.manual_seed(1)
            loader: Any = DataLoader(Rows(rows), batch_size=8, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
            if look:
                audit_labels(first_rows(loader), tokenizer)
            seen = [batch["input_ids"].tolist() for batch in loader]
            return [seen, random.random(), float(np.random.rand()), float(torch.rand(1))]  # noqa: S311

        assert order(look=True) == order(look=False)

    def test_rows_come_by_index_in_batches_of_the_loaders_size(self) -> None:
        data = Rows(list(range(640)))
        loader: Any = DataLoader(data, batch_size=24, shuffle=True, collate_fn=list)  # type: ignore[arg-type]
        batches = first_rows(loader)
        assert [len(one) for one in batches] == [24, 24, 16]
        assert data.asked == list(range(64))

    def test_spread_rows_reach_over_the_whole_data_set(self) -> None:
        data = Rows(list(range(1000)))
        batches = spread_rows(data, list)
        assert [one for batch in batches for one in batch] == data.asked
        assert data.asked[0] == 0
        assert data.asked[-1] >= 980
        assert {two - one for one, two in pairwise(data.asked)} == {15, 16}

    def test_a_small_data_set_is_looked_at_whole_and_once(self) -> None:
        data = Rows(list(range(10)))
        assert [one for batch in spread_rows(data, list) for one in batch] == list(range(10))

    def test_a_subset_is_a_data_set_of_its_own(self) -> None:
        assert first_rows(Subset(list(range(10)), [3, 5]), list) == [[3, 5]]  # type: ignore[arg-type]

    def test_a_stream_is_left_alone(self) -> None:
        class Numbers(Stream[int]):
            def __iter__(self) -> Iterator[int]:
                raise AssertionError("used up")

        for source in (Numbers(), DataLoader(Numbers()), iter([1])):
            with pytest.raises(LabelError, match="stream"):
                first_rows(source, list)

    def test_what_fails_in_the_data_set_or_the_collator_is_one_line(self) -> None:
        def broken(rows: list[Any]) -> Any:
            raise ValueError("two\nlines \x1b[31m")

        with pytest.raises(LabelError, match="cannot be collated: ValueError: two lines") as raised:
            first_rows([1, 2], broken)
        assert "\x1b" not in str(raised.value)
        with pytest.raises(LabelError, match="no rows"):
            first_rows([], list)
        with pytest.raises(LabelError, match="no collator"):
            first_rows([1])


def shown(audit: LabelAudit, **options: Any) -> str:
    console = Console(width=200, force_terminal=True, legacy_windows=False, **options)
    with console.capture() as capture:
        for line in audit_rich(audit, colored=console.color_system is not None and not console.no_color):
            console.print(line)
    return capture.get()


class TestView:
    def test_three_rows_stand_with_trained_and_masked_tokens_told_apart(self) -> None:
        tokenizer, rows = chatml_rows()
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert len(audit.examples) == 3
        text = audit_text(audit)
        assert text[-3].startswith("  1. <|im_start|>user↵")
        assert all(line.count("⟦") == 1 and line.rstrip("↵").endswith("<|im_end|>⟧") for line in text[-3:])
        whole = "".join(piece.text for piece in audit.examples[0])
        assert whole == tokenizer.decode(rows[0]["input_ids"])

    def test_rows_with_trouble_are_shown_before_others(self) -> None:
        tokenizer, rows = chatml_rows()
        rows[50]["labels"] = [IGNORED] * len(rows[50]["labels"])
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        assert [len(pieces) for pieces in audit.examples].count(1) == 1

    def test_colour_tells_them_apart_where_there_is_one_and_brackets_where_there_is_none(self) -> None:
        tokenizer, rows = chatml_rows(4)
        audit = audit_labels(collated(rows, tokenizer), tokenizer)
        coloured = shown(audit, color_system="standard")
        assert "\x1b[1;32m" in coloured
        assert "⟦" not in coloured
        plain = shown(audit, color_system=None)
        assert "\x1b" not in plain
        assert "⟦" in plain

    def test_hostile_text_cannot_act_on_a_terminal(self) -> None:
        text = "\x1b[2J[red]x[/red]\u202e⟧ trained\r\nnew\x07\ud800"
        audit = LabelAudit(1, 9, 3, examples=[[LabelledPiece(text, trained=False)]], marker="\x1b]0;x\x07")
        for line in ("\n".join(audit_text(audit)), shown(audit, color_system=None)):
            assert not any(char in line for char in "\x1b\x07\r\u202e\ud800")
            assert "[red]x[/red]" in line
            assert line.count("⟧") == 1

    def test_pieces_are_bounded_and_keep_their_ends(self) -> None:
        tokenizer = tokenizer_of("chatml")
        ids = tokenizer.encode("<|im_start|>" + "word " * 5000 + "<|im_end|>")
        ids = ids + tokenizer.encode("ab" * 400)
        labels = [*ids[:-800], *(one if at % 2 else IGNORED for at, one in enumerate(ids[-800:]))]
        audit = audit_labels([{"input_ids": [ids], "labels": [labels]}], tokenizer)
        pieces = audit.examples[0]
        assert len(pieces) == 25
        assert all(len(piece.text) <= MAX_PIECE for piece in pieces)
        assert pieces[0].text.startswith("<|im_start|>word")
        assert pieces[0].text.endswith("<|im_end|>")
