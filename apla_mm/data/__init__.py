"""A look at the data before training."""

import mmengine  # noqa: F401  the package's parts are registered then, and they import from here
