"""Hooks that adapt a model under mmengine's Runner, and say what of it trains."""
