"""Models as folders that a hub takes: weights, config, and a card that says what they are."""

from .fetch import fetch, weights_in
from .folder import write_folder

__all__ = ["fetch", "weights_in", "write_folder"]
