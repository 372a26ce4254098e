"""Training and predicting in a few lines of Python, by the same configs and runner as the commands."""

from .load import load
from .prediction import Prediction
from .predictor import Predictor
from .train import Trained, train

__all__ = ["Prediction", "Predictor", "Trained", "load", "train"]
