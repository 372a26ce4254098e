"""Checkpoints, deltas and base files, out of one another; ``tools/model_converters`` are their command lines."""
