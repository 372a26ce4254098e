import pytest
import torch

from apla_mm.devices import find_device


def test_a_device_that_is_there_and_the_default() -> None:
    assert find_device("cpu") == "cpu"
    assert find_device() == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:4096", "cpu:x"])
def test_one_that_is_not_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' is not one of this machine: .*; leave it out, or name cpu"):
        find_device(name)
