"""The adapter of a checkpoint folder, against the live model that saved it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lorawatch.lora.adapter_files import AdapterFileError, read_adapter, stored_tensors
from lorawatch.records import AdapterReading

from .test_adapter_health import HAS_TARGET_PARAMETERS, adapted, llama, looked

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, about the odd set-ups below


def saved(folder: Path, model: Any = None, **config: Any) -> Any:
    model = model if model is not None else adapted(**config)
    model.save_pretrained(folder)
    return model


def same(offline: AdapterReading, live: AdapterReading, *, bases: bool = False) -> None:
    assert sorted(one.name for one in offline.modules) == sorted(one.name for one in live.modules)
    by_name = {one.name: one for one in live.modules}
    for module in offline.modules:
        other = by_name[module.name]
        assert (module.rank, module.finite) == (other.rank, other.finite)
        for field in (
            "scale",
            "norm_a",
            "norm_b",
            "update",
            "largest",
            "effective_rank",
            *(("base",) if bases else ()),
        ):
            expected = getattr(other, field)
            assert getattr(module, field) == (None if expected is None else pytest.approx(expected, rel=1e-6)), field


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors whose names end so; None removes them."""
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    for ending, tensor in tensors.items():
        name = next(one for one in stored if one.endswith(ending.replace("__", ".")))
        stored.pop(name) if tensor is None else stored.update({name: tensor})
    save_file(stored, file, metadata={"format": "pt"})


def configure(folder: Path, **entries: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"lora_alpha": 16, "use_rslora": True, "rank_pattern": {"down_proj": 8},
         "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 4}},
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"init_lora_weights": "pissa", "trained": False},
        {"trained": False},
    ],
    ids=["plain", "rslora and patterns", "dora", "embeddings", "pissa", "fresh"],
)  # fmt: skip
def test_a_folder_says_what_the_live_model_says(tmp_path: Path, config: dict[str, Any]) -> None:
    model = saved(tmp_path, **config)
    offline = read_adapter(tmp_path)
    same(offline, looked(model))
    assert offline.origin == tmp_path.name
    assert offline.time is not None


@pytest.mark.skipif(not HAS_TARGET_PARAMETERS, reason="this PEFT has no target_parameters")
def test_fused_experts_are_read_by_the_rank_that_the_configuration_states(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 12, 8))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

    model = saved(tmp_path, adapted(Model(), target_modules=[], target_parameters=["experts.weight"], r=3))
    (offline,), (live,) = read_adapter(tmp_path).modules, looked(model).modules
    assert (offline.name, offline.rank) == ("experts", 3)
    assert offline.update == pytest.approx(live.update, rel=1e-6)
    assert offline.effective_rank == pytest.approx(live.effective_rank, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    model = adapted().to(dtype)
    saved(tmp_path, model)
    same(read_adapter(tmp_path), looked(model))


def test_a_nan_is_found(tmp_path: Path) -> None:
    saved(tmp_path)
    broken = torch.zeros(32, 4)
    broken[3, 1] = float("nan")
    rewrite(tmp_path, layers__1__self_attn__q_proj__lora_B__weight=broken)
    bad = [one for one in read_adapter(tmp_path).modules if not one.finite]
    assert [one.name for one in bad] == ["model.layers.1.self_attn.q_proj"]
    assert (bad[0].norm_b, bad[0].update) == (None, None)


def test_what_is_trained_in_full_is_counted(tmp_path: Path) -> None:
    saved(tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    reading = read_adapter(tmp_path)
    assert (len(reading.modules), reading.left_out) == (2, 1)
    assert "trained in full" in reading.why_left_out


def test_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    saved(tmp_path, adapted(llama(num_hidden_layers=12), target_modules=["q_proj"]))
    assert [int(one.name.split(".")[2]) for one in read_adapter(tmp_path).modules] == list(range(12))


class TestStep:
    def test_is_the_number_in_the_name(self, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoint-340"
        saved(folder, target_modules=["q_proj"])
        assert read_adapter(folder).step == 340
        assert read_adapter(folder, step=7).step == 7

    def test_is_that_of_the_trainers_state_otherwise(self, tmp_path: Path) -> None:
        saved(tmp_path, target_modules=["q_proj"])
        assert read_adapter(tmp_path).step == 0
        (tmp_path / "trainer_state.json").write_text('{"global_step": 90, "log_history": [{"loss": NaN}]}')
        assert read_adapter(tmp_path).step == 90
        (tmp_path / "trainer_state.json").write_text("[" * 100_000)
        assert read_adapter(tmp_path).step == 0


class TestBase:
    def test_norms_are_those_of_the_live_model(self, tmp_path: Path) -> None:
        llama().save_pretrained(tmp_path / "base")
        model = saved(tmp_path / "adapter", target_modules=["q_proj", "down_proj", "embed_tokens"])
        same(read_adapter(tmp_path / "adapter", tmp_path / "base"), looked(model), bases=True)

    def test_weights_of_gpt2_are_found_though_transposed_and_named_otherwise(self, tmp_path: Path) -> None:
        base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16))
        weights = {name.removeprefix("transformer."): weight for name, weight in base.state_dict().items()}
        weights.pop("lm_head.weight")
        (tmp_path / "base").mkdir()
        save_file(weights, tmp_path / "base" / "model.safetensors")
        model = saved(tmp_path / "adapter", adapted(base, target_modules=["c_attn", "wte"], fan_in_fan_out=True))
        same(read_adapter(tmp_path / "adapter", tmp_path / "base"), looked(model), bases=True)

    def test_an_adapter_of_another_size_does_not_fit(self, tmp_path: Path) -> None:
        llama(intermediate_size=64).save_pretrained(tmp_path / "base")
        saved(tmp_path / "adapter", target_modules=["down_proj"])
        with pytest.raises(AdapterFileError, match=r"does not fit .*: 'model.layers.0.mlp.down_proj' is \[32, 64\]"):
            read_adapter(tmp_path / "adapter", tmp_path / "base")

    def test_an_adapter_of_another_architecture_does_not_fit(self, tmp_path: Path) -> None:
        GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).save_pretrained(tmp_path / "base")
        saved(tmp_path / "adapter", target_modules=["down_proj"])
        with pytest.raises(AdapterFileError, match="none of its modules is there"):
            read_adapter(tmp_path / "adapter", tmp_path / "base")

    def test_a_folder_without_weights_is_told(self, tmp_path: Path) -> None:
        saved(tmp_path / "adapter", target_modules=["q_proj"])
        with pytest.raises(AdapterFileError, match="holds no safetensors"):
            read_adapter(tmp_path / "adapter", tmp_path)


class TestBadInput:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        saved(tmp_path, target_modules=["q_proj"])
        return tmp_path

    def refused(self, folder: Path) -> str:
        with pytest.raises(AdapterFileError) as caught:
            read_adapter(folder)
        message = str(caught.value)
        assert "\n" not in message
        return message

    def test_no_such_folder(self, folder: Path) -> None:
        assert "no such folder" in self.refused(folder / "nowhere")

    def test_no_configuration(self, folder: Path) -> None:
        (folder / "adapter_config.json").unlink()
        assert "has no adapter_config.json" in self.refused(folder)

    @pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
    def test_a_configuration_that_is_no_json(self, folder: Path, text: str) -> None:
        (folder / "adapter_config.json").write_text(text, encoding="latin-1")
        assert "is no JSON" in self.refused(folder)

    def test_a_configuration_that_is_no_object(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("[]")
        assert "no JSON object" in self.refused(folder)

    def test_another_sort_of_adapter(self, tmp_path: Path) -> None:
        config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
        get_peft_model(llama(), config).save_pretrained(tmp_path)  # type: ignore[arg-type]
        assert "'IA3'" in self.refused(tmp_path)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        assert "has no adapter_model.safetensors" in self.refused(folder)

    def test_a_pickle_is_not_opened(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        assert "pickle" in self.refused(folder)

    @pytest.mark.parametrize("cut", [0, 4, 40, -1])
    def test_a_file_that_was_cut_off(self, folder: Path, cut: int) -> None:
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:cut])
        assert "is damaged" in self.refused(folder)

    def test_a_file_of_something_else(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"PK\x03\x04" * 200)
        assert "is damaged" in self.refused(folder)

    def test_a_header_that_lies_about_the_sizes(self, folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        next(one for one in header.values() if "shape" in one)["shape"] = [4, 10**9]
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        assert "is damaged" in self.refused(folder)

    def test_a_and_b_that_do_not_fit_each_other(self, folder: Path) -> None:
        rewrite(folder, layers__0__self_attn__q_proj__lora_B__weight=torch.zeros(32, 5))
        assert "do not fit each other: [4, 32] and [32, 5]" in self.refused(folder)

    def test_an_a_without_its_b(self, folder: Path) -> None:
        rewrite(folder, layers__0__self_attn__q_proj__lora_B__weight=None)
        assert "has lora_A but no lora_B" in self.refused(folder)

    def test_a_file_without_factors(self, folder: Path) -> None:
        save_file({"weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
        assert "holds no LoRA factors" in self.refused(folder)

    def test_no_alpha(self, folder: Path) -> None:
        configure(folder, lora_alpha="16")
        assert "says no lora_alpha" in self.refused(folder)

    @pytest.mark.parametrize("pattern", ["(a+)+x", "a" * 300, "("])
    def test_a_pattern_that_cannot_be_matched_safely(self, folder: Path, pattern: str) -> None:
        configure(folder, alpha_pattern={pattern: 8})
        assert "alpha_pattern" in self.refused(folder)

    def test_factors_that_were_saved_sharded_are_left_out(self, folder: Path) -> None:
        rewrite(folder, layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(0))
        reading = read_adapter(folder)
        assert (len(reading.modules), reading.left_out) == (1, 1)
        assert "not gathered" in reading.why_left_out

    def test_factors_of_a_type_that_cannot_be_read_are_left_out(self, folder: Path) -> None:
        rewrite(folder, layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(4, 32, dtype=torch.int8))
        assert read_adapter(folder).why_left_out == "1 of the type I8"

    @pytest.mark.parametrize("key", ["arrow_config", "use_qalora", "kasa_config"])
    def test_forms_whose_update_is_something_else_are_left_out(self, folder: Path, key: str) -> None:
        configure(folder, **{key: {"top_k": 3}})
        reading = read_adapter(folder)
        assert (reading.modules, reading.left_out) == ([], 2)


def test_it_needs_neither_torch_nor_peft(tmp_path: Path) -> None:
    saved(tmp_path, target_modules=["q_proj"])
    code = (
        "import sys\nfrom lorawatch.lora.adapter_files import read_adapter\n"
        f"print(len(read_adapter({str(tmp_path)!r}).modules))\n"
        "print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "[]"]


def test_a_tensor_is_mapped_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0, 3e38], dtype=torch.bfloat16)}
    save_file(tensors, file)
    found = stored_tensors(file)
    assert (found["a"].shape, found["a"].dtype, found["b"].dtype) == ((2, 3), "F32", "BF16")
    np.testing.assert_array_equal(found["a"].array(), np.arange(6.0))
    np.testing.assert_array_equal(found["a"].array(2, 3), [2.0, 3.0, 4.0])
    np.testing.assert_array_equal(found["b"].array(), tensors["b"].float().numpy())
