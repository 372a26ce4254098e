"""Training and predicting in a few lines of Python, by the same configs and runner as the commands."""

from .loading import load
from .prediction import Prediction
from .predictor import Predictor
from .training import Trained, train

__all__ = ["Prediction", "Predictor", "Trained", "load", "train"]
