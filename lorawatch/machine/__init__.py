"""Looks at the machine that a run trains on: cards, host, processes. ``run_machine.py`` joins them for one run."""
