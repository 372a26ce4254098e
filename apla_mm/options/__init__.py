"""Options that reach every place of a config, and how jobs are launched."""

import mmengine  # noqa: F401  the package's parts are registered then, and they import from here
