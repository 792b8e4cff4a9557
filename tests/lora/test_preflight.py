"""``lorawatch preflight``: the whole verb, on models built here from their configuration, and on what is broken."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from lorawatch.cli import preflight as verb
from lorawatch.cli.errors import UsageError
from lorawatch.lora.dataset_rows import RowError, first_items, label_rows
from lorawatch.lora.preflight import Preflight, memory_settings, preflight
from lorawatch.lora.target_files import read_target
from lorawatch.records import FactUpdate
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.settings import Settings

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about the odd set-ups below

TINY = Path(verb.__file__).parents[1] / "trainer" / "tiny_base"
RULES = RuleSet(Settings())
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 128,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return folder


def rows(file: Path, count: int = 40) -> Path:
    items = [{"prompt": f"What is {one} plus one?", "completion": f"It is {one + 1}."} for one in range(count)]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in items))
    return file


def judged(path: Path | None = None, measured: float | None = None, **flags: Any) -> Preflight:
    return preflight(read_target(path, flags, RULES), RULES, measured=measured)


def ids(found: Preflight) -> dict[str, str]:
    return {finding.rule: finding.severity.label for finding in found.engine.findings}


def main(*words: str) -> int:
    parser = argparse.ArgumentParser()
    verb.configure(parser)
    return verb.run(parser.parse_args(words))


def test_a_good_set_up_has_no_warning_and_tells_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        "--model", str(TINY), "--dataset", str(rows(tmp_path / "rows.jsonl")), "--r", "16", "--lora-alpha", "32",
        "--learning-rate", "2e-4", "--target-modules", "all-linear", "--max-length", "256",
        "--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2",
    )  # fmt: skip
    text = capsys.readouterr().out
    assert code == 0
    assert "WARNING" not in text
    assert "CRITICAL" not in text
    assert "trainable parameters" in text
    assert "Labels of 40 rows" in text
    assert "⟦It is 1.<|im_end|>⟧" in text
    assert "GPU memory: about" in text
    assert "by formula, not measured" in text
    assert "fits on a 24 GB card as it is" in text
    assert "length: 15 steps, 40 rows, about" in text  # 10 batches of 4, 5 steps an epoch, 3 epochs
    assert "hours" not in text  # no throughput is known


def test_the_rules_are_the_callbacks_and_judge_modules_labels_and_facts(tmp_path: Path) -> None:
    found = judged(
        model=str(TINY), r=16, lora_alpha=2000, learning_rate=0.5, target_modules=["q_proj", "v_prj"], bias="all"
    )
    said = ids(found)
    assert said["cfg/target-mismatch"] == "critical"
    assert said["cfg/lr-vs-method"] == "warning"
    assert {"cfg/scaling", "cfg/bias"} <= set(said)
    assert {rule.split("/")[0] for rule in said} == {"cfg"}


def test_trainable_parameters_are_exact(tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft")
    transformers: Any = pytest.importorskip("transformers")
    folder = model(tmp_path / "base")
    found = judged(model=str(folder), r=4, target_modules=["q_proj", "down_proj"], use_dora=True)
    real = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder)),
        peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"),
    )
    assert found.tree is not None
    assert found.tree.trainable == real.get_nb_trainable_parameters()[0]
    assert found.engine.run.number("trainable_parameters") == found.tree.trainable


def test_bad_labels_are_found_in_the_rows(tmp_path: Path) -> None:
    found = judged(
        model=str(TINY), dataset=str(rows(tmp_path / "a.jsonl")), r=8, target_modules="all-linear", max_length=8
    )
    assert found.audit is not None
    assert found.audit.truncated_rows == 40
    assert "cfg/label-audit" in ids(found)


# ---- bad input: one line each, and all other checks still run


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    folder = model(tmp_path / "base", model_type="no_such_model")
    found = judged(model=str(folder), r=16, lora_alpha=2000, target_modules="all-linear")
    assert found.tree is None
    assert [one for one in found.problems if "no_such_model" in one and "\n" not in one]
    assert "cfg/scaling" in ids(found)


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = model(tmp_path / "base")
    found = judged(model=str(folder), dataset=str(rows(tmp_path / "a.jsonl")), r=16, target_modules="all-linear")
    assert found.problems == [f"labels: no tokenizer in {folder} (tokenizer_config.json): the rows cannot be looked at"]
    assert found.plan.steps == 15
    assert found.estimate is not None


def test_a_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = model(tmp_path / "base")
    (folder / "tokenizer_config.json").write_text("{")
    found = judged(model=str(folder), dataset=str(rows(tmp_path / "a.jsonl")), r=16, target_modules="all-linear")
    assert len(found.problems) == 1
    assert "the tokenizer in" in found.problems[0]
    assert found.estimate is not None


def adapter(folder: Path, base: Path, **config: Any) -> Path:
    peft: Any = pytest.importorskip("peft")
    transformers: Any = pytest.importorskip("transformers")
    given = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | config
    built = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base))
    peft.get_peft_model(built, peft.LoraConfig(**given)).save_pretrained(folder)
    return folder


def test_an_adapter_that_fits_its_base_is_quiet(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    found = judged(adapter(tmp_path / "adapter", base), model=str(base))
    assert found.problems == []
    assert found.estimate is not None
    assert found.engine.run.kind.value in ("sft", "unknown")


def test_an_adapter_that_does_not_fit_the_base_is_one_line(tmp_path: Path) -> None:
    base, other = model(tmp_path / "base"), model(tmp_path / "other", hidden_size=32, intermediate_size=64)
    folder = adapter(tmp_path / "adapter", base)
    found = judged(folder, model=str(other))
    assert len(found.problems) == 1
    assert "does not fit the model in" in found.problems[0]
    assert "has an input of 64, the model's 32" in found.problems[0]
    assert found.estimate is not None
    gpt = model(tmp_path / "gpt", model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=32, n_layer=2, n_head=2)
    found = judged(folder, model=str(gpt))
    assert any("4 of 4 adapted modules are not in the model" in one for one in found.problems)
    assert ids(found)["cfg/target-mismatch"] == "critical"


def test_corrupted_safetensors_are_one_line_each(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5], b"\xff" * 64, b""):
        weights.write_bytes(broken)
        found = judged(folder, model=str(base))
        assert len(found.problems) == 1, broken[:8]
        assert str(weights) in found.problems[0]
        assert "\n" not in found.problems[0]
        assert found.estimate is not None
    weights.write_bytes(whole)
    (base / "model.safetensors").write_bytes(whole[:200])
    found = judged(folder, model=str(base))
    assert len(found.problems) == 1
    assert "model.safetensors" in found.problems[0]


def test_an_adapters_configuration_that_peft_would_refuse_is_one_line(tmp_path: Path) -> None:
    found = judged(model=str(model(tmp_path / "base")), r=16, target_modules="(q_proj")
    assert [one for one in found.problems if one.startswith("adapter: ")]
    assert found.tree is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("[1]\n", "row 1 is no mapping"),
        ('{"a": 1}\n{"b"\n', "line 2 is not JSON"),
        ('{"question": "a"}\n', "neither messages, nor prompt and completion, nor text"),
        ('{"messages": [{"role": 3}]}\n', "row 1 cannot be tokenised"),
        ('{"messages": ["hello"]}\n', "row 1 cannot be tokenised"),
    ],
)
def test_rows_that_cannot_be_read_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(text)
    found = judged(model=str(TINY), dataset=str(data), r=16, target_modules="all-linear")
    assert len(found.problems) == 1
    assert words in found.problems[0]
    assert found.problems[0].startswith("labels: ")
    assert found.estimate is not None


def test_a_configuration_without_an_adapter_is_not_judged_as_one(tmp_path: Path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text("gradient_accumulation_steps: 4\nmixed_precision: bf16\nnum_processes: 2\n")
    found = judged(config, model=str(model(tmp_path / "base")))
    assert {rule for rule in ids(found) if rule != "cfg/blind-spots"} == set()
    assert any("no adapter is configured" in one for one in found.problems)
    assert found.estimate is None


def test_nothing_to_judge_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TARGET, or --model"):
        main()
    with pytest.raises(UsageError, match="no such file"):
        main(str(tmp_path / "absent.yaml"))


def test_several_things_are_wrong_at_once_and_each_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(tmp_path / "base", model_type="no_such_model")
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model_name_or_path: base\ndataset_name: {tmp_path / 'none.jsonl'}\nuse_peft: true\nlora_alhpa: 3\n"
        "lora_r: 16\nlora_alpha: 2000\n"
    )
    assert main(str(config)) == 1
    text = capsys.readouterr().out
    assert "did you mean 'lora_alpha'" in text
    assert "no_such_model" in text
    assert "cfg/scaling" in text


# ---- memory and length


def facts(**values: Any) -> Run:
    run = Run("r")
    run.learn(FactUpdate(values, "test"))
    return run


def test_memory_is_reckoned_for_what_is_stated() -> None:
    made, assumed = memory_settings(
        facts(
            per_device_train_batch_size=4, max_length=2048, bf16=True, dtype="float16", load_in_4bit=True,
            lora_dropout=0.1, activation_checkpointing=True, optim="paged_adamw_8bit",
            attn_implementation="flash_attention_2", use_liger_kernel=True, trainer_class="DPOTrainer",
            bnb_4bit_use_double_quant=True,
        ),
        "transformers",
        {},
    )  # fmt: skip
    assert assumed == []
    assert (made.batch, made.length, made.bits, made.double_quant, made.copies) == (4, 2048, 4, True, 2)
    assert (made.dtype, made.autocast, made.adapter_dtype, made.dropout) == ("float16", True, "bfloat16", 0.1)
    assert (made.checkpointing, made.whole_logits, made.attention) == (True, False, "flash")


def test_what_is_assumed_is_said() -> None:
    made, assumed = memory_settings(facts(), "", {"torch_dtype": "float16"})
    assert (made.batch, made.length, made.dtype) == (1, 1024, "float16")
    assert assumed == [
        "per_device_train_batch_size 1", "rows of 1024 tokens, for no max_length is known",
        "weights in float16, as its config.json says",
    ]  # fmt: skip
    made, assumed = memory_settings(facts(trainer_class="SFTTrainer", trl_version="0.20.0"), "", {})
    assert made.whole_logits
    assert not memory_settings(facts(trainer_class="SFTTrainer", trl_version="1.16.0"), "", {})[0].whole_logits


def test_trls_default_of_32_bits_is_told_and_the_remedy_is_a_dtype(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    model(tmp_path / "base", hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32,
          num_hidden_layers=32, vocab_size=32000)  # fmt: skip
    config = tmp_path / "train.yaml"
    config.write_text("model_name_or_path: base\nuse_peft: true\nlora_r: 16\nlora_target_modules: all-linear\n")
    found = judged(config)
    assert found.settings is not None
    assert found.settings.dtype == "float32"
    assert any("TRL's default" in one for one in found.assumed)
    text = "\n".join(verb.preflight_text(found))
    assert "fits on a 24 GB card with " in text
    assert "dtype bfloat16" in text


def test_a_measured_step_calibrates(tmp_path: Path) -> None:
    base = str(model(tmp_path / "base"))
    plain = judged(model=base, r=16, target_modules="all-linear")
    assert plain.estimate is not None
    peak = plain.estimate.peak + plain.estimate.step
    scaled = judged(model=base, r=16, target_modules="all-linear", measured=peak)
    assert scaled.estimate is not None
    assert scaled.estimate.calibrated
    assert scaled.estimate.peak == pytest.approx(peak)
    wrong = judged(model=base, r=16, target_modules="all-linear", measured=10.0)
    assert [one for one in wrong.problems if one.startswith("memory: a measured peak")]
    assert wrong.estimate is not None
    assert not wrong.estimate.calibrated
    assert wrong.ways


def test_steps_count_as_the_trainer_counts(tmp_path: Path) -> None:
    base = str(model(tmp_path / "base"))
    data = str(rows(tmp_path / "a.jsonl", 103))
    found = judged(
        model=base, dataset=data, per_device_train_batch_size=4, gradient_accumulation_steps=8, num_train_epochs=2, r=8
    )
    assert found.plan.steps == 8  # 26 batches, 4 steps an epoch, the last one of two batches
    assert found.plan.exact
    packed = judged(model=str(TINY), dataset=data, packing=True, max_length=256, r=8, per_device_train_batch_size=1)
    assert packed.plan.steps is not None
    assert not packed.plan.exact
    assert packed.plan.tokens is not None
    assert packed.plan.trained_tokens is not None
    assert packed.plan.trained_tokens < packed.plan.tokens


def test_hours_are_told_for_a_run_that_timed_its_steps(tmp_path: Path) -> None:
    records = [
        {"type": "facts", "values": {"max_steps": 3600, "r": 8, "lora_alpha": 16}, "origin": "callback"},
        *({"type": "metrics", "step": one, "values": {"loss": 2.0}, "time": 1000.0 + 2 * one} for one in range(1, 12)),
    ]
    (tmp_path / "lorawatch.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    found = judged(tmp_path)
    assert found.plan.hours == pytest.approx(2.0, rel=0.15)


def test_json_holds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        "--model", str(TINY), "--dataset", str(rows(tmp_path / "a.jsonl")), "--r", "16", "--target-modules",
        "q_proj,v_prj", "--format", "json", "--fail-on", "never",
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["model"]["targets"] == {"q_proj": 5, "v_prj": 0}
    assert told["model"]["trainable"] == 16 * 5 * (128 + 128)
    assert {one["rule"] for one in told["findings"]} >= {"cfg/target-mismatch"}
    assert told["facts"]["r"] == {"value": 16, "origin": "flags", "inferred": False}
    assert told["labels"]["rows"] == 40
    assert told["memory"]["ways"][0]["as_configured"] is True
    assert set(told["memory"]["ways"][0]["fits"]) == {"16 GB", "24 GB", "40 GB", "80 GB"}
    assert told["length"]["steps"] == 15


def test_hostile_words_of_a_configuration_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = model(tmp_path / "base", model_type="evil\x1b[31m")
    config = tmp_path / "train.yaml"
    config.write_text(
        f'model_name_or_path: {base}\nuse_peft: true\nlora_r: 16\nlora_alpha: 32\noutput_dir: "a\\e[2J"\n'
    )
    main(str(config), "-v")
    assert "\x1b" not in capsys.readouterr().out


# ---- rows


ITEMS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "One two three."}, {"text": "Four five<|im_end|>"}],
    "prompt and completion": [{"prompt": "What is 2 plus 2?", "completion": " It is 4."}],
    "conversational prompt": [
        {"prompt": [{"role": "user", "content": "Hello"}], "completion": [{"role": "assistant", "content": "Good day"}]}
    ],
    "messages": [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}],
    "turns": [{"conversations": [{"from": "user", "value": "Hello"}, {"from": "assistant", "value": "Good day"}]}],
}


@pytest.mark.parametrize("assistant_only", [False, True])
@pytest.mark.parametrize("form", ITEMS)
def test_rows_are_labelled_as_trl_labels_them(tmp_path: Path, form: str, assistant_only: bool) -> None:
    trl: Any = pytest.importorskip("trl", minversion="1.16")
    import datasets  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    if assistant_only and form in ("text", "prompt and completion"):
        with pytest.raises(RowError, match="no conversations"):
            label_rows(ITEMS[form], tokenizer, assistant_only=True)
        return
    if assistant_only and form == "turns":
        pytest.skip("this TRL does not take turns for conversations here")
    mine = label_rows(ITEMS[form], tokenizer, assistant_only=assistant_only, max_length=64)
    args = trl.SFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, assistant_only_loss=assistant_only,
        max_length=64,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(TINY), args=args, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(ITEMS[form]),
    )  # fmt: skip
    theirs = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    assert [(one["input_ids"][0], one["labels"][0]) for one in mine] == theirs


def test_the_first_rows_of_each_sort_of_file(tmp_path: Path) -> None:
    item = {"prompt": "a", "completion": "b"}
    for name, text in (
        ("a.jsonl", json.dumps(item)), ("a.json", json.dumps([item])), ("a.csv", "prompt,completion\na,b\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert first_items(tmp_path / name, 5) == [item]
    with pytest.raises(RowError, match="No such file"):
        first_items(tmp_path / "absent.jsonl", 5)
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(RowError, match="not UTF-8"):
        first_items(tmp_path / "bad.jsonl", 5)


# ---- cost


def test_a_model_of_7b_is_judged_within_a_gigabyte_and_without_a_network(tmp_path: Path) -> None:
    base = model(
        tmp_path / "base", hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32,
        num_hidden_layers=32, vocab_size=32000,
    )  # fmt: skip
    script = textwrap.dedent("""
        import argparse, json, resource, socket, sys, time

        def refuse(*args, **kwargs):
            raise AssertionError("a connection was tried")

        socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
        from lorawatch.cli import preflight
        parser = argparse.ArgumentParser()
        preflight.configure(parser)
        code = preflight.run(parser.parse_args(sys.argv[1:]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"code": code, "seconds": time.process_time(), "kib": peak}), file=sys.stderr)
    """)
    words = [
        "--model",
        str(base),
        "--r",
        "16",
        "--lora-alpha",
        "32",
        "--learning-rate",
        "2e-4",
        "--target-modules",
        "all-linear",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["code"] == 0
    assert "39,976,960 trainable parameters" in done.stdout
    assert told["kib"] < 1 << 20
    # Seconds of the processor, not of the wall: under 5 on a free core, with room for a slower one.
    assert told["seconds"] < 15


def test_the_verb_alone_loads_no_heavy_library() -> None:
    script = (
        "import sys, lorawatch.cli.preflight as verb, argparse; verb.configure(argparse.ArgumentParser());"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
