import pytest
import torch

import apla_mm  # noqa: F401  before anything that imports torchvision


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
