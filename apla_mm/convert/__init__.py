"""Checkpoints, deltas and base files, out of one another; ``apla_mm.commands`` has their command lines."""
