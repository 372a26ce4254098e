"""Options that reach every place of a config, and how jobs are launched."""
