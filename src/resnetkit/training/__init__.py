"""Train a network: configuration, loop, checkpoints, run folder."""
