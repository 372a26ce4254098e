"""Hooks for heads: exact ones that keep less, and masks that are annealed away."""
