"""Optimizer wrappers, and the groups that parameters are in."""
