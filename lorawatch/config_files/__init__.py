"""A person's own training configuration, edited so that nothing but the value changes: YAML, JSON and Python literals.

:mod:`~lorawatch.config_files.files` reads and writes a file, :mod:`~lorawatch.config_files.families` tells whose names
it uses, and :mod:`~lorawatch.config_files.changes` makes an adjustment's edits in it.
"""
