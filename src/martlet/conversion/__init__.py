"""Foreign checkpoints into our model folder, one tensor in memory at a time."""
