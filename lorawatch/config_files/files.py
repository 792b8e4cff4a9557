"""Reads a configuration file, and writes it back whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorawatch.config_files.document import ConfigError, Document

LIMITS = {"YAML": 256 << 10, "JSON": 1 << 20, "Python": 512 << 10}
"""Bytes that a file may have. PyYAML reads about 100 KiB a second; configurations are a few KiB."""
MARK = "\ufeff"
BACKUPS = 1000
_FORMATS = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON", ".py": "Python"}
_COOKIE = re.compile(rb"\A(?:[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]+)")
_WRITTEN_BY_THE_RUN = {
    "adapter_config.json": "PEFT wrote it to go with the weights",
    "trainer_state.json": "the Trainer wrote it as its history",
}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration as it was read.

    Attributes:
        path: The file that was asked for.
        data: Its bytes.
        marked: Whether they begin with a byte order mark.
        document: What they hold.
    """

    path: Path
    data: bytes
    marked: bool
    document: Document

    def bytes_of(self, document: Document) -> bytes:
        """The bytes of the file with ``document`` in place of what it holds."""
        return ((MARK if self.marked else "") + document.text).encode()


def read_config(path: Path) -> ConfigFile:
    """Read a configuration: YAML, JSON or Python, told by the name's end.

    Raises:
        ConfigError: There is no such file, it is none of these, or it cannot be read; says in one line why.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if path.name in _WRITTEN_BY_THE_RUN:
        why = _WRITTEN_BY_THE_RUN[path.name]
        raise ConfigError(f"{path}: {why}; give the configuration that starts the run")
    data = _read(path, LIMITS.get(kind or "", LIMITS["YAML"]))
    if kind is None:
        raise ConfigError(f"{path}: neither YAML, JSON nor Python by its name (.yaml, .yml, .json, .py)")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8 first") from None
    cookie = _COOKIE.match(data) if kind == "Python" else None
    if cookie and cookie[1].lower().replace(b"_", b"-") not in (b"utf-8", b"utf8", b"utf-8-sig", b"ascii"):
        raise ConfigError(f"{path}: its first lines declare {cookie[1].decode()}; save it as UTF-8 first")
    marked = text.startswith(MARK)
    try:
        document = _parse(kind, text.removeprefix(MARK))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    top = {entry.name for entry in document.sections[0].entries}
    if kind == "JSON" and {"model_type", "architectures"} <= top:
        raise ConfigError(
            f"{path}: a model's config.json, not a training's; give the configuration that starts the run"
        )
    return ConfigFile(path, data, marked, document)


def write_config(file: ConfigFile, document: Document) -> Path:
    """Put ``document`` in place of a file, and keep the old one beside it.

    The new text is complete on disk before it takes the old one's name; a symbolic link goes on pointing to the file.

    Returns:
        The backup: ``FILE.bak``, or ``FILE.bak.2`` and so on where there is one already.

    Raises:
        ConfigError: It cannot be written, or was changed since it was read; the file is as it was.
    """
    target = file.path.resolve()
    spare: Path | None = None
    try:
        if target.read_bytes() != file.data:
            raise ConfigError(f"{file.path}: was changed in the meantime; nothing was written, try again")
        if not os.access(target, os.W_OK):
            raise ConfigError(f"{file.path}: not writable; nothing was changed")
        mode = stat.S_IMODE(target.stat().st_mode)
        spare = _whole(target.parent, file.bytes_of(document), mode)
        backup = _backup(target, file.data, mode)
        spare.replace(target)
    except OSError as error:
        raise ConfigError(f"{file.path}: cannot be written ({error.strerror or error}); it is as it was") from None
    finally:
        if spare is not None:
            spare.unlink(missing_ok=True)
    return file.path.with_name(backup.name) if file.path.parent.resolve() == target.parent else backup


def _read(path: Path, limit: int) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: no file; give the configuration that starts the run")
        with path.open("rb") as opened:
            data = opened.read(limit + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit >> 10} KiB; no training configuration is")
    return data


def _parse(kind: str, text: str) -> Document:
    # Each format is loaded for its own files: most people have one.
    if kind == "YAML":
        from lorawatch.config_files.yaml_document import YamlDocument  # noqa: PLC0415

        return YamlDocument(text)
    if kind == "JSON":
        from lorawatch.config_files.json_document import JsonDocument  # noqa: PLC0415

        return JsonDocument(text)
    from lorawatch.config_files.python_document import PythonDocument  # noqa: PLC0415

    return PythonDocument(text)


def _whole(folder: Path, data: bytes, mode: int) -> Path:
    handle, name = tempfile.mkstemp(prefix=".lorawatch-", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        Path(name).chmod(mode)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    return Path(name)


def _backup(target: Path, data: bytes, mode: int) -> Path:
    for number in range(1, BACKUPS):
        path = target.with_name(f"{target.name}.bak" if number == 1 else f"{target.name}.bak.{number}")
        try:
            with path.open("xb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
        except FileExistsError:
            continue
        path.chmod(mode)
        return path
    raise OSError(f"{BACKUPS} backups stand beside it already")
