"""A folder of deltas as a service: one base in memory, its tasks by HTTP, and a page to look at them.

Read in this order: ``base`` and ``task`` (weights that tasks share, and one task on them), ``worker`` (the one thread
that owns the models, and its batches), ``folder`` (deltas that come and go), ``limits``, ``uploads``, ``rest_of_body``
and ``images`` (what a request may hold), ``results`` (what it gets), ``metrics``, ``app`` (the routes), ``server`` (a
process from its first signal to its last).
"""
