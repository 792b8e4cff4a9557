"""Faults of optimisation: rate, schedule, clip, batch, scale of the adapter, and what a resume loses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault, Row
from lorawatch.trainer.recipe import Amount, Recipe, changed

RUINED = ("grad/explosion", "loss/blow-up", "loss/diverging", "loss/at-uniform")
"""Rules that see updates that are too large."""
SLOW = ("loss/not-learning", "loss/slow-start")
"""Rules that see updates that are too small."""


class LearningRateTooHigh(Fault):
    """Plain: 30 times the usual rate. Subtle: 14 times it, near where runs begin to diverge."""

    name: ClassVar[str] = "learning-rate-too-high"
    cause: ClassVar[str] = "the learning rate is many times the usual one of the method"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The loss leaves its start, or its best level, upwards."""
        return (Expected(RUINED, roots=("cfg/lr-vs-method", *RUINED)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Raise the rate."""
        return changed(recipe, learning_rate=recipe.peak_rate * (14 if self.subtle else 30))


class LearningRateTooLow(Fault):
    """Plain: a thousandth of the usual rate. Subtle: a 250th."""

    name: ClassVar[str] = "learning-rate-too-low"
    cause: ClassVar[str] = "the learning rate is far below the usual one of the method"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The loss falls too slowly, or not at all."""
        return (Expected((*SLOW, "cfg/lr-vs-method")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Lower the rate."""
        return changed(recipe, learning_rate=recipe.peak_rate / (250 if self.subtle else 1000))


class LearningRateZero(Fault):
    """Plain: 0. Subtle: a warm-up of twenty times the run, so that the rate never gets anywhere."""

    name: ClassVar[str] = "learning-rate-zero"
    cause: ClassVar[str] = "the learning rate is 0, or stays near 0 in a warm-up that is longer than the run"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The rate in the log says it."""
        return (Expected(("lr/schedule",), roots=("lr/schedule", "sig/dead-gradient", *SLOW)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """No rate, or one that is never reached."""
        if self.subtle:
            return changed(recipe, warmup_steps=20 * _steps(recipe))
        return changed(recipe, learning_rate=0.0)


class WarmUpTooLong(Fault):
    """Plain: over 90 % of the run. Subtle: over 60 % of it."""

    name: ClassVar[str] = "warm-up-too-long"
    cause: ClassVar[str] = "the warm-up takes most of the run"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A rate that still rises past the middle."""
        return (Expected(("lr/schedule",)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Stretch the warm-up."""
        return changed(recipe, warmup_steps=0.6 if self.subtle else 0.9)


class ScheduleEndedEarly(Fault):
    """Plain: made for a quarter of the steps. Subtle: for 80 % of them."""

    name: ClassVar[str] = "schedule-ended-early"
    cause: ClassVar[str] = "the scheduler is made for fewer steps than the run takes: the rate is 0 before the end"
    remedy: ClassVar[tuple[str, ...]] = ("num_training_steps", "schedule for")
    share: ClassVar[dict[str, float]] = {"plain": 0.25, "subtle": 0.8}

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A rate of 0 with steps left."""
        return (Expected(("lr/schedule",), from_step=int(self.share[self.amount] * _steps(recipe))),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """A linear decay, the Trainer's default, stays at 0; a cosine that is over would rise again."""
        return changed(recipe, lr_scheduler_type="linear")

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Let the scheduler be made for a part of the steps."""
        make = trainer.create_scheduler

        def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
            return make(max(int(self.share[self.amount] * num_training_steps), 1), optimizer)

        trainer.create_scheduler = create_scheduler


class GradientExplosion(Fault):
    """Plain: 20 times the usual rate. Subtle: 8 times it and no decay, so that the gradients grow bit by bit."""

    name: ClassVar[str] = "gradient-explosion"
    cause: ClassVar[str] = "gradients are not clipped, at a high learning rate"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The norm rises, and the loss with it."""
        return (Expected(RUINED, roots=("cfg/lr-vs-method", *RUINED)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Take the clip away, raise the rate."""
        if self.subtle:
            rate, schedule = 8 * recipe.peak_rate, "constant_with_warmup"
        else:
            rate, schedule = 20 * recipe.peak_rate, recipe.lr_scheduler_type
        return changed(recipe, max_grad_norm=0.0, learning_rate=rate, lr_scheduler_type=schedule, warmup_steps=0.15)


class ScheduleJumpsUp(Fault):
    """Plain: to 30 times the rate. Subtle: to 18 times."""

    name: ClassVar[str] = "schedule-jumps-up"
    cause: ClassVar[str] = "a stepwise schedule made by hand multiplies the rate in mid-run where it should divide it"
    remedy: ClassVar[tuple[str, ...]] = ("what changed there",)
    at: ClassVar[float] = 0.4
    """Share of the run at which the rate jumps."""

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Gradients and loss jump with it."""
        return (Expected(RUINED, from_step=int(self.at * _steps(recipe)), roots=("lr/schedule", *RUINED)),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Each step in the log: it takes a handful of them."""
        return changed(recipe, logging_steps=1)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Put a factor on the schedule from a step on."""
        factor, make = 18.0 if self.subtle else 30.0, trainer.create_scheduler

        def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
            schedule, jumps = make(num_training_steps, optimizer), int(self.at * num_training_steps)
            schedule.lr_lambdas = [
                lambda step, before=before: before(step) * (factor if step >= jumps else 1.0)
                for before in schedule.lr_lambdas
            ]
            return schedule

        trainer.create_scheduler = create_scheduler


class AlwaysClipped(Fault):
    """Plain: a clip of 0.01. Subtle: of 0.12, a quarter of the usual norm."""

    name: ClassVar[str] = "always-clipped"
    cause: ClassVar[str] = "max_grad_norm is far below the gradients, so that each step is clipped"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Information: with Adam it changes little."""
        return (Expected(("grad/always-clipped",), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Lower the clip."""
        return changed(recipe, max_grad_norm=0.12 if self.subtle else 0.01)

    def prepare(self, recipe: Recipe) -> Recipe:
        """The rule judges blocks of 100 logs."""
        return changed(recipe, logging_steps=1)


class AlternatingSources(Fault):
    """Plain: every second batch is of the second source. Subtle: of those batches only half the rows are."""

    name: ClassVar[str] = "alternating-sources"
    cause: ClassVar[str] = "two sources of different difficulty take turns, batch by batch"
    remedy: ClassVar[tuple[str, ...]] = ("take turns",)

    def __init__(self, amount: Amount = "plain") -> None:
        super().__init__(amount)
        self._batch = 1

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Neighbouring losses that swing."""
        return (Expected(("loss/oscillation",)),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Rows in their order; each step in the log, for a mean over two hides the swing."""
        self._batch = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        return changed(recipe, train_sampling_strategy="sequential", logging_steps=1)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Give the replies of the second source a reference number, which nobody can foresee."""
        found = []
        for at, row in enumerate(rows):
            second = at // self._batch % 2 == 1 and (at % 2 == 1 or not self.subtle)
            found.append(_with_reference(row, dice) if second else row)
        return found


class BatchTooSmall(Fault):
    """Plain: one sequence a step. Subtle: two."""

    name: ClassVar[str] = "batch-too-small"
    cause: ClassVar[str] = "one or two sequences a step, of data that mixes easy and hard"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Noise, told as such."""
        return (Expected(("loss/noisy",), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A small micro-batch, no accumulation."""
        return changed(recipe, per_device_train_batch_size=2 if self.subtle else 1)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Steps are quick: evaluate seldom, and log each of them."""
        return changed(recipe, logging_steps=1, eval_steps=0.5)


class AlphaAbsurd(Fault):
    """Plain: alpha is 100 times its usual value. Subtle: 60 times."""

    name: ClassVar[str] = "alpha-absurd"
    cause: ClassVar[str] = "lora_alpha is many times the rank"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """It acts like a rate that is as many times higher."""
        return (Expected(RUINED, roots=("cfg/scaling", *RUINED)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Raise alpha."""
        return changed(recipe, lora_alpha=2 * recipe.r * (60 if self.subtle else 100))


class DropoutExtreme(Fault):
    """Plain: 0.95. Subtle: 0.6. The run learns less, but nothing in its log is wrong by itself."""

    name: ClassVar[str] = "dropout-extreme"
    cause: ClassVar[str] = "the adapter's dropout takes most of its input away"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the configuration."""
        return (Expected(("cfg/dropout",)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Raise the dropout."""
        return changed(recipe, lora_dropout=0.6 if self.subtle else 0.95)


class RankAbsurd(Fault):
    """Plain: twice the width of the tiny base. Subtle: 1."""

    name: ClassVar[str] = "rank-absurd"
    cause: ClassVar[str] = "the rank is far above what the model's width and the data can use, or 1"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from configuration and weights: by the log alone a rank of 1 is a slow run, 256 an unsteady one."""
        return (Expected(("cfg/rank-capacity", "lora/rank-use"), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Another rank."""
        return changed(recipe, r=1 if self.subtle else 256)


class AccumulationLossScale(Fault):
    """Plain: 4 micro-batches a step. Subtle: 2."""

    name: ClassVar[str] = "accumulation-loss-scale"
    cause: ClassVar[str] = "the model ignores num_items_in_batch, and the Trainer sums the micro-batches' mean losses"
    remedy: ClassVar[tuple[str, ...]] = ("upgrade transformers",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A training loss as many times the evaluation loss as there are micro-batches."""
        return (Expected(("sig/ga-loss-scale",)),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """The same effective batch, by accumulation."""
        steps = 2 if self.subtle else 4
        batch = max(recipe.per_device_train_batch_size // steps, 1)
        return changed(recipe, gradient_accumulation_steps=steps, per_device_train_batch_size=batch)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Keep the count of tokens from the loss, as a model that takes it and does not use it did."""
        compute = trainer.compute_loss

        def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:  # noqa: ARG001
            return compute(model, inputs, return_outputs=return_outputs)

        trainer.compute_loss = compute_loss


class ResumeWithoutOptimizer(Fault):
    """Plain: save_only_model leaves them out. Subtle: they are lost on the way, and there is next to no warm-up."""

    name: ClassVar[str] = "resume-without-optimizer"
    cause: ClassVar[str] = "the run is resumed from a checkpoint without optimizer.pt and scheduler.pt"
    remedy: ClassVar[tuple[str, ...]] = ("optimizer.pt",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The rate begins anew: it warms up again, or jumps back to its peak."""
        return (Expected(("lr/schedule", "loss/resume-jump"), Severity.INFO, _steps(recipe) // 2),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Checkpoints of the adapter alone."""
        return recipe if self.subtle else changed(recipe, save_only_model=True)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Checkpoints to resume from."""
        recipe = changed(recipe, save_steps=0.25)
        return changed(recipe, warmup_steps=2, logging_steps=5) if self.subtle else recipe

    def interrupted_at(self, recipe: Recipe) -> int | None:
        """Soon after the checkpoint in the middle."""
        return _steps(recipe) // 2 + 3

    def between(self, checkpoint: Path) -> None:
        """Lose both files."""
        for name in ("optimizer.pt", "scheduler.pt"):
            if self.subtle:
                (checkpoint / name).unlink()


class ResumeWithFreshAdapter(Fault):
    """Plain: no weight of the adapter is found. Subtle: only those of the attention are."""

    name: ClassVar[str] = "resume-with-fresh-adapter"
    cause: ClassVar[str] = "names in the checkpoint's adapter do not fit, and PEFT leaves those weights at their start"
    remedy: ClassVar[tuple[str, ...]] = ("checkpoint",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The loss goes back towards its start."""
        return (Expected(("loss/resume-jump",), from_step=_steps(recipe) // 2, roots=("loss/resume-jump", *RUINED)),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Checkpoints to resume from."""
        return changed(recipe, save_steps=0.25)

    def interrupted_at(self, recipe: Recipe) -> int | None:
        """Soon after the checkpoint in the middle."""
        return _steps(recipe) // 2 + 3

    def between(self, checkpoint: Path) -> None:
        """Rename weights, as saving with a wrapper on does: ``module.`` is that of DDP."""
        from safetensors.torch import load_file, save_file  # noqa: PLC0415

        file = checkpoint / "adapter_model.safetensors"
        weights = load_file(file)
        save_file(
            {
                name if self.subtle and ".self_attn." in name else f"module.{name}": value
                for name, value in weights.items()
            },
            file,
            metadata={"format": "pt"},
        )


def _with_reference(row: Row, dice: random.Random) -> Row:
    reference = f" Your reference is {dice.randrange(10**12):012d}."
    reply = row["completion"]
    if isinstance(reply, str):
        return {**row, "completion": reply + reference}
    return {**row, "completion": [*reply[:-1], {**reply[-1], "content": reply[-1]["content"] + reference}]}


def _steps(recipe: Recipe) -> int:
    """Optimizer steps of the run; the benchmark's where it counts epochs."""
    return recipe.max_steps if recipe.max_steps > 0 else 200
