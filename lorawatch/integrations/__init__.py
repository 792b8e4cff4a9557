"""lorawatch inside a training loop: one file a framework."""
