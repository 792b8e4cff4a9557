"""Two real processes that train together: both stop at the same step, and one of them speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("torch", "transformers", "peft", "datasets"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")


def test_all_processes_stop_together_and_one_speaks(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.integrations.two_ranks", str(tmp_path),
        ],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"rank-{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == ["5", "5"]
    assert done.stderr.count("lorawatch: CRITICAL Late steps") == 1
    lines = (tmp_path / "out" / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"type":"metrics"' in line for line in lines) == 5
    assert '"world_size":2' in lines[1]
