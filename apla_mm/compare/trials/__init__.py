"""Trials: which are run, in processes of their own, and what each leaves."""
