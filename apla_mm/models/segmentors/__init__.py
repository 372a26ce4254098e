"""Segmentors of OpenMMLab's that compute the same with less."""
