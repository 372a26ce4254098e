"""Hooks that adapt a model under mmengine's Runner, and say what of it trains."""

import mmengine  # noqa: F401  the package's parts are registered then, and they import from here
