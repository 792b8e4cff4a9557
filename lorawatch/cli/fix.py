"""``lorawatch fix RUN --config FILE``: the next adjustment as a diff of a person's own configuration."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorawatch.cli.errors import UsageError
from lorawatch.cli.options import settings_of
from lorawatch.engine import Engine
from lorawatch.findings import Adjustment, Finding
from lorawatch.ledger import LEDGER, LedgerChange, LedgerEntry, append_entry, ledger_path, read_ledger
from lorawatch.records import FactUpdate
from lorawatch.registry import RuleSet
from lorawatch.render import WIDTH, adjustment_text, json_ready, printable, run_heading, value_text
from lorawatch.version import __version__
from lorawatch.watch import judge

if TYPE_CHECKING:
    from lorawatch.config_files.changes import Change
    from lorawatch.config_files.files import ConfigFile
    from lorawatch.run import Run
    from lorawatch.run_watch import RunWatch

_EPILOG = """\
exit code:
  0  the change is shown, or written; or nothing is to be changed
  1  the change has to be made by hand
  2  the run or the configuration cannot be used, or nothing could be written

examples:
  lorawatch fix ./outputs --config train.yaml            show the change as a diff
  lorawatch fix ./outputs --config train.yaml --write    make it; train.yaml.bak is the file as it was
  lorawatch fix ./outputs --config train.py --all        also list what stands behind it in the queue
  lorawatch compare ./outputs ./outputs-2                after the next run: did it help?
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Judge a run and make its next adjustment in the configuration that started it: YAML, JSON or the literals of "
        "a Python script, with the names of TRL and transformers, axolotl or LLaMA-Factory. Nothing but the value "
        "changes. One adjustment at a time, so that it can be told whether it helped."
    )
    parser.epilog = _EPILOG
    parser.add_argument("path", metavar="RUN", type=Path, help="a run's folder, or its log")
    # Not the shared --config, which names lorawatch's own settings.
    parser.add_argument(
        "--config", dest="training_config", metavar="FILE", type=Path, required=True,
        help="the configuration that starts the run: .yaml, .json or .py",
    )  # fmt: skip
    parser.add_argument(
        "--write", action="store_true", help="change the file; keep a backup, and note it in the ledger"
    )
    parser.add_argument("--all", action="store_true", help="also list the adjustments that stand behind the next one")
    parser.add_argument("--force", action="store_true", help="write although the file differs from what the run used")
    parser.add_argument("--again", action="store_true", help="go on although a change for this run was made already")
    parser.add_argument("--select", metavar="RULES", help="only these rules or families, comma-separated: loss,sig/nan")
    parser.add_argument("--ignore", metavar="RULES", help="leave out these rules or families")
    parser.add_argument(
        "--rules", metavar="PATH", action="append", default=[], help="load further rules from a file or folder"
    )
    parser.add_argument(
        "--settings", dest="config", metavar="FILE", type=Path,
        help="settings (default: lorawatch.toml, if there is one)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Show or write the change; returns the exit code.

    Raises:
        UsageError: The run or the configuration cannot be used.
    """
    from lorawatch.config_files.changes import AlreadySoError, change, companions  # noqa: PLC0415
    from lorawatch.config_files.document import ConfigError  # noqa: PLC0415
    from lorawatch.config_files.families import FAMILY_TITLES, family_of, known_parameters, stated_facts  # noqa: PLC0415
    from lorawatch.config_files.files import read_config  # noqa: PLC0415

    try:
        file = read_config(options.training_config)
    except ConfigError as error:
        raise UsageError(printable(error)) from None
    if not known_parameters(file.document):
        count = sum(1 for _ in file.document.entries)
        raise UsageError(
            f"{printable(file.path)}: none of its {count} settings is a training parameter; "
            "give the configuration that starts the run"
        )
    watch = _one_run(options.path, RuleSet(settings_of(options)))
    engine = watch.engine
    stated = str(engine.run.fact("framework", "")).lower()
    family = family_of(file.document, stated)
    if stated in FAMILY_TITLES and stated != family:
        raise UsageError(
            f"{printable(file.path)}: has the names of {FAMILY_TITLES[family]}, but the run is one of "
            f"{FAMILY_TITLES[stated]}; give the configuration that starts it"
        )
    # What the run does not tell, the file that started it does: words become numbers, in this file's own names.
    facts = stated_facts(file.document, family)
    others = _others(engine.run, facts)
    engine.run.learn(FactUpdate(facts, file.path.name, inferred=True))
    engine.renew_advice()

    _print(run_heading(watch.name, engine.run))
    _print(f"{printable(file.path)}: {file.document.format}, names of {FAMILY_TITLES[family]}")
    made_before = _made_before(watch, file)
    if made_before is not None and not options.again:
        _print_made_before(made_before)
        return 0
    chosen = _chosen(engine)
    if chosen is None:
        return _nothing_to_set(engine, listed=options.all)
    finding, adjustment = chosen
    _tell(f"next:  {adjustment_text(adjustment)} – {printable(adjustment.why)} ({_ways(adjustment)})")
    _tell(f"for:   {finding.title} [{finding.rule}, step {finding.opened_step}]: {printable(finding.summary)}")
    together = companions(adjustment, finding.adjustments)
    for item in together:
        _tell(f"with:  {adjustment_text(item)} – {printable(item.why)}")
    if options.all:
        _list_queue(engine, (adjustment, *together))
    try:
        made = change(file.document, family, (adjustment, *together), f"lorawatch: {finding.rule}")
    except AlreadySoError as reason:
        _print("")
        _tell(f"nothing to change: {printable(reason)}")
        _note(others)
        return 0
    except ConfigError as reason:
        _print("")
        _tell(f"by hand: {printable(reason)}")
        _note(others)
        return 1
    _print("")
    for line in made.diff(file.path.name):
        _print(printable(line))
    _print("")
    _note(made.differs or others)
    if not options.write:
        _print("nothing was written; --write makes the change and keeps the file as it is beside it")
        return 0
    if made.differs and not options.force:
        raise UsageError(
            f"{printable(file.path)}: not written, because {printable(made.differs[0])} (--force writes it)"
        )
    _write(watch, file, made, finding, adjustment)
    return 0


def _one_run(path: Path, rules: RuleSet) -> RunWatch:
    judged = judge([path], rules)
    if not judged.runs:
        raise UsageError(printable(judged.errors[0].message if judged.errors else f"{path}: holds no run"))
    names = [watch.run_name(index) for watch in judged.runs for index in range(len(watch.engines))]
    if len(names) > 1:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UsageError(printable(f"{path}: holds {len(names)} runs ({', '.join(names[:3])}{more}); give one of them"))
    return judged.runs[0]


def _chosen(engine: Engine) -> tuple[Finding, Adjustment] | None:
    adjustment = engine.next_adjustment()
    for finding in engine.active():
        for item in finding.adjustments:
            if item is adjustment:
                return finding, item
    return None


def _nothing_to_set(engine: Engine, *, listed: bool) -> int:
    """Say that no value is to be set: nothing fires, or only looks are asked for."""
    active = engine.active()
    if not active:
        _print("nothing to change: no finding is open" + (", all have resolved" if engine.findings else ""))
        return 0
    looks = [
        (finding, item) for finding in active if finding.is_root for item in finding.adjustments if not item.parameter
    ]
    if looks:
        finding, item = looks[0]
        _tell(f"for:   {finding.title} [{finding.rule}, step {finding.opened_step}]: {printable(finding.summary)}")
        _print("")
        _tell(f"by hand: {printable(item.proposed)} – {printable(item.why)}")
    else:
        _print("nothing to change: no open finding asks for it")
    if listed:
        _list_queue(engine, ())
    return 1 if looks else 0


def _list_queue(engine: Engine, shown: Sequence[Adjustment]) -> None:
    for finding in engine.active():
        for item in finding.adjustments:
            if not any(item is one for one in shown):
                head = "then:" if item.parameter else "look:"
                conflicts = f"; {item.conflicts}" if item.conflicts else ""
                _tell(
                    f"{head}  {adjustment_text(item)} – {printable(item.why)} ({_ways(item)}; {finding.rule}"
                    f"{printable(conflicts)})"
                )


def _ways(item: Adjustment) -> str:
    parts = [f"{item.confidence} confidence", item.apply, f"cost: {item.cost}" if item.cost else ""]
    return printable("; ".join(part for part in parts if part))


def _others(run: Run, facts: Mapping[str, Any]) -> list[str]:
    """What the file says otherwise than the run states of itself, in one line; none where they agree."""
    from lorawatch.config_files.changes import is_close, number_of  # noqa: PLC0415

    found: list[str] = []
    for name, value in sorted(facts.items()):
        known, here = run.facts.get(name), number_of(value)
        there = None if known is None or known.inferred else number_of(known.value)
        if here is not None and there is not None and not is_close(here, there):
            found.append(f"{name} is {value_text(here)} here, and was {value_text(there)} in the run")
    more = f" (and {len(found) - 1} more settings differ)" if len(found) > 1 else ""
    return [found[0] + more] if found else []


def _made_before(watch: RunWatch, file: ConfigFile) -> LedgerEntry | None:
    """The last change that was made for this run as it stands, if the file still has it."""
    from lorawatch.config_files.document import same  # noqa: PLC0415
    from lorawatch.config_files.families import settings_of as places_of  # noqa: PLC0415

    run = watch.engine.run
    for entry in reversed(read_ledger(watch.files.path)):
        if not entry.is_of(watch.name, run.first_time, run.step or 0, run.rows):
            continue
        if Path(entry.config).name != file.path.name:
            continue
        held = [[place.value for place in places_of(file.document, one.name)] for one in entry.changes]
        if all(
            any(same(value, one.after) for value in values) for values, one in zip(held, entry.changes, strict=True)
        ):
            return entry
    return None


def _print_made_before(entry: LedgerEntry) -> None:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.time))
    words = ", ".join(f"{one.name} {_before(one)} → {value_text(one.after)}" for one in entry.changes)
    _print(f"made already: {printable(words)} on {when}, for {printable(entry.rule)} (the run's ledger)")
    _print("nothing more until it was tried: train again, then compare; --again goes on all the same")


def _before(change: LedgerChange) -> str:
    return "not set" if change.before is None else value_text(change.before)


def _write(watch: RunWatch, file: ConfigFile, made: Change, finding: Finding, adjustment: Adjustment) -> None:
    from lorawatch.config_files.document import ConfigError  # noqa: PLC0415
    from lorawatch.config_files.files import write_config  # noqa: PLC0415

    ledger = ledger_path(watch.files.path)
    try:
        ledger.open("ab").close()  # before anything is changed
    except OSError as error:
        raise UsageError(f"{ledger}: cannot be written ({error.strerror or error}); nothing was changed") from None
    try:
        backup = write_config(file, made.after)
    except ConfigError as error:
        raise UsageError(printable(error)) from None
    run = watch.engine.run
    entry = LedgerEntry(
        time=time.time(), run=watch.name, started=run.first_time, last_step=run.step or 0, rows=run.rows,
        rule=finding.rule, finding=finding.id, severity=finding.severity.label, summary=finding.summary,
        why=adjustment.why, apply=adjustment.apply, config=str(file.path.absolute()), backup=str(backup.absolute()),
        changes=tuple(
            LedgerChange(one.name, one.parameter, json_ready(one.before), json_ready(one.after)) for one in made.edits
        ),
        lorawatch=__version__,
    )  # fmt: skip
    try:
        append_entry(ledger, entry)
    except OSError as error:
        raise UsageError(
            f"{ledger}: cannot be written ({error.strerror or error}); {printable(file.path)} is changed all the same"
        ) from None
    _print(f"written: {printable(file.path)}; as it was: {printable(backup)}; noted in {LEDGER}")
    _print("run it again, then: lorawatch compare BEFORE AFTER")


def _note(differs: Sequence[str]) -> None:
    for words in differs:
        _tell(f"note: {printable(words)}: is this the file that started it?")


def _tell(line: str) -> None:
    head = line.partition(" ")[0]
    indent = " " * max(len(head) + 1, 7)
    _print(textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
