"""Norms and spectra of adapters, against a full singular value decomposition of what they add."""

from __future__ import annotations

import copy
import inspect
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorawatch.lora import adapter_health
from lorawatch.lora.adapter_health import (
    AdapterLooks,
    base_name,
    find_factors,
    grams_of_array,
    grams_of_tensors,
    look_at_adapter,
    spectra,
)
from lorawatch.records import AdaptedModule, AdapterReading

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own, about the odd set-ups below

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HAS_TARGET_PARAMETERS = "target_parameters" in inspect.signature(LoraConfig).parameters
HAS_TYING = "ensure_weight_tying" in inspect.signature(LoraConfig).parameters


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **{**sizes, **options}))


def adapted(model: nn.Module | None = None, *, trained: bool = True, **config: Any) -> PeftModel:
    """A model with an adapter, as some training leaves it: no factor is 0."""
    model = model or llama()
    found: Any = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ALL_LINEAR, **config}))
    if trained:
        with torch.no_grad():
            for name, weight in found.named_parameters():
                if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
                    weight.add_(torch.randn_like(weight) * 0.1)
    return found  # type: ignore[no-any-return]


def looked(model: nn.Module, step: int = 50) -> AdapterReading:
    reading = look_at_adapter(model, step)
    assert reading is not None
    return reading


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield base_name(name), module


def agrees(
    module: AdaptedModule, delta: NDArray[Any], tolerance: float = 1e-5, rank_tolerance: float | None = None
) -> None:
    """``delta`` is scale·B·A, in full."""
    singular = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    singular = singular[: module.rank]
    shares = singular[singular > 1e-12 * singular[0]] / singular.sum()
    assert module.update == pytest.approx(np.linalg.norm(singular), rel=tolerance)
    assert module.largest == pytest.approx(singular[0], rel=tolerance)
    assert module.effective_rank == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=rank_tolerance or tolerance
    )


def delta_of(layer: Any, adapter: str = "default") -> NDArray[Any]:
    delta = layer.get_delta_weight(adapter).detach().to(torch.float64).numpy()
    return delta.reshape(delta.shape[0], -1)  # type: ignore[no-any-return]


class TestSpectra:
    @pytest.mark.parametrize("case", ["random", "low rank", "ill-conditioned", "cancelling", "rank 1"])
    def test_equal_a_full_svd(self, case: str) -> None:
        rng = np.random.default_rng(3)
        rank = 1 if case == "rank 1" else 16
        a, b = rng.standard_normal((rank, 96)), rng.standard_normal((80, rank))
        if case == "low rank":
            a[5:] = a[:1] * np.arange(1, 12)[:, None]
        elif case == "ill-conditioned":
            a *= np.logspace(0, -5, rank)[:, None]
        elif case == "cancelling":  # A's rows are nearly one, and B has no more of that direction than fp32 leaves
            a = (a * 1e-3 + rng.standard_normal(96)).astype(np.float32).astype(np.float64)
            b = (b - b.mean(axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
        (found,) = spectra(grams_of_array(a[None]), grams_of_array(b.T[None]), 2.0)
        module = AdaptedModule("", rank, 2.0, update=found.update, largest=found.largest,
                               effective_rank=found.effective_rank)  # fmt: skip
        # The smallest singular value is then 1e-6 of ‖A‖·‖B‖ and less, where the Gram route has three digits left.
        agrees(module, 2.0 * b @ a, rank_tolerance=1e-4 if case == "cancelling" else None)
        assert found.norm_a == pytest.approx(np.linalg.norm(a), rel=1e-12)
        assert found.norm_b == pytest.approx(np.linalg.norm(b), rel=1e-12)

    def test_equal_it_value_by_value(self) -> None:
        rng = np.random.default_rng(4)
        a, b = rng.standard_normal((1, 64, 512)), rng.standard_normal((1, 64, 384))
        squared = adapter_health._squared_singular_values(grams_of_array(a), grams_of_array(b))[0]
        expected = np.linalg.svd(b[0].T @ a[0], compute_uv=False)[:64]
        np.testing.assert_allclose(np.sqrt(squared[::-1]), expected, rtol=1e-9)

    def test_an_update_of_0_has_no_effective_rank(self) -> None:
        (found,) = spectra(grams_of_array(np.ones((1, 4, 8))), grams_of_array(np.zeros((1, 4, 6))), 2.0)
        assert (found.norm_b, found.update, found.largest, found.effective_rank) == (0.0, 0.0, 0.0, None)

    def test_a_huge_but_finite_factor_is_finite(self) -> None:
        huge = np.full((1, 2, 4), 3e38, dtype=np.float32)
        (found,) = spectra(grams_of_array(huge), grams_of_array(huge), 1.0)
        assert found.norm_a == pytest.approx(3e38 * 8**0.5)
        assert found.update == pytest.approx(9e76 * 8)

    def test_what_overflows_is_unknown(self) -> None:
        huge = np.full((1, 2, 4), 1e150)
        (found,) = spectra(grams_of_array(huge), grams_of_array(huge), 1.0)
        assert found.norm_a is not None
        assert found.update is None

    @pytest.mark.parametrize("chunk", [1, 200, 1 << 22])
    def test_gram_matrices_on_a_device_are_those_of_the_host(self, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(adapter_health, "CHUNK", chunk)
        monkeypatch.setattr(adapter_health, "BLOCK", 20)
        factors = [torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(one)) for one in range(5)]
        together = grams_of_tensors(factors)
        assert together.dtype == torch.float64
        for factor, gram in zip(factors, together, strict=True):
            expected = factor.double() @ factor.double().mT
            torch.testing.assert_close(gram, expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(grams_of_array(factor.numpy()), expected.numpy(), rtol=1e-12, atol=1e-12)


class TestARealLlama:
    def test_every_module_equals_the_full_svd_of_what_it_adds(self) -> None:
        model = adapted(lora_alpha=8)
        reading = looked(model)
        assert [module.name for module in reading.modules] == [name for name, _ in layers(model)]
        assert reading.modules[0].name == "model.layers.0.self_attn.q_proj"
        assert (len(reading.modules), reading.left_out, reading.why_left_out) == (14, 0, "")
        base = dict(llama().named_parameters())
        for module, (name, layer) in zip(reading.modules, layers(model), strict=True):
            assert (module.rank, module.scale, module.finite) == (4, 2.0, True)
            agrees(module, delta_of(layer))
            assert module.norm_a == pytest.approx(layer.lora_A["default"].weight.norm().item(), rel=1e-6)
            assert module.norm_b == pytest.approx(layer.lora_B["default"].weight.norm().item(), rel=1e-6)
            assert module.base == pytest.approx(base[f"{name}.weight"].norm().item(), rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_measured_as_it_is(self, dtype: torch.dtype) -> None:
        model = adapted().to(dtype)
        for module, (_, layer) in zip(looked(model).modules, layers(model), strict=True):
            a, b = (one["default"].weight.detach().double().numpy() for one in (layer.lora_A, layer.lora_B))
            agrees(module, module.scale * b @ a)

    def test_a_fresh_adapter_has_an_update_of_0(self) -> None:
        for module in looked(adapted(trained=False), 0).modules:
            assert module.norm_a is not None
            assert module.norm_a > 0.0
            assert (module.norm_b, module.update, module.effective_rank, module.finite) == (0.0, 0.0, None, True)

    def test_rslora_and_patterns_set_the_scale_of_each_module(self) -> None:
        model = adapted(
            lora_alpha=16, use_rslora=True, rank_pattern={"down_proj": 8},
            alpha_pattern={r"layers\.1\.mlp\.up_proj": 4},
        )  # fmt: skip
        scales = {module.name: (module.rank, module.scale) for module in looked(model).modules}
        assert scales["model.layers.0.self_attn.q_proj"] == (4, 8.0)
        assert scales["model.layers.0.mlp.down_proj"] == (8, 16 / 8**0.5)
        assert scales["model.layers.1.mlp.up_proj"] == (4, 2.0)
        for module, (_, layer) in zip(looked(model).modules, layers(model), strict=True):
            agrees(module, delta_of(layer))

    def test_a_nan_shows_in_its_module_only(self) -> None:
        model = adapted()
        name, layer = list(layers(model))[3]
        with torch.no_grad():
            layer.lora_A["default"].weight[1, 2] = float("nan")
            list(layers(model))[5][1].lora_B["default"].weight[0, 0] = float("inf")
        modules = looked(model).modules
        assert [module.finite for module in modules] == [index not in (3, 5) for index in range(14)]
        broken = modules[3]
        assert broken.name == name
        assert (broken.norm_a, broken.update, broken.largest) == (None, None, None)
        assert broken.norm_b == pytest.approx(layer.lora_B["default"].weight.norm().item(), rel=1e-6)
        assert modules[5].norm_b is None

    def test_a_dead_module_stands_at_0(self) -> None:
        model = adapted()
        with torch.no_grad():
            list(layers(model))[6][1].lora_B["default"].weight.zero_()
        assert [module.norm_b == 0.0 for module in looked(model).modules] == [index == 6 for index in range(14)]

    def test_dora_has_a_spectrum_but_no_size_of_the_update(self) -> None:
        model = adapted(use_dora=True)
        for module, (_, layer) in zip(looked(model).modules, layers(model), strict=True):
            a, b = (one["default"].weight.detach().double().numpy() for one in (layer.lora_A, layer.lora_B))
            assert module.update is None
            assert module.largest == pytest.approx(np.linalg.svd(module.scale * b @ a)[1][0], rel=1e-5)
            assert module.base is not None

    def test_pissa_is_measured_against_what_is_left_of_the_weight(self) -> None:
        model = adapted(trained=False, init_lora_weights="pissa")
        for module, (_, layer) in zip(looked(model).modules, layers(model), strict=True):
            agrees(module, delta_of(layer))
            assert module.base == pytest.approx(layer.get_base_layer().weight.norm().item(), rel=1e-5)

    def test_embeddings_are_measured_and_what_is_trained_in_full_is_counted(self) -> None:
        model = adapted(target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
        reading = looked(model)
        assert [module.name for module in reading.modules] == [
            "model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
        ]  # fmt: skip
        for module, (_, layer) in zip(reading.modules, layers(model), strict=True):
            agrees(module, delta_of(layer))
        assert reading.left_out == 1
        assert "modules_to_save" in reading.why_left_out

    @pytest.mark.skipif(not HAS_TYING, reason="this PEFT does not tie adapters")
    def test_a_tied_adapter_counts_once(self) -> None:
        model = adapted(
            llama(tie_word_embeddings=True), target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True
        )
        assert len(list(layers(model))) == 2
        assert [module.name for module in looked(model).modules] == ["model.embed_tokens"]

    def test_a_module_that_is_merged_has_no_norm_of_the_base(self) -> None:
        model = adapted()
        model.merge_adapter()
        assert all(module.base is None and module.update for module in looked(model).modules)

    def test_the_active_adapter_of_two_is_read(self) -> None:
        model = adapted(lora_alpha=4)
        model.add_adapter("ref", LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"]))
        assert {module.rank for module in looked(model).modules} == {4}
        model.set_adapter("ref")
        reading = looked(model)
        assert [(module.rank, module.scale) for module in reading.modules] == [(2, 3.0)] * 2

    def test_two_adapters_at_once_are_left_out(self) -> None:
        model = adapted()
        model.add_adapter("more", LoraConfig(r=2, target_modules=["q_proj"]))
        tuner: Any = model.base_model
        tuner.set_adapter(["default", "more"])
        reading = looked(model)
        assert (len(reading.modules), reading.left_out) == (12, 2)
        assert "several active adapters" in reading.why_left_out


class TestOtherForms:
    @pytest.mark.skipif(not HAS_TARGET_PARAMETERS, reason="this PEFT has no target_parameters")
    def test_fused_experts_are_one_module_a_parameter(self) -> None:
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        torch.manual_seed(0)
        config = Qwen3MoeConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        )  # fmt: skip
        config.head_dim = 8
        model = Qwen3MoeForCausalLM(config)
        parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        tuned = adapted(model, target_modules=["q_proj"], target_parameters=parameters)
        found = {module.name: module for module in looked(tuned).modules}
        wrappers = {layer.parameter_name: layer for _, layer in layers(tuned) if hasattr(layer, "parameter_name")}
        assert set(wrappers) == {"gate_up_proj", "down_proj"}
        for parameter, layer in wrappers.items():
            module = found[f"model.layers.0.mlp.experts.{parameter}"]
            deltas = layer.get_delta_weight("default").detach().double().numpy()
            assert deltas.shape[0] == 4
            singular = np.linalg.svd(deltas, compute_uv=False)
            assert module.rank == 4
            assert module.update == pytest.approx(np.linalg.norm(deltas), rel=1e-5)
            assert module.largest == pytest.approx(singular.max(), rel=1e-5)
            assert module.base == pytest.approx(layer.get_param().norm().item(), rel=1e-6)
            assert module.effective_rank is not None
            assert 1.0 <= module.effective_rank <= 4.0

    def test_a_convolution_is_measured(self) -> None:
        torch.manual_seed(0)
        tuned = adapted(nn.Sequential(nn.Conv2d(8, 12, 3)), target_modules=["0"])
        (module,) = looked(tuned).modules
        agrees(module, delta_of(next(layers(tuned))[1]))

    def test_a_grouped_convolution_is_left_out(self) -> None:
        tuned = adapted(nn.Sequential(nn.Conv2d(12, 12, 3, groups=4)), target_modules=["0"])
        if next(layers(tuned))[1].lora_B["default"].weight.shape[1] == 4:
            pytest.skip("this PEFT does not know groups")
        reading = looked(tuned)
        assert (reading.modules, reading.left_out) == ([], 1)
        assert "grouped convolutions" in reading.why_left_out

    def test_adalora_is_left_out(self) -> None:
        config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"])
        reading = looked(get_peft_model(llama(), config))
        assert (reading.modules, reading.left_out) == ([], 2)
        assert "AdaLoRA" in reading.why_left_out

    def test_a_model_without_lora_gives_no_reading(self) -> None:
        assert look_at_adapter(llama(), 10) is None

    def test_weights_that_are_sharded_by_deepspeed_are_left_out(self) -> None:
        model = adapted(target_modules=["q_proj"])
        first: Any = next(
            weight for name, weight in model.named_parameters() if "layers.0" in name and "lora_A" in name
        )
        first.ds_id = 7
        reading = looked(model)
        assert (len(reading.modules), reading.left_out) == (1, 1)
        assert "ZeRO-3" in reading.why_left_out

    def test_a_model_under_fsdp_is_left_out_whole(self) -> None:
        class FullyShardedDataParallel(nn.Module):  # PyTorch's needs a process group
            def __init__(self, module: nn.Module) -> None:
                super().__init__()
                self._fsdp_wrapped_module = module

        reading = looked(FullyShardedDataParallel(adapted(target_modules=["q_proj"])))
        assert (reading.modules, reading.left_out) == ([], 2)
        assert reading.why_left_out == "2 sharded by FSDP"

    def test_weights_on_no_device_are_left_out(self) -> None:
        reading = looked(adapted(target_modules=["q_proj"]).to("meta"))
        assert (reading.modules, reading.left_out) == ([], 2)
        assert "offloaded" in reading.why_left_out

    def test_wrappers_do_not_change_names(self) -> None:
        class Parallel(nn.Module):
            def __init__(self, module: nn.Module) -> None:
                super().__init__()
                self.module = module

        model = adapted(target_modules=["q_proj"])
        assert [one.name for one in looked(Parallel(model)).modules] == [one.name for one in looked(model).modules]

    def test_a_weight_in_4_bits_is_dequantised_for_its_norm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Params4bit(nn.Parameter):  # bitsandbytes quantises on a GPU; this stands in for its form
            quant_state: Any

        model = adapted(target_modules=["q_proj"])
        full = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers(model)}
        for name, layer in layers(model):
            packed = Params4bit(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
            packed.quant_state = full[name]
            layer.get_base_layer().weight = packed
        assert all(module.base is None for module in looked(model).modules)

        class Bitsandbytes:
            class functional:  # noqa: N801
                @staticmethod
                def dequantize_4bit(data: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
                    assert data.dtype == torch.uint8
                    return state

        monkeypatch.setitem(sys.modules, "bitsandbytes", Bitsandbytes)
        for module in looked(model).modules:
            assert module.base == pytest.approx(full[module.name].norm().item(), rel=1e-6)

    def test_modules_beyond_the_limit_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(adapter_health, "MAX_MODULES", 5)
        reading = looked(adapted())
        assert (len(reading.modules), reading.left_out) == (5, 9)
        assert reading.why_left_out == "9 beyond the first 5"


class TestALook:
    def test_changes_neither_weights_nor_random_numbers_nor_modes(self) -> None:
        model = adapted(lora_dropout=0.1).train()
        next(iter(layers(model)))[1].eval()
        loss = model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
        loss.backward()
        before = copy.deepcopy(model.state_dict())
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        modes = {name: module.training for name, module in model.named_modules()}
        wanted = {name: weight.requires_grad for name, weight in model.named_parameters()}
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        looked(model)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        np.testing.assert_equal(np.random.get_state(), states[2])
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert {name: weight.requires_grad for name, weight in model.named_parameters()} == wanted
        after = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert set(after) == set(gradients)
        assert all(torch.equal(after[name], gradient) for name, gradient in gradients.items())
        assert torch.is_grad_enabled()

    def test_leaves_training_bit_for_bit_as_it_is_without(self) -> None:
        def trained(looks: AdapterLooks | None) -> dict[str, torch.Tensor]:
            model = adapted(trained=False, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]).train()
            torch.manual_seed(5)
            optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=1e-2)
            for step in range(1, 7):
                batch = torch.randint(0, 64, (2, 8))
                model(input_ids=batch, labels=batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if looks is not None:
                    assert looks.look(model, step) is not None
            return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

        without, beside = trained(None), trained(AdapterLooks(every=1, first=1, share=1e9))
        assert all(torch.equal(weight, beside[name]) for name, weight in without.items())

    def test_measures_the_base_once(self) -> None:
        model, bases = adapted(target_modules=["q_proj"]), dict[str, float | None]()
        assert look_at_adapter(model, 1, bases) is not None
        assert set(bases) == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}
        bases["model.layers.0.self_attn.q_proj"] = 123.0
        again = look_at_adapter(model, 2, bases)
        assert again is not None
        assert again.modules[0].base == 123.0

    def test_can_leave_the_base_alone(self) -> None:
        reading = look_at_adapter(adapted(target_modules=["q_proj"]), 1, base_norms=False)
        assert reading is not None
        assert all(module.base is None for module in reading.modules)

    def test_finds_factors_without_a_copy(self) -> None:
        model = adapted(target_modules=["q_proj"])
        factors, _ = find_factors(model)
        stored = {weight.data_ptr() for weight in model.parameters()}
        assert all(one.a.data_ptr() in stored and one.b.data_ptr() in stored for one in factors)


class Clock:
    """Seconds that pass only when told; a look takes ``cost`` of them."""

    def __init__(self, cost: float) -> None:
        self.now, self.cost = 0.0, cost

    def __call__(self) -> float:
        return self.now


def steps_of_looks(cost: float, step_seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch, start: int = 0,
                   **options: Any) -> tuple[list[int], AdapterLooks]:  # fmt: skip
    clock = Clock(cost)

    def slow(model: Any, step: int, bases: Any) -> AdapterReading:
        clock.now += clock.cost
        return AdapterReading(step, [AdaptedModule("q_proj", 8, 2.0)])

    monkeypatch.setattr(adapter_health, "look_at_adapter", slow)
    looks, found = AdapterLooks(clock=clock, **options), []
    for step in range(start + 1, start + steps + 1):
        clock.now += step_seconds
        if step % 10 == 0 and looks.look(None, step) is not None:
            found.append(step)
    return found, looks


class TestAdapterLooks:
    def test_looks_at_step_20_and_every_100_steps_where_it_is_cheap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps, _ = steps_of_looks(0.001, 1.0, 500, monkeypatch)
        assert steps == [20, 120, 220, 320, 420]

    def test_looks_less_often_where_it_is_dear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps, looks = steps_of_looks(1.0, 0.1, 10_000, monkeypatch)
        assert steps[0] == 20
        assert len(steps) > 3
        assert all(later - earlier >= 900 for earlier, later in itertools.pairwise(steps))
        assert looks.spent <= 0.01 * (10_000 * 0.1 + looks.spent)

    def test_a_run_that_goes_on_from_a_later_step_waits_as_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps, _ = steps_of_looks(0.001, 1.0, 300, monkeypatch, start=5000)
        assert steps == [5030, 5130, 5230]

    def test_does_not_ask_again_where_there_is_no_adapter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looks = AdapterLooks(first=1, every=1, share=1e9)
        model = nn.Linear(2, 2)
        assert looks.look(model, 1) is None
        asked: list[int] = []
        monkeypatch.setattr(adapter_health, "look_at_adapter", lambda *given: asked.append(given[1]))
        assert looks.look(model, 2) is None
        assert asked == []

    def test_gives_a_reading_of_a_real_model(self) -> None:
        looks = AdapterLooks(first=1, every=1)
        reading = looks.look(adapted(), 1)
        assert reading is not None
        assert (reading.step, len(reading.modules), reading.origin) == (1, 14, "callback")
        assert reading.seconds > 0.0
        assert reading.time is not None
        assert looks.spent >= reading.seconds


def test_importing_it_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, lorawatch.lora.adapter_health, lorawatch.lora.adapter_files, lorawatch.lora.heat_map\n"
        "assert not {'torch', 'numpy', 'peft', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
