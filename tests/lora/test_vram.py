"""The memory estimate, held against torch's own account of small models on the processor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from lorawatch.lora import vram
from lorawatch.lora.vram import CARDS, Choice, NoEstimateError, Settings, Widths
from lorawatch.records import ModelTree, ModuleGroup

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing:FutureWarning")

GIB = 2**30
LLAMA = {
    "hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "num_hidden_layers": 4, "use_cache": False,
}  # fmt: skip
BATCH, LENGTH, RANK = 2, 128, 4
SAVED_ERROR = 0.06
"""Relative error that is accepted of what autograd keeps."""
PEAK_ERROR = 0.15
"""Relative error that is accepted of the peak of a step: that of the estimate's promise."""


@dataclass(slots=True)
class Live:
    """A real model with an adapter, and what describes it."""

    model: Any
    tree: ModelTree
    numbers: dict[str, Any]
    settings: Settings

    @property
    def widths(self) -> Widths:
        return vram.widths_of(self.tree, self.numbers, RANK)

    @property
    def trained(self) -> list[Any]:
        return [one for one in self.model.parameters() if one.requires_grad]

    @contextmanager
    def passes(self) -> Iterator[None]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.autocast):
            yield

    def loss(self) -> Any:
        ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 500
        mask = torch.ones_like(ids)
        mask[1, -8:] = 0  # a padded batch: without padding there is no mask, and keys and values are not repeated
        return self.model(input_ids=ids, labels=ids, attention_mask=mask).loss


def live(
    kind: str = "Llama",
    *,
    base: Any = None,
    attention: str = "sdpa",
    lora: dict[str, Any] | None = None,
    **settings: Any,
) -> Live:
    from lorawatch.lora.model_tree import tree_of_model

    config: Any
    if kind == "GPT2":
        config = transformers.GPT2Config(
            n_layer=3, n_embd=64, n_head=4, vocab_size=512, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, use_cache=False,
        )  # fmt: skip
    else:
        config = getattr(transformers, f"{kind}Config")(**LLAMA, **({"head_dim": 16} if kind == "Qwen3" else {}))
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))(config)
    model = model.to(base or torch.float32)
    wanted = Settings(batch=BATCH, length=LENGTH, attention=attention, **settings)
    given: dict[str, Any] = {"r": RANK, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | (lora or {})
    given["fan_in_fan_out"] = kind == "GPT2"
    model = peft.get_peft_model(
        model, peft.LoraConfig(**given), autocast_adapter_dtype=wanted.adapter_dtype == "float32"
    )
    if wanted.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return Live(model, tree_of_model(model), config.to_dict(), wanted)


def plain(kind: str, **more: Any) -> Live:
    return live(kind, autocast=False, dtype="float32", **more)


def bfloat16(**more: Any) -> Live:
    return live(base=torch.bfloat16, **more)


def saved_bytes(one: Live) -> int:
    """Bytes of the storages that autograd keeps for the backward pass; the model's own are left out."""
    own = {tensor.untyped_storage()._cdata for tensor in [*one.model.parameters(), *one.model.buffers()]}
    kept: dict[int, int] = {}
    held: list[Any] = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        held.append(storage)
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with one.passes(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = one.loss()
    assert torch.isfinite(loss)
    return sum(size for place, size in kept.items() if place not in own)


def peak_bytes(one: Live) -> int:
    """The most bytes that were in tensors at once in a forward and a backward pass, on top of the model."""
    from torch.utils import _python_dispatch
    from torch.utils._pytree import tree_map_

    untyped: Any = _python_dispatch.TorchDispatchMode

    class Account(untyped):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self.seen = {tensor.untyped_storage()._cdata for tensor in [*one.model.parameters(), *one.model.buffers()]}

        def gone(self, place: int, size: int) -> None:
            self.now -= size
            self.seen.discard(place)

        def take(self, tensor: Any) -> None:
            if not isinstance(tensor, torch.Tensor):
                return
            storage = tensor.untyped_storage()
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            tree_map_(self.take, found)
            return found

    account = Account()
    with account:
        with one.passes():
            loss = one.loss()
        loss.backward()
    return account.peak


def expected_saved(one: Live) -> float:
    kept = vram.activation_bytes(one.widths, one.settings)
    return kept + 4.0 * one.settings.tokens * one.widths.vocabulary  # the log-softmax that the loss keeps


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "GPT2"])
def test_weights_adapter_gradients_and_optimizer_are_exact(kind: str) -> None:
    one = plain(kind)
    trained = sum(tensor.numel() for tensor in one.trained)
    assert one.tree.trainable == trained
    frozen = [tensor for tensor in one.model.parameters() if not tensor.requires_grad]
    assert vram.weight_bytes(one.tree, one.settings) == sum(one.numel() * one.element_size() for one in frozen)
    assert vram.adapter_bytes(trained, one.settings) == sum(one.numel() * one.element_size() for one in one.trained)
    optimizer = torch.optim.AdamW(one.trained)
    one.loss().backward()
    assert vram.gradient_bytes(trained, one.settings) == sum(one.grad.nbytes for one in one.trained)
    optimizer.step()
    moments = [
        value for state in optimizer.state.values() for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    ]  # fmt: skip
    assert vram.optimizer_bytes(trained, one.settings) == sum(value.nbytes for value in moments)


def test_an_adapter_in_half_precision_takes_half_of_it() -> None:
    one = bfloat16(adapter_dtype="bfloat16")
    assert {tensor.dtype for tensor in one.trained} == {torch.bfloat16}
    optimizer = torch.optim.AdamW(one.trained)
    one.loss().backward()
    optimizer.step()
    trained = one.tree.trainable or 0
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert vram.optimizer_bytes(trained, one.settings) == moments == 4 * trained


SAVED: dict[str, Callable[[], Live]] = {
    "Llama in float32": lambda: plain("Llama"),
    "Qwen3, with norms of query and key": lambda: plain("Qwen3"),
    "GPT-2, whose activation keeps four tensors": lambda: plain("GPT2"),
    "Llama in bfloat16 under autocast, adapter in float32": bfloat16,
    "Llama in bfloat16 under autocast, adapter in bfloat16": lambda: bfloat16(adapter_dtype="bfloat16"),
    "Llama in bfloat16 without autocast, adapter in float32": lambda: bfloat16(autocast=False),
    "Llama with queries and values adapted only": lambda: bfloat16(lora={"target_modules": ["q_proj", "v_proj"]}),
    "Llama with matrices of scores": lambda: bfloat16(attention="eager"),
}


@pytest.mark.parametrize("what", SAVED)
def test_what_autograd_keeps_is_what_the_formula_says(what: str) -> None:
    one = SAVED[what]()
    assert expected_saved(one) == pytest.approx(saved_bytes(one), rel=SAVED_ERROR)


def test_weights_in_float32_are_kept_once_more_under_autocast() -> None:
    one = live(autocast=True, dtype="float32")
    measured = saved_bytes(one)
    assert expected_saved(one) + 2 * one.widths.vocabulary * one.widths.hidden == pytest.approx(
        measured, rel=SAVED_ERROR
    )
    half = replace(one.settings, dtype="bfloat16")
    more = vram.activation_bytes(one.widths, one.settings) - vram.activation_bytes(one.widths, half)
    linear = sum(
        module.weight.numel() for name, module in one.model.named_modules() if name.endswith("proj.base_layer")
    )
    assert more == 2 * linear


def test_checkpointing_keeps_the_inputs_of_the_layers() -> None:
    one = plain("Llama")
    one.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    one.model.enable_input_require_grads()
    one.settings = replace(one.settings, checkpointing=True)
    assert expected_saved(one) == pytest.approx(saved_bytes(one), rel=SAVED_ERROR)
    assert saved_bytes(one) < 0.5 * saved_bytes(plain("Llama"))


def test_dropout_costs_a_mask_and_a_copy_of_each_adapted_input() -> None:
    without, with_dropout = bfloat16(), bfloat16(lora={"lora_dropout": 0.1}, dropout=0.1)
    more = saved_bytes(with_dropout) - saved_bytes(without)
    one = without.widths
    numbers = without.settings.tokens * one.layers * one.adapted_inputs
    first = (
        without.settings.tokens * 3 * one.hidden
    )  # no gradient flows to the inputs of the first layer: no mask there
    # A processor's mask has the type of the input, four bytes here; a card's is one byte.
    assert more == 4 * (numbers - first)
    said = vram.tokens_of_adapters(one, with_dropout.settings) - vram.tokens_of_adapters(one, without.settings)
    assert said == one.adapted_inputs


PEAKS: dict[str, Callable[[], Live]] = {
    "float32": lambda: plain("Llama"),
    "float32, checkpointing": lambda: plain("Llama", checkpointing=True),
    "bfloat16": bfloat16,
    "bfloat16, checkpointing": lambda: bfloat16(checkpointing=True),
    "bfloat16, adapter in bfloat16": lambda: bfloat16(adapter_dtype="bfloat16"),
}


@pytest.mark.parametrize("what", PEAKS)
def test_the_peak_of_a_step_is_what_the_estimate_says(what: str) -> None:
    one = PEAKS[what]()
    made = vram.estimate(one.tree, one.widths, one.settings)
    gradients = made.parts["gradients"]
    assert made.step == pytest.approx(peak_bytes(one) - gradients, rel=PEAK_ERROR)


# ---- arithmetic


def tree() -> ModelTree:
    """Modules of a Llama of 7B, all linear layers adapted at rank 16."""
    linear = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096)}
    mlp = {"gate_proj": (4096, 11008), "up_proj": (4096, 11008), "down_proj": (11008, 4096)}
    groups = [ModuleGroup("model.embed_tokens", "embedding", 32000, 4096, 1, 32000 * 4096, adapted=0)]
    for part, names in (("self_attn", linear), ("mlp", mlp)):
        groups += [
            ModuleGroup(f"model.layers.*.{part}.{name}", "linear", wide, out, 32, wide * out, adapted=32)
            for name, (wide, out) in names.items()
        ]
    groups += [
        ModuleGroup("model.layers.*.input_layernorm", "norm", 0, 0, 32, 4096, adapted=0),
        ModuleGroup("model.layers.*.post_attention_layernorm", "norm", 0, 0, 32, 4096, adapted=0),
        ModuleGroup("model.norm", "norm", 0, 0, 1, 4096, adapted=0),
        ModuleGroup("lm_head", "linear", 4096, 32000, 1, 32000 * 4096, adapted=0),
    ]
    return ModelTree(groups, {"all-linear": 224}, parameters=6_738_415_616, trainable=39_976_960, layers=32)


NUMBERS = {"hidden_size": 4096, "num_attention_heads": 32, "hidden_act": "silu"}


def widths() -> Widths:
    return vram.widths_of(tree(), NUMBERS, 16)


def test_four_bits_take_half_a_byte_and_the_constants() -> None:
    packed = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 2 * (6_738_415_616 - packed)
    plain = vram.weight_bytes(tree(), Settings(bits=4))
    assert plain == packed * 0.5625 + rest
    # QLoRA: the constants take 0.5 bit a parameter, and 0.127 once they are quantised themselves.
    double = vram.weight_bytes(tree(), Settings(bits=4, double_quant=True))
    assert 8 * (double - rest) / packed == pytest.approx(4.127, abs=0.001)
    assert vram.weight_bytes(tree(), Settings(bits=8)) == packed + rest
    assert 3.4 * GIB < double < 3.8 * GIB


def test_eight_bit_optimizers_take_a_quarter_and_adafactor_next_to_nothing() -> None:
    full = vram.optimizer_bytes(1e6, Settings(optim="adamw_torch_fused"))
    assert full == 8e6
    assert vram.optimizer_bytes(1e6, Settings(optim="paged_adamw_8bit")) == pytest.approx(full / 4, rel=0.02)
    assert vram.optimizer_bytes(1e6, Settings(optim="adafactor")) == 0


def test_whole_logits_take_twelve_bytes_an_element_and_chunks_do_not_grow_with_the_words() -> None:
    one = replace(widths(), vocabulary=151_936)
    whole = vram.logits_bytes(one, Settings(length=4096))
    assert whole == 12 * 4096 * 151_936
    chunked = Settings(length=4096, whole_logits=False)
    assert vram.logits_bytes(one, chunked) == vram.logits_bytes(replace(one, vocabulary=300_000), chunked) < whole / 10


def test_a_preference_pair_takes_twice_as_much() -> None:
    one = widths()
    assert vram.activation_bytes(one, Settings(copies=2)) == 2 * vram.activation_bytes(one, Settings())


def test_the_band_is_named_and_narrows_when_a_step_was_measured() -> None:
    made = vram.estimate(tree(), widths(), Settings(batch=4, length=2048, checkpointing=True))
    assert made.low < made.peak < made.total < made.high
    assert (made.error, made.calibrated) == (vram.BAND, False)
    measured = made.peak + 0.5 * GIB
    narrow = vram.calibrate(made, measured)
    assert narrow.peak == pytest.approx(measured)
    assert narrow.high - narrow.low < made.high - made.low
    assert (narrow.error, narrow.calibrated) == (vram.MEASURED_BAND, True)
    assert narrow.parts["weights"] == made.parts["weights"]


@pytest.mark.parametrize("measured", [0.0, float("nan"), float("inf"), 10 * GIB])
def test_a_measurement_below_the_weights_is_refused(measured: float) -> None:
    made = vram.estimate(tree(), widths(), Settings())
    with pytest.raises(NoEstimateError, match="measured peak"):
        vram.calibrate(made, measured)


def ways(**settings: Any) -> list[Choice]:
    return vram.choices(tree(), widths(), Settings(**settings), 16)


def test_the_ways_begin_with_the_configured_one_and_differ_from_each_other() -> None:
    found = ways(batch=4, length=2048)
    assert found[0].as_configured
    assert sum(one.as_configured for one in found) == 1
    assert len({(one.rank, one.settings) for one in found}) == len(found)
    totals = {
        (one.rank, one.settings.batch, one.settings.bits, one.settings.checkpointing): one.estimate for one in found
    }
    assert totals[16, 2, 16, False].total < totals[16, 4, 16, False].total < totals[16, 8, 16, False].total
    assert totals[16, 4, 16, True].total < totals[16, 4, 16, False].total
    assert totals[16, 4, 4, True].total < totals[16, 4, 16, True].total
    assert totals[64, 4, 16, False].total > totals[16, 4, 16, False].total


def test_the_way_that_fits_changes_least() -> None:
    found = ways(batch=4, length=2048)
    assert found[0].cards[24] == "no"
    best = vram.nearest_fit(found, 24)
    assert best is not None
    assert (best.settings.checkpointing, best.settings.bits, best.settings.batch) == (True, 16, 4)
    small = ways(batch=1, length=256, checkpointing=True)
    assert vram.nearest_fit(small, 80) is small[0]
    assert vram.nearest_fit(ways(batch=64, length=65536), 16) is None


def test_a_card_fits_for_sure_only_when_the_whole_band_does() -> None:
    made = vram.estimate(tree(), widths(), Settings(batch=1, checkpointing=True))
    assert made.fits(made.high) == "yes"
    assert made.fits(made.total) == made.fits(made.high - 1) == "tight"
    assert made.fits(made.total - 1) == "no"
    assert list(CARDS) == [16, 24, 40, 80]
    assert all(size <= card * GIB for card, size in CARDS.items())


def test_a_scale_from_a_measured_step_moves_all_ways() -> None:
    made = vram.estimate(tree(), widths(), Settings())
    scale = vram.scale_of(made, made.peak + made.step)
    found = vram.choices(tree(), widths(), Settings(), 16, scale=scale)
    assert scale == pytest.approx(2.0)
    assert found[0].estimate.peak == pytest.approx(made.peak + made.step)
    assert all(one.estimate.calibrated for one in found)


def test_experts_are_a_guess_with_a_wider_band() -> None:
    mixed = ModelTree(
        [*tree().groups[:5], ModuleGroup("model.layers.*.mlp.experts", "experts", 4096, 4096, 32, 10**8, adapted=0)],
        parameters=10**10, trainable=10**6, layers=32,
    )  # fmt: skip
    one = vram.widths_of(mixed, NUMBERS | {"num_experts_per_tok": 2, "moe_intermediate_size": 1024})
    assert one.mlp == 2 * (3 * 1024 + 2 * 4096)
    made = vram.estimate(mixed, one, Settings())
    assert made.error == vram.LOOSE_BAND
    assert "experts" in made.note


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"layers": 0}, "number of layers"),
        ({"groups": []}, "hidden_size"),
        ({"groups": tree().groups[:1]}, "linear layers"),
    ],
)
def test_a_model_without_layers_gives_no_estimate(changed: dict[str, Any], words: str) -> None:
    import msgspec

    with pytest.raises(NoEstimateError, match=words):
        vram.widths_of(msgspec.structs.replace(tree(), **changed), {})


def test_without_the_trained_parameters_there_is_no_estimate() -> None:
    import msgspec

    unknown = msgspec.structs.replace(tree(), trainable=None)
    with pytest.raises(NoEstimateError, match="trained parameters"):
        vram.estimate(unknown, widths(), Settings())
    with pytest.raises(NoEstimateError, match="trained parameters"):
        vram.choices(unknown, widths(), Settings(), 16)
