"""Architectures: what a block computes. They do not know where weights live."""
