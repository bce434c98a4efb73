"""One loop, objectives, checkpoints."""
