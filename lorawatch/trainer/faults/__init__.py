"""Faults that the reference trainer can inject: each a real cause of a run that fails, never a faked metric."""
