"""Hooks for mmengine's Runner."""

from .apla_hook import APLAHook
from .data_check_hook import DataCheckHook

__all__ = ["APLAHook", "DataCheckHook"]
