"""The reference LoRA trainer, and the faults that it can inject. Only ``lorawatch train`` loads what is heavy in it."""
