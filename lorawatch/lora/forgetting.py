"""What keeps a model near its base: the remedies of the rules that see it forget."""

from __future__ import annotations

from lorawatch.findings import Adjustment
from lorawatch.remedies import look, lower_rate
from lorawatch.run import Run


def against_forgetting(run: Run) -> list[Adjustment]:
    """Smaller steps, general data, fewer epochs, a smaller rank, and half of the adapter at use (rule catalogue B3)."""
    advice = [
        lower_rate(
            run, 2, "the size of the steps decides most how much of the base model is overwritten", confidence="medium",
            apply="restart",
        ),
        look(
            "mix 5 to 20 % of general instruction data into the training rows",
            "what is still practised is not forgotten", confidence="medium",
        ),
    ]  # fmt: skip
    epochs = run.number("num_train_epochs")
    if epochs is not None and epochs > 1:
        advice.append(
            Adjustment(
                "num_train_epochs", current=epochs, proposed=max(int(epochs / 2), 1), direction="down",
                confidence="low", apply="restart", why="each further pass over the same rows moves the model further",
            )
        )  # fmt: skip
    rank = run.number("r")
    if rank is not None and rank >= 16:
        advice.append(
            Adjustment(
                "r", current=int(rank), proposed=int(rank / 2), direction="down", confidence="low", apply="restart",
                why="a smaller rank can change less of the model",
            )
        )  # fmt: skip
    advice.append(
        look(
            "the finished adapter at half of its scale (lora_alpha halved in adapter_config.json)",
            "it often keeps most of the task and gives back some of what was forgotten; measure both", confidence="low",
        )
    )  # fmt: skip
    return advice
