"""Training that survives, under mmengine's Runner: loop, checkpoints, resuming, signals."""

import mmengine  # noqa: F401  the package's parts are registered then, and they import from here
