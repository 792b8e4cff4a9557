"""Looks at what a model says while it trains: the numbers are right, nothing is disturbed, time is kept to."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import datasets  # type: ignore[import-untyped]  # noqa: E402
import numpy as np  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from trl.trainer.sft_config import SFTConfig  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from lorawatch.lora.generations import (  # noqa: E402
    GenerationLooks,
    _Cost,
    probes_of_run,
    undisturbed,
    why_no_base,
    why_not,
)
from lorawatch.lora.probes import ProbeSet, built_in, general_probes, task_probes  # noqa: E402
from lorawatch.records import Sample, SampleReading  # noqa: E402
from lorawatch.trainer.base_model import TINY_FOLDER  # noqa: E402
from lorawatch.trainer.builtin_data import general_passages, sft_rows  # noqa: E402
from tests.real_training import THIRD_PARTY  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(line) for line in THIRD_PARTY]


def _base() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY_FOLDER, dtype=torch.float32)


def _adapted(**more: Any) -> Any:
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.1,
    }
    return get_peft_model(_base(), LoraConfig(**(config | more)))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY_FOLDER)


@pytest.fixture(scope="module")
def probes(tokenizer: Any) -> ProbeSet:
    task = task_probes(sft_rows(12, seed=0, split="test"), tokenizer, 4)
    return ProbeSet(task, general_probes()[:4], tuple(general_passages(4)))


@pytest.fixture(scope="module")
def moved() -> Any:
    """A model whose adapter says something else than its base."""
    model = _adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    return model.train()


@pytest.fixture(scope="module")
def reading(moved: Any, tokenizer: Any, probes: ProbeSet) -> SampleReading:
    looks = _free(probes)
    found = looks.look(moved, tokenizer, 100)
    assert found is not None, looks.why_not
    return found


def _free(probes: ProbeSet, **more: Any) -> GenerationLooks:
    """Looks that may take all the time they want."""
    return GenerationLooks(probes, share=1e9, **more)


class _Looks(TrainerCallback):
    def __init__(self, looks: GenerationLooks, tokenizer: Any) -> None:
        self.looks, self.tokenizer = looks, tokenizer
        self.seen: list[SampleReading] = []
        self.prompts: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found, _ = probes_of_run("", [None, kwargs["train_dataloader"].dataset], self.tokenizer)
        self.prompts = [one.prompt for one in found.task]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = self.looks.look(kwargs["model"], self.tokenizer, state.global_step)
        if found is not None:
            self.seen.append(found)


class _Draws(TrainerCallback):
    """What a careless look would do: one random number at step 2."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            torch.rand(1)


def _train(folder: Path, tokenizer: Any, steps: int, *callbacks: Any) -> dict[str, Any]:
    """Adapter weights after some real steps, with dropout and activation checkpointing on."""
    torch.manual_seed(11)
    trainer = SFTTrainer(
        model=_base(),
        args=SFTConfig(
            str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=2e-3, logging_steps=10,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=5, max_length=96,
            activation_checkpointing=True, dataloader_pin_memory=False, bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list(sft_rows(120, seed=1)),
        processing_class=tokenizer, callbacks=list(callbacks),
        peft_config=LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    trainer.train()
    model: Any = trainer.model
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def test_50_steps_give_bit_identical_weights_with_and_without_looks(
    tmp_path: Path, tokenizer: Any, probes: ProbeSet
) -> None:
    datasets.disable_progress_bars()
    looks = _Looks(_free(probes, every=10, max_new_tokens=32), tokenizer)
    without = _train(tmp_path / "without", tokenizer, 50)
    beside = _train(tmp_path / "with", tokenizer, 50, looks)
    assert [one.step for one in looks.seen] == [10, 20, 30, 40, 50], looks.looks.why_not
    assert looks.prompts[:3] == [row["messages"][-2]["content"] for row in sft_rows(3, seed=1)]
    assert looks.seen[0].kl != looks.seen[-1].kl, "it did not train"
    assert without.keys() == beside.keys()
    assert all(torch.equal(without[name], beside[name]) for name in without)


def test_one_drawn_number_would_show_in_the_weights(tmp_path: Path, tokenizer: Any) -> None:
    datasets.disable_progress_bars()
    one, other = _train(tmp_path / "a", tokenizer, 4), _train(tmp_path / "b", tokenizer, 4, _Draws())
    assert not all(torch.equal(one[name], other[name]) for name in one)


def _state(model: Any) -> tuple[Any, ...]:
    inner = model.get_base_model()
    arrays: Any = np.random.get_state()
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [module._disable_adapters for module in model.modules() if hasattr(module, "_disable_adapters")],
        id(inner.generation_config), inner.generation_config.to_dict(), inner.config.use_cache,
        [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        [getattr(module, "max_seq_len_cached", None) for module in model.modules()],
        random.getstate(), torch.get_rng_state().tolist(), arrays[1].tolist(),
    )  # fmt: skip


@pytest.fixture
def odd() -> Any:
    """A model in a state that no plain ``train()`` or ``enable_adapter`` would give back."""
    model = _adapted().train()
    inner = model.get_base_model()
    inner.gradient_checkpointing_enable()
    inner.config.use_cache = False
    inner.model.layers[1].eval()
    for name, parameter in model.named_parameters():
        if "layers.0" in name and "lora_A" in name:
            parameter.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = 777
    return model


def test_everything_is_as_it_was_after_a_look(odd: Any, tokenizer: Any, probes: ProbeSet) -> None:
    before = _state(odd)
    side = tokenizer.padding_side
    found = _free(probes, mixed_precision="bf16").look(odd, tokenizer, 100)
    assert found is not None
    assert found.kl is not None
    assert _state(odd) == before
    assert tokenizer.padding_side == side


def test_everything_is_as_it_was_after_a_look_that_failed(
    odd: Any, tokenizer: Any, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = odd.get_base_model()

    def fails(**_: Any) -> None:
        torch.rand(3)
        random.random()  # noqa: S311
        np.random.rand()
        inner.config.use_cache = True
        raise RuntimeError("no luck")

    before = _state(odd)
    monkeypatch.setattr(inner, "generate", fails)
    looks = _free(probes)
    assert looks.look(odd, tokenizer, 100) is None
    assert looks.why_not == "sample generations failed at step 100: RuntimeError: no luck"
    monkeypatch.undo()
    assert _state(odd) == before
    assert looks.look(odd, tokenizer, 200) is None, "it is not tried again"


def test_an_interrupt_passes_and_leaves_the_model_as_it_was(odd: Any) -> None:
    before = _state(odd)

    def interrupted() -> None:
        with undisturbed(odd), odd.disable_adapter():
            assert not any(module.training for module in odd.modules())
            torch.rand(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _state(odd) == before


def test_a_reading_holds_both_models_replies_to_the_same_prompts(reading: SampleReading, probes: ProbeSet) -> None:
    asked = [one.prompt for one in (*probes.task, *probes.general)]
    assert [one.prompt for one in reading.samples] == asked == [one.prompt for one in reading.base]
    assert [one.output for one in reading.samples] != [one.output for one in reading.base]
    assert all(one.reference_tokens for one in reading.samples[:4])
    assert all(one.right is not None for one in reading.samples[4:])
    assert reading.max_new_tokens == 2 * max(one.reference_tokens or 0 for one in reading.samples)


def test_replies_are_those_of_a_plain_greedy_search(
    reading: SampleReading, moved: Any, tokenizer: Any, probes: ProbeSet
) -> None:
    moved.eval()
    chat = [dict(one) for one in probes.task[0].messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    for said, context in ((reading.samples[0], None), (reading.base[0], moved.disable_adapter())):
        if context is None:
            ids = moved.generate(**batch, max_new_tokens=reading.max_new_tokens, do_sample=False)
        else:
            with context:
                ids = moved.generate(**batch, max_new_tokens=reading.max_new_tokens, do_sample=False)
        new = ids[0, batch["input_ids"].shape[1] :]
        assert said.output == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert said.ended == (int(new[-1]) == tokenizer.eos_token_id)
    moved.train()


def test_divergence_perplexity_and_log_probability_are_those_of_their_definitions(
    reading: SampleReading, moved: Any, tokenizer: Any, probes: ProbeSet
) -> None:
    total = tokens = 0.0
    with undisturbed(moved):
        for probe in probes.task:
            chat = [dict(one) for one in probe.messages]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([prompt + tokenizer(probe.reference, add_special_tokens=False)["input_ids"]])
            tuned = moved(input_ids=ids).logits[0].log_softmax(-1)
            with moved.disable_adapter():
                base = moved(input_ids=ids).logits[0].log_softmax(-1)
            each = torch.nn.functional.kl_div(tuned, base, log_target=True, reduction="none").sum(-1)
            total += float(each[len(prompt) - 1 : -1].sum())
            tokens += ids.shape[1] - len(prompt)
        assert reading.kl == pytest.approx(total / tokens, rel=1e-4)
        losses, sizes = [], []
        for passage in probes.passages:
            ids = tokenizer(passage, return_tensors="pt")["input_ids"]
            losses.append(float(moved(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
            sizes.append(ids.shape[1] - 1)
        assert reading.perplexity == pytest.approx(float(np.exp(sum(losses) / sum(sizes))), rel=1e-4)
        assert reading.base_perplexity is not None
        assert (reading.perplexity or 0.0) > reading.base_perplexity
        said = reading.samples[0]
        reply = tokenizer(said.output, add_special_tokens=False)["input_ids"]
        if len(reply) == said.tokens:  # else the text has another spelling in tokens than the model's own
            chat = [dict(one) for one in probes.task[0].messages]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            with moved.disable_adapter():
                logits = moved(input_ids=torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
            picked = [float(logits[len(prompt) - 1 + at, one]) for at, one in enumerate(reply)]
            assert said.logprob == pytest.approx(sum(picked) / len(picked), rel=1e-3)


def test_garbage_is_what_the_base_model_would_never_say(tokenizer: Any, probes: ProbeSet) -> None:
    model = _adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    found = _free(probes).look(model, tokenizer, 100)
    assert found is not None

    def mean(samples: list[Sample]) -> float:
        known = [one.logprob for one in samples if one.logprob is not None]
        return sum(known) / len(known)

    assert mean(found.samples) < -6.0
    assert mean(found.base) > -2.5


def test_a_later_reading_holds_no_base_replies_and_a_new_adapter_diverges_by_nothing(
    tokenizer: Any, probes: ProbeSet
) -> None:
    model, looks = _adapted(), _free(probes)
    first, second = looks.look(model, tokenizer, 100), looks.look(model, tokenizer, 200)
    assert first is not None
    assert second is not None
    assert first.kl == second.kl == 0.0
    assert (len(first.base), len(second.base)) == (8, 0)
    assert [one.output for one in second.samples] == [one.output for one in first.base]
    assert looks.look(model, tokenizer, 299) is None
    assert looks.look(model, tokenizer, 300) is not None


def test_a_penalty_in_the_generation_configuration_does_not_hide_loops(
    reading: SampleReading, moved: Any, tokenizer: Any, probes: ProbeSet
) -> None:
    config = moved.get_base_model().generation_config
    config.repetition_penalty = 3.0
    try:
        found = _free(probes).look(moved, tokenizer, 100)
    finally:
        config.repetition_penalty = None
    assert found is not None
    assert [one.output for one in found.samples] == [one.output for one in reading.samples]


def test_without_a_chat_template_or_padding_token_questions_are_asked_as_text(moved: Any, probes: ProbeSet) -> None:
    plain = AutoTokenizer.from_pretrained(TINY_FOLDER)
    plain.chat_template = plain.pad_token = None
    found = _free(probes).look(moved, plain, 100)
    assert found is not None
    assert len(found.samples) == 8


def test_without_an_adapter_there_are_replies_but_no_base(tokenizer: Any, probes: ProbeSet) -> None:
    looks = _free(probes)
    found = looks.look(_base(), tokenizer, 100)
    assert found is not None
    assert (found.base, found.kl, found.base_perplexity) == ([], None, None)
    assert found.perplexity is not None
    assert looks.why_no_base == "there is no adapter that could be switched off"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the base weights"),
        ({"bias": "all"}, "bias='all' trains the base model's biases"),
        ({"modules_to_save": ["norm"], "target_modules": ["q_proj"]}, ""),
        ({"use_dora": True}, ""),
    ],
)
def test_the_base_model_is_only_had_where_the_adapter_alone_makes_the_difference(
    options: dict[str, Any], reason: str
) -> None:
    assert why_no_base(_adapted(**options)) == reason


def test_the_base_model_is_not_had_where_it_trains_or_is_merged() -> None:
    model = _adapted()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    assert "norm.weight of the base model trains, too" in why_no_base(model)
    model = _adapted()
    model.merge_adapter()
    assert why_no_base(model) == "the adapter is merged into the base weights"


def _sharded() -> Any:
    kind = type("FullyShardedDataParallel", (torch.nn.Module,), {})
    model = kind()
    model.inside = torch.nn.Linear(2, 2)
    return model


def _zero3() -> Any:
    model = torch.nn.Linear(2, 2)
    model.weight.ds_id = 1
    return model


def _compiled() -> Any:
    model = _base()
    model.compile(backend="eager")
    return model


def _translator() -> Any:
    return T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: None, "need the model"),
        (_sharded, "is sharded"),
        (_zero3, "is sharded"),
        (_compiled, "is compiled"),
        (_translator, "decoder-only"),
        (lambda: torch.nn.Linear(2, 2), "Linear generates no text"),
        (lambda: torch.nn.Linear(2, 2, device="meta"), "Linear generates no text"),
    ],
)
def test_what_cannot_be_asked_is_left_alone_with_a_reason(
    make: Callable[[], Any], words: str, tokenizer: Any, probes: ProbeSet
) -> None:
    looks = _free(probes)
    assert looks.look(make(), tokenizer, 100) is None
    assert words in looks.why_not


def test_several_processes_are_left_alone_with_a_reason(
    tokenizer: Any, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert "several processes" in why_not(_base(), tokenizer, probes)


def test_without_a_tokenizer_or_prompts_there_is_a_reason(probes: ProbeSet, tokenizer: Any) -> None:
    assert "tokenizer" in why_not(_base(), None, probes)
    assert why_not(_base(), tokenizer, ProbeSet()) == "there is no prompt to ask"


class _Dice:
    """Rows that are made anew whenever they are asked for."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": f"{index} {random.random()} {float(torch.rand(1))}"}  # noqa: S311


def test_prompts_come_from_a_file_or_the_first_data_that_has_some(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Hello")
    assert [one.prompt for one in probes_of_run(str(file), [], tokenizer)[0].task] == ["Hello"]
    before = random.getstate(), torch.get_rng_state().tolist()
    found, why = probes_of_run("", [None, [{"text": "no prompt"}], _Dice()], tokenizer)
    assert (len(found.task), why) == (3, "")
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    found, why = probes_of_run("", [None, iter([])], tokenizer)
    assert (found.task, len(found.general)) == ((), 50)
    assert why.startswith("the data is a stream")


@dataclass
class _Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class _Timed(GenerationLooks):
    """Looks that cost seconds of a clock instead of work: two a prompt, a tenth a passage, a tenth a question."""

    real = _Cost(2.0, 0.1, 0.1)

    def __init__(self, probes: ProbeSet, clock: _Clock) -> None:
        super().__init__(probes, clock=clock)
        self.time = clock
        self.asked: list[tuple[int, int]] = []

    def _trial(self, speaker: Any) -> _Cost:
        self.time.now += 1.0
        return self.real

    def _ask(self, speaker: Any, step: int) -> SampleReading:
        plan = self._plan()
        assert plan is not None
        cost = self.real.of(*plan, len(self._probes.general))
        if self._base is None:
            cost *= 2
            self._base = object()  # type: ignore[assignment]
        self.time.now += cost
        self.asked.append(plan)
        return SampleReading(step, [])


@pytest.fixture
def large(tokenizer: Any) -> ProbeSet:
    return built_in(task_probes(sft_rows(40, seed=0, split="test"), tokenizer))


def _steps(looks: _Timed, tokenizer: Any, *, seconds: float, count: int) -> Iterator[int]:
    """Steps at which looks were taken of a model that takes ``seconds`` for a step."""
    model, clock = _adapted(), looks.time
    for step in range(1, count + 1):
        clock.now += seconds
        if looks.look(model, tokenizer, step) is not None:
            yield step
        assert looks.seconds <= max(0.02 * clock.now, 1.0) + 1e-6, f"step {step}"


@pytest.mark.parametrize("seconds", [0.5, 2.0, 20.0])
def test_looks_never_take_more_than_their_share_of_the_time(seconds: float, tokenizer: Any, large: ProbeSet) -> None:
    looks = _Timed(large, _Clock())
    taken = list(_steps(looks, tokenizer, seconds=seconds, count=12_000))
    assert taken
    assert looks.seconds <= 0.02 * looks.time.now
    assert all(later - earlier >= 100 for earlier, later in pairwise(taken))


def test_a_slow_look_asks_fewer_prompts_before_it_waits(tokenizer: Any, large: ProbeSet) -> None:
    looks = _Timed(large, _Clock())
    taken = list(_steps(looks, tokenizer, seconds=10.0, count=2_000))
    # The least look takes 18.6 s, the base model's as much again, and the trial 1 s: 2 % of 191 steps after the first.
    assert (taken[0], looks.asked[0]) == (192, (6, 16))
    assert all(later - earlier >= 93 for earlier, later in pairwise(taken))
    quick = _Timed(large, _Clock())
    assert list(_steps(quick, tokenizer, seconds=100.0, count=300)) == [100, 200, 300]
    assert set(quick.asked) == {(12, 64)}
