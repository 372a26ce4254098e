"""Hooks by which training survives: checkpoints, resuming, signals, losses that are no numbers."""
