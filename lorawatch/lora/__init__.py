"""The LoRA doctor: what can be told of an adapter before it trains, while it trains, and from its checkpoint."""
