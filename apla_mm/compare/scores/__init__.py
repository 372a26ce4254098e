"""Scores of single test images, and intervals for the differences of methods."""
