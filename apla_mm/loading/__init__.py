"""What a run begins with, wherever mmengine loads it: deltas and their bases, safetensors, checkpoints."""

import mmengine  # noqa: F401  the package's parts are registered then, and they import from here
