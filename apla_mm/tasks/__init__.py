"""One base in memory, and several tasks' deltas that take turns on it."""

from .switch import TaskSwitch, task

__all__ = ["TaskSwitch", "task"]
