import cv2
import numpy as np
import pytest
import torch

from apla_mm.export.byte_resize import resize_bytes


@pytest.mark.parametrize(
    ("size", "new"), [((37, 50), (64, 87)), ((80, 111), (64, 89)), ((64, 48), (32, 24)), ((9, 200), (50, 7))]
)
def test_it_is_opencvs_to_the_bit(size: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    got = resize_bytes(torch.from_numpy(image).permute(2, 0, 1)[None], *new)
    assert np.array_equal(got[0].permute(1, 2, 0).numpy(), expected)
