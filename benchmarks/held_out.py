"""Questions on what the tiny base can do that no run was ever asked while it trained: did it really forget?"""

from __future__ import annotations

import random
from typing import Any

from lorawatch.trainer import builtin_data, world
from lorawatch.trainer.builtin_data import Probe

QUESTIONS = 240
NEW_TOKENS = 32
BATCH = 60


def held_out_probes(count: int = QUESTIONS) -> list[Probe]:
    """General questions, the abilities of the world in turn, none of which is one of the built-in probes."""
    dice = random.Random("held-out probes")  # noqa: S311  (a draw that can be repeated)
    seen = {str(probe["messages"][0]["content"]) for probe in builtin_data.general_probes()}
    probes: list[Probe] = []
    while len(probes) < count:
        asked = world.question(dice, world.ABILITIES[len(probes) % len(world.ABILITIES)])
        if asked.prompt in seen:
            continue
        seen.add(asked.prompt)
        probes.append(
            {
                "ability": asked.ability, "messages": [{"role": "user", "content": asked.prompt}],
                "check": asked.check, "answer": asked.answer, "rivals": list(asked.rivals),
            }
        )  # fmt: skip
    return probes


def answers(model: Any, tokenizer: Any) -> dict[str, int]:
    """How many questions the tuned model and its base answer rightly, and how many were lost and won."""
    from lorawatch.trainer.replies import generate

    probes = held_out_probes()
    prompts = [list(probe["messages"]) for probe in probes]

    def right() -> list[bool]:
        replies: list[str] = []
        for first in range(0, len(prompts), BATCH):
            replies += generate(model, tokenizer, prompts[first : first + BATCH], max_new_tokens=NEW_TOKENS)
        return [builtin_data.is_right(probe, reply) for probe, reply in zip(probes, replies, strict=True)]

    now = right()
    with model.disable_adapter():
        before = right()
    pairs = list(zip(before, now, strict=True))
    lost, won = sum(was and not is_now for was, is_now in pairs), sum(is_now and not was for was, is_now in pairs)
    return {"asked": len(pairs), "base": sum(before), "tuned": sum(now), "lost": lost, "won": won}
