"""The training loop, its checkpoints and runs."""
