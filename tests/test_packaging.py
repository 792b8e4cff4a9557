"""What is installed is what stands in the tree, and a daemon's path stays light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def sources_of(folder: Path, package: str) -> set[str]:
    return {f"{package}/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("tree") / "lorawatch"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        source = ROOT / name
        if source.is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    out = copy / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True,
        capture_output=True,
        text=True,
    )
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_built_through_the_sdist_holds_every_module(wheel: Path) -> None:
    expected = (
        sources_of(ROOT / "lorawatch", "lorawatch")
        | sources_of(ROOT / "rules", "lorawatch/rules")
        | sources_of(ROOT / "exporters", "lorawatch/exporters")
    )
    data = {
        f"lorawatch/{folder}/{file.name}"
        for folder in ("recordings", "trainer/tiny_base")
        for file in (ROOT / "lorawatch" / folder).glob("*")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected | data | {"lorawatch/py.typed"}


def test_rules_and_exporters_are_flat() -> None:
    assert [path for name in ("rules", "exporters") for path in (ROOT / name).glob("*/*.py")] == []


DAEMON_PATH = """
import sys
from lorawatch.cli import check, compare, demo, explain, fix, preflight, report, rules, tail, train
import lorawatch.watch, lorawatch.web.server, lorawatch.terminal, lorawatch.registry
lorawatch.registry.builtin_classes()
heavy = {"torch", "transformers", "peft", "trl", "pandas", "numpy", "tensorboard"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_the_path_that_a_daemon_takes_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", DAEMON_PATH], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
