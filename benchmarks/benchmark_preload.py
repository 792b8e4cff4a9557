"""What the process loads once from which the benchmarks' training processes are forked."""

import os
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
sys.path.insert(0, str(Path(__file__).parent))

import lorawatch.trainer.faults.catalogue
import lorawatch.trainer.fine_tune  # noqa: F401
