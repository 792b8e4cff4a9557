"""Where and under which heading the benchmarks keep their results."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The kind of machine: processor and cores."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{os.cpu_count()} cores, {model}"


def versions(*packages: str) -> str:
    """Versions of Python and of the packages that matter to a result."""
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in packages)]
    )


def write(name: str, title: str, body: str, *packages: str) -> Path:
    """Print a result and keep it as ``results/<name>.md`` with date, versions and machine."""
    where = f"{datetime.now(UTC):%Y-%m-%d} · {versions('lorawatch', *packages)} · {machine()}"
    text = f"# {title}\n\n{where}\n\n{body.rstrip()}\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.md"
    file.write_text(text, encoding="utf-8")
    return file
