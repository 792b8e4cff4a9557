"""One of two processes that train together; ``test_ranks.py`` starts both."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from lorawatch import LoraWatchCallback
from lorawatch.settings import Settings
from tests.integrations import lab


def main(folder: Path) -> None:
    """Train until the user's rule stops it at step 5, and leave the step at which this process stopped."""
    settings = Settings(rules_paths=(str(Path(__file__).parent / "user_rules.py"),), select=("loss/from-step",))
    watch = LoraWatchCallback(settings, actions={"critical": "stop"})
    trainer = lab.train(folder / "out", watch, max_steps=12, ddp_backend="gloo", disable_tqdm=True)
    (folder / f"rank-{trainer.args.process_index}").write_text(str(trainer.state.global_step), encoding="utf-8")
    torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # with older versions gloo's threads abort now and then when the interpreter winds up


if __name__ == "__main__":
    main(Path(sys.argv[1]))
