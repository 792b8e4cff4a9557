"""``lorawatch report RUN``: one run as a page to read, keep and send."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from lorawatch.cli.errors import UsageError
from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.findings import Severity
from lorawatch.registry import RuleSet
from lorawatch.render import printable
from lorawatch.run_watch import RunWatch
from lorawatch.source import SourceError
from lorawatch.watch import judge

_EPILOG = """\
exit code:
  0  nothing at or above --fail-on      1  something      2  nothing could be judged or written

examples:
  lorawatch report ./outputs                        writes report.html
  lorawatch report train.log -o monday.html
  lorawatch report ./outputs --format markdown > report.md
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Write a report of one run: findings with evidence and advice, curves, samples, adapter, labels, set-up. The "
        "page needs nothing from outside, and runs no script. A RUN is a log file or a run's folder."
    )
    parser.epilog = _EPILOG
    parser.add_argument("path", metavar="RUN", type=Path)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write; - for standard output (default: report.html, or - )"
    )
    parser.add_argument("--format", choices=("html", "markdown"), default="html")
    parser.add_argument(
        "--fail-on",
        choices=("info", "warning", "critical", "never"),
        help="exit with 1 from this severity on (default: warning)",
    )
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Judge, write, and say what was written; returns the exit code.

    Raises:
        UsageError: There is no such run, or several; nothing was logged; the report cannot be written.
    """
    settings = settings_of(options)
    rules = RuleSet(settings)
    watch = _one_run(options.path, rules)
    output = options.output or ("report.html" if options.format == "html" else "-")
    target = None if output == "-" else _target(Path(output), watch)
    text = _report(watch, rules, options.format)
    if target is None:
        sys.stdout.write(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
    else:
        size = _write(target, text)
        sys.stdout.write(f"{printable(output)}: {_found(watch)}, {size / 1000:,.0f} kB\n")
    sys.stdout.flush()
    fail_on = options.fail_on or settings.fail_on
    if fail_on == "never":
        return 0
    limit = Severity.parse(fail_on)
    return int(any(finding.severity >= limit for finding in watch.engine.findings))


def _one_run(path: Path, rules: RuleSet) -> RunWatch:
    judged = judge([path], rules)
    if len(judged.runs) > 1:
        names = [watch.name for watch in judged.runs]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UsageError(printable(f"{path}: holds {len(names)} runs ({', '.join(names[:3])}{more}); give one of them"))
    if not judged.runs:
        raise UsageError(printable(judged.errors[0].message if judged.errors else f"{path}: holds no run"))
    return judged.runs[0]


def _report(watch: RunWatch, rules: RuleSet, form: str) -> str:
    try:
        from lorawatch.report.content import gather  # noqa: PLC0415  (pandas is loaded with it)
        from lorawatch.report.markdown import markdown  # noqa: PLC0415
        from lorawatch.report.page import page  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("pandas", "numpy"):
            raise
        raise UsageError(f"a report needs {error.name}: pip install 'lorawatch[report]'") from None
    try:
        content = gather(watch, rules)
    except SourceError as error:
        raise UsageError(printable(error)) from None
    return page(content) if form == "html" else markdown(content)


def _found(watch: RunWatch) -> str:
    findings = watch.engine.findings
    critical = sum(finding.severity is Severity.CRITICAL for finding in findings)
    words = {0: "no findings", 1: "1 finding"}.get(len(findings), f"{len(findings)} findings")
    return f"{words}, {critical} critical" if critical else words


def _target(path: Path, watch: RunWatch) -> Path:
    """Where to write, checked before the work: a link is followed, and no log of the run is written over."""
    try:
        target = path.resolve()
        own = [source.path.resolve() for source in watch.files.sources]
        own += [file.resolve() for file in watch.files.fact_files]
        if target in own:
            why = "a file of the run itself; choose another file with -o"
        elif target.is_dir():
            why = f"a folder; give a file's name, {path}/report.html"
        elif target.exists() and not os.access(target, os.W_OK):
            why = "cannot be written (read-only); choose another file with -o"
        elif not target.parent.is_dir():
            why = f"there is no folder {target.parent}; make it, or choose another with -o"
        else:
            return target
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        why = f"cannot be written ({reason}); choose another file with -o"
    raise UsageError(printable(f"{path}: {why}"))


def _write(target: Path, text: str) -> int:
    """Write whole or not at all; returns the size in bytes."""
    data = text.encode("utf-8", "replace")
    try:
        if target.exists() and not target.is_file():  # a pipe or a device is written to, never replaced
            target.write_bytes(data)
            return len(data)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask)
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(printable(f"{target}: cannot be written ({reason}); choose another file with -o")) from None
    return len(data)
