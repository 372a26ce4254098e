"""Probes of frozen features: which data they read, and that they tell apart what can be told apart."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from apla_mm.compare.probes.probe import IGNORED, ProbeData, features_of, probe_data, probe_scores, samples_of


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_classes(root: Path, count: int = 10) -> Path:
    """Two classes of images: dark ones and bright ones."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 50)):
        for i in range(count):
            write(root / name / f"{i}.png", rng.integers(level - 40, level + 40, (20, 30, 3), np.uint8))
    return root


def write_label_maps(root: Path, count: int = 10) -> Path:
    """The left half is of one class and dark, the right one of another, and a strip below is ignored."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image, labels = np.full((32, 32, 3), 30, np.uint8), np.full((32, 32), 3, np.uint8)
        image[:, 16:], labels[:, 16:], labels[24:] = 220, 7, IGNORED
        write(root / f"images/part/{i}.png", image + rng.integers(0, 20, image.shape, np.uint8))
        write(root / f"annotations/part/{i}.png", labels)
    return root


class Patches(nn.Module):
    """Mean colours of patches of 8 x 8 pixels, as a backbone's last map."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.zeros(1), nn.functional.avg_pool2d(images, 8)


def features(data: ProbeData) -> torch.Tensor:
    return features_of(Patches(), lambda image: image[None] - 128.0, data.images, 32)


def test_images_of_classes(tmp_path: Path) -> None:
    data = probe_data(write_classes(tmp_path))
    assert data.labels == (0,) * 10 + (1,) * 10
    maps = features(data)
    assert maps.shape == (20, 4, 4, 3) and maps[:10].mean() > maps[10:].mean() + 100
    samples = samples_of(maps, data)
    assert samples.features.shape == (20, 3) and len(set(samples.images)) == 20
    assert probe_scores(samples) == {"k-NN": 100.0, "linear": 100.0}


def test_patches_with_one_label(tmp_path: Path) -> None:
    data = probe_data(write_label_maps(tmp_path))
    maps = features(data)
    samples = samples_of(maps, data)
    assert (
        samples.labels.tolist() == 10 * 3 * [3, 3, 7, 7]
        and samples.images.tolist() == np.repeat(range(10), 12).tolist()
    )
    assert probe_scores(samples) == {"k-NN": 100.0, "linear": 100.0}
    few = samples_of(maps, data, most=30)
    assert len(few.labels) == 30 and {few.images[0], few.images[-1]} == {0, 9}


def test_noise_tells_nothing(tmp_path: Path) -> None:
    data = probe_data(write_classes(tmp_path))
    noise = torch.randn(20, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    assert all(10 < score < 90 for score in probe_scores(samples_of(noise, data)).values())


def test_an_image_is_on_one_side_alone(tmp_path: Path) -> None:
    """Features that know the image but not the class would else tell every patch from its neighbours."""
    rng = np.random.default_rng(0)
    data = ProbeData(tuple(Path(f"{i}") for i in range(20)), tuple(write_one(tmp_path, i, rng) for i in range(20)))
    own = torch.randn(20, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(20, 4, 4, 16)
    assert all(score < 80 for score in probe_scores(samples_of(own, data)).values())


def write_one(root: Path, index: int, rng: np.random.Generator) -> Path:
    write(root / f"{index}.png", np.full((32, 32), index % 2, np.uint8))
    return root / f"{index}.png"


def test_most_are_spread_over_all(tmp_path: Path) -> None:
    data = probe_data(write_classes(tmp_path), most=8)
    assert data.labels == (0,) * 4 + (1,) * 4
    assert [file.stem for file in data.images[:4]] == ["0", "2", "5", "7"]


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a folder for each of two or more classes"):
        probe_data(tmp_path / "nowhere")
    write_label_maps(tmp_path / "maps")
    (tmp_path / "maps/annotations/part/3.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 10 images have no label map; .*part/3\.png"):
        probe_data(tmp_path / "maps")
    with pytest.raises(ValueError, match="has 4 images, and 5 parts"):
        probe_data(write_classes(tmp_path / "few", 2))
    broken = write_classes(tmp_path / "broken")
    (broken / "dark/0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dark/0\.png cannot be read"):
        features(probe_data(broken))


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("train/cat", "train/dog", "val/cat", "val/dog"), "has 'train', 'val', which are splits: give one of them"),
        (("images", "masks"), r"images is no class: label maps of its images go into .*/annotations"),
    ],
)
def test_folders_that_are_no_classes(folders: tuple[str, ...], told: str, tmp_path: Path) -> None:
    for folder in folders:
        for i in range(10):
            write(tmp_path / folder / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=told):
        probe_data(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for folder in ("train", "bus"):
        for i in range(10):
            write(tmp_path / folder / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    assert probe_data(tmp_path).labels == (0,) * 10 + (1,) * 10


def test_labels_of_a_palette_are_its_indices(tmp_path: Path) -> None:
    data = probe_data(write_label_maps(tmp_path))
    maps = features(data)
    gray = samples_of(maps, data)
    for file in (tmp_path / "annotations").rglob("*.png"):
        image = Image.fromarray(np.asarray(Image.open(file)), "P")
        image.putpalette(list(range(256)) * 3)
        image.save(file)
    assert samples_of(maps, data).labels.tolist() == gray.labels.tolist()


def test_a_label_map_in_colour_is_named(tmp_path: Path) -> None:
    data = probe_data(write_label_maps(tmp_path))
    write(tmp_path / "annotations/part/3.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"annotations/part/3.png has 3 channels: expected one"):
        samples_of(features(data), data)
