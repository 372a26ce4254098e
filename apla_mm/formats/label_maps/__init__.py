"""Segmentation data: images and label maps that belong together, their labels, colours and classes."""
