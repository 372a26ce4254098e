"""What the tests share."""

from pathlib import Path

import apla_mm  # noqa: F401  before anything that imports torchvision, in processes too that have no conftest.py

ROOT = Path(__file__).parents[2]
