"""Sources: each follows one kind of log and yields records; :mod:`.discover` tells which files make a run."""
