from pathlib import Path

import pytest

from lorawatch.trainer.recipe import Recipe, RecipeError, changed, load_recipe, recipe_of


def test_the_defaults_are_the_guides() -> None:
    recipe = Recipe()
    assert (recipe.alpha, recipe.lora_dropout, recipe.target_modules, recipe.bias) == (
        2 * recipe.r,
        0.0,
        "all-linear",
        "none",
    )
    assert recipe_of({"r": 64}, "x").alpha == 128
    assert recipe_of({"r": 64, "lora_alpha": 16}, "x").alpha == 16


def test_text_is_read_as_the_fields_type() -> None:
    recipe = recipe_of(
        {"learning_rate": "1e-4", "max_steps": "200", "packing": "true", "target_modules": "q_proj, v_proj",
         "save_total_limit": "none", "lora_alpha": "32", "warmup_steps": "0.1"}, "command line",
    )  # fmt: skip
    assert recipe.learning_rate == 1e-4
    assert recipe.max_steps == 200
    assert recipe.packing is True
    assert recipe.target_modules == ["q_proj", "v_proj"]
    assert recipe.save_total_limit is None
    assert recipe.lora_alpha == 32
    assert recipe.warmup_steps == 0.1


def test_the_usual_rate_depends_on_the_method_and_on_the_base() -> None:
    assert recipe_of({"model": "some/model"}, "x").peak_rate == 2e-4
    assert recipe_of({"model": "some/model", "method": "dpo"}, "x").peak_rate == 5e-6
    assert recipe_of({}, "x").peak_rate > 2e-4
    assert recipe_of({"learning_rate": 0.5}, "x").peak_rate == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learning_rat": 1}, "unknown parameter 'learning_rat'; did you mean 'learning_rate'?"),
        ({"r": "many"}, "r must be a whole number, is 'many'"),
        ({"r": 0}, "r must be at least 1, is 0"),
        ({"r": True}, "r must be a whole number"),
        ({"method": "ppo"}, "method must be sft, dpo, grpo, is 'ppo'"),
        ({"lora_dropout": 1}, "lora_dropout must be from 0 to below 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0, is nan"),
        ({"max_steps": 0}, "max_steps must be above 0, or -1"),
        ({"packing": True, "method": "dpo"}, "packing is for sft"),
        ({"inject": "bad-batches:strong"}, "the amount is plain or subtle, not 'strong'"),
        ({"training_arguments": "x"}, "training_arguments must be a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_line(given: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as told:
        recipe_of(given, "run.yaml")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_plain_holds_what_differs_and_reads_back() -> None:
    recipe = recipe_of({"r": 8, "target_modules": ["q_proj"], "training_arguments": {"neftune_noise_alpha": 5}}, "x")
    assert recipe.plain() == {"r": 8, "target_modules": ["q_proj"], "training_arguments": {"neftune_noise_alpha": 5}}
    assert recipe_of(recipe.plain(), "x") == recipe
    assert Recipe().plain() == {}


def test_a_change_is_checked_too() -> None:
    assert changed(Recipe(), r=4).r == 4
    with pytest.raises(RecipeError):
        changed(Recipe(), r=0)


def test_yaml_is_read_with_its_own_idea_of_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 2e-4\nr: 32\ntarget_modules: [q_proj, v_proj]\n", encoding="utf-8")
    recipe = recipe_of(load_recipe(file), str(file))
    assert (recipe.learning_rate, recipe.r, recipe.target_modules) == (2e-4, 32, ["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("- r\n- 3\n", "must hold one 'name: value' a line"), ("r: [", "is not valid YAML"), ("1: 2", "must hold one")],
)
def test_a_file_that_is_no_recipe_is_told(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"run\.yaml") as told:
        load_recipe(file)
    assert words in str(told.value)
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
