"""A driver for tests: builds the stub of libnvidia-ml.so.1, points pynvml at it, and says what its cards do.

pynvml itself is the real one, and loads the stub as it loads the driver's library: only the path differs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import importlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "nvml_stub.c"
GIB = 2**30
NONE = "-"
"""No process."""
pynvml: Any = importlib.import_module("pynvml")


def compiler() -> str | None:
    """The system's C compiler, where there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@cache
def build(variant: str = "") -> Path:
    """Compile the stub once per process, as ``libnvidia-ml.so.1`` in a folder of its own.

    Args:
        variant: ``OLD_DRIVER`` or ``ANCIENT_DRIVER`` for one that lacks functions.
    """
    folder = Path(tempfile.mkdtemp(prefix="nvml-stub-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / "libnvidia-ml.so.1"
    define = [f"-D{variant}"] if variant else []
    command = [str(compiler()), "-O1", "-shared", "-fPIC", "-w", *define, "-o", str(target), str(SOURCE)]
    subprocess.run(command, check=True)
    return target


def card(number: int, **changes: Any) -> dict[str, Any]:
    """A healthy, busy H100 with one process; a value of None takes a key away, so that it is "Not Supported"."""
    return {
        "uuid": f"GPU-0000000{number}-aaaa-bbbb-cccc-dddddddddddd",
        "name": "NVIDIA H100 80GB HBM3",
        "memory": f"{80 * GIB} {40 * GIB} {GIB}",
        "utilization": 97,
        "power": 650_000,
        "power_limit": 700_000,
        "temperature": 61,
        "sm_clock": 1755,
        "max_sm_clock": 1980,
        "reasons": 0x4,
        "compute": f"{100_000 + number}:{40 * GIB}",
        "graphics": NONE,
        "mps": NONE,
        "ecc_uncorrected": 0,
        "ecc_corrected": 3,
        "remapped_rows": "0 1 0 0",
        "mig": 0,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        **{key.replace("error_", "error."): value for key, value in changes.items()},
    }


def instance(parent: int, number: int, **changes: Any) -> dict[str, Any]:
    """A MIG instance of card ``parent``."""
    return {
        "uuid": f"MIG-0000000{parent}-0000-0000-0000-00000000000{number}",
        "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "memory": f"{40 * GIB} {10 * GIB} 0",
        "compute": f"{200_000 + 10 * parent + number}:{10 * GIB}",
        "gpu_instance": number + 1,
        "compute_instance": 0,
        **changes,
    }


class NvmlStub:
    """The state of the stubbed driver.

    Attributes:
        machine: What concerns the machine as a whole: ``init`` (the code that starting returns), ``error`` (of every
            call), ``hang``.
        cards: The cards, as :func:`card` makes them.
        instances: MIG instances, as :func:`instance` makes them, by card and place.
    """

    def __init__(self, path: Path, library: Any) -> None:
        self.machine: dict[str, Any] = {}
        self.cards: list[dict[str, Any]] = []
        self.instances: dict[tuple[int, int], dict[str, Any]] = {}
        self._path = path
        self._library = library

    def write(self) -> None:
        """Let the driver answer so from now on."""
        lines = [f"- {key} {value}" for key, value in {"count": len(self.cards), **self.machine}.items()]
        tables = dict(enumerate(self.cards))
        tables |= {16 + 8 * parent + place: table for (parent, place), table in self.instances.items()}
        for number, table in tables.items():
            lines += [f"{number} {key} {value}" for key, value in table.items() if value is not None]
        new = self._path.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        new.replace(self._path)

    def set(self, number: int, **changes: Any) -> None:
        """Change a card; None takes a key away, ``error_nvmlX`` is the error that one function returns."""
        self.cards[number] |= {key.replace("error_", "error."): value for key, value in changes.items()}
        self.write()

    def unload(self) -> None:
        """Unload the driver."""
        self._path.unlink(missing_ok=True)

    def calls(self, name: str) -> int:
        """How often a function was called."""
        return int(self._library.stub_calls(name.encode()))

    @contextlib.contextmanager
    def hanging(self, name: str) -> Iterator[Hang]:
        """Let calls of one function hang inside the block, until the hang is ended."""
        fifo = self._path.with_suffix(".fifo")
        os.mkfifo(fifo)
        self.machine["hang"] = f"{name} {fifo}"
        self.write()
        hang = Hang(self, fifo)
        try:
            yield hang
        finally:
            hang.end()
            fifo.unlink()


class Hang:
    """A call of the driver that does not return."""

    def __init__(self, stub: NvmlStub, fifo: Path) -> None:
        self._stub = stub
        self._fifo = fifo
        self._held: int | None = None

    def wait(self) -> None:
        """Return once a call hangs.

        Raises:
            TimeoutError: None came within half a minute.
        """
        deadline = time.monotonic() + 30
        while not self._hold():
            if time.monotonic() > deadline:
                raise TimeoutError("nothing called the function that should hang")

    def end(self) -> None:
        """Let it return, and hang no more."""
        if self._stub.machine.pop("hang", None):
            self._stub.write()
        if self._hold() and self._held is not None:
            os.close(self._held)
        self._held = None

    def _hold(self) -> bool:
        """Whether a call hangs: it has opened the FIFO, and reads until this end is closed."""
        if self._held is None:
            try:
                self._held = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads
                    raise
        return self._held is not None


@contextlib.contextmanager
def driver(folder: Path, *cards: dict[str, Any], variant: str = "") -> Iterator[NvmlStub]:
    """Point pynvml at the stub, with these cards, for as long as the block lasts."""
    library = ctypes.CDLL(str(build(variant)))
    library.stub_reset()
    stub = NvmlStub(folder / "nvml.state", library)
    stub.cards = list(cards)
    stub.write()
    with pointed_at(str(build(variant))), _environment("NVML_STUB_STATE", str(folder / "nvml.state")):
        yield stub


@contextlib.contextmanager
def pointed_at(path: str) -> Iterator[None]:
    """Let pynvml load its library from ``path``, as if it had not loaded any."""
    ours: dict[str, Any] = {
        "CDLL": lambda _name: ctypes.CDLL(path),
        "nvmlLib": None,
        "_nvmlLib_refcount": 0,
        "_nvmlGetFunctionPointer_cache": {},
    }
    before = {name: getattr(pynvml, name) for name in ours}
    for name, value in ours.items():
        setattr(pynvml, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(pynvml, name, value)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
