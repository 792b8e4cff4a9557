"""Options that several verbs share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lorawatch.settings import Settings, load_settings


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose rules and settings."""
    parser.add_argument("--select", metavar="RULES", help="only these rules or families, comma-separated: loss,sig/nan")
    parser.add_argument("--ignore", metavar="RULES", help="leave out these rules or families")
    parser.add_argument(
        "--rules", metavar="PATH", action="append", default=[], help="load further rules from a file or folder"
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings (default: lorawatch.toml, if there is one)"
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of file, environment and flags together.

    Raises:
        SettingsError: One of them is wrong.
    """
    settings = load_settings(options.config)
    if options.select is not None:
        settings = replace(settings, select=_parts(options.select))
    if options.ignore is not None:
        settings = replace(settings, ignore=_parts(options.ignore))
    if options.rules:
        settings = replace(settings, rules_paths=(*settings.rules_paths, *options.rules))
    return settings


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
