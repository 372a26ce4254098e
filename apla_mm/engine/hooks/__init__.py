"""Hooks for mmengine's Runner."""

from .apla_hook import APLAHook
from .data_check_hook import DataCheckHook
from .stop_signal_hook import StopSignalHook

__all__ = ["APLAHook", "DataCheckHook", "StopSignalHook"]
