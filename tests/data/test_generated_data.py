"""Drawn data sets and configs: the check's verdict, and what OpenMMLab's own data sets and heads make of them."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_sets import write_coco
from mmdet.datasets import CocoDataset
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.models import FCNHead, SegDataPreProcessor
from PIL import Image
from torch import nn

from apla_mm.data.coco.check import check_annotations, check_images
from apla_mm.data.labels import segmentation_check
from apla_mm.data.labels.segmentation_check import SegmentationCheck
from apla_mm.data.reading import DataError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SEEDS = range(20)
IMAGES = 6


def write_images(root: Path, count: int, size: tuple[int, int], suffix: str = ".jpg") -> None:
    for kind in ("images", "maps"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((*size, 3), 40 * i, np.uint8)).save(root / f"images/{i}{suffix}")


class Segmentor(nn.Module):
    """A head that predicts from noise."""

    def __init__(self, num_classes: int, ignore_index: int, sigmoid: bool) -> None:
        super().__init__()
        self.data_preprocessor = SegDataPreProcessor(mean=[0] * 3, std=[1] * 3, size=(20, 20), seg_pad_val=ignore_index)
        loss = dict(type="mmseg.CrossEntropyLoss", use_sigmoid=sigmoid)
        settings: dict[str, Any] = dict(num_convs=0, concat_input=False, norm_cfg=None, loss_decode=loss)
        self.decode_head = FCNHead(
            in_channels=4, channels=4, num_classes=num_classes, ignore_index=ignore_index, **settings
        )

    def loss(self, batch: list[dict[str, Any]]) -> tuple[float, torch.Tensor]:
        """The loss, and the labels that the head compares with; ignored ones as -1."""
        data = self.data_preprocessor(pseudo_collate(batch), True)
        losses = self.decode_head.loss([torch.randn(len(batch), 4, 20, 20)], data["data_samples"], {})
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data["data_samples"]])
        return losses["loss_ce"].item(), torch.where(labels == self.decode_head.ignore_index, -1, labels)


def draw_segmentation(seed: int, root: Path) -> tuple[BaseSegDataset, Segmentor, np.ndarray]:
    """A data set, a model, and the classes that were meant; ignored pixels as -1."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    classes = draw.choice([1, 2, 2, 2, 3, 5, 300])
    meant = np.stack([noise.permutation(400).reshape(20, 20) % classes for _ in range(IMAGES)])
    if draw.random() < 0.7:
        meant[:, 0] = -1
    if classes == 300:
        meant[:, 0] = -1
    ignored = draw.choice([255, 255, 254])
    encoding = draw.choice(["plain", "plain", "plain", "shifted", "mask"])
    labels = np.where(meant < 0, ignored, meant)
    if encoding == "shifted":
        labels = meant + 1
    if encoding == "mask":
        labels = np.where(meant > 0, 255, 0)
    written = draw.choice(["uint8", "uint8", "palette", "uint16", "int32", "colour"]) if classes < 300 else "uint16"
    suffix = ".tif" if written == "int32" else ".png"
    write_images(root, IMAGES, (20, 20))
    for i, one in enumerate(labels):
        image = Image.fromarray(one.astype(dict(uint16=np.uint16, int32=np.int32).get(written, np.uint8)))
        if written == "palette":
            image.putpalette(noise.integers(0, 255, 768).tolist())
        if written == "colour":
            image = image.convert("RGB")
        image.save(root / f"maps/{i}{suffix}")
    load = LoadAnnotations(imdecode_backend=draw.choice(["pillow", "pillow", "cv2"]))
    dataset = BaseSegDataset(
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="maps"),
        metainfo=dict(classes=[f"class {i}" for i in range(classes)]),
        seg_map_suffix=suffix,
        reduce_zero_label=draw.random() < (0.7 if encoding == "shifted" else 0.1),
        pipeline=[dict(type="mmseg.LoadImageFromFile"), load, PackSegInputs()],
    )
    model = Segmentor(classes, ignored if draw.random() < 0.7 else 255, sigmoid=draw.random() < 0.2)
    return dataset, model, meant


@pytest.mark.parametrize("seed", SEEDS)
def test_what_trains_on_other_labels_than_were_meant_is_refused_and_nothing_else(seed: int, tmp_path: Path) -> None:
    dataset, model, meant = draw_segmentation(seed, tmp_path)
    try:
        torch.manual_seed(0)
        loss, seen = model.loss([dataset[i] for i in range(IMAGES)])
        right = loss != 0 and bool((seen == torch.from_numpy(meant)).all())
    except Exception:
        right = False
    check = SegmentationCheck("train_dataloader", model, None, None)
    try:
        check.look_at(dataset, None)
        check.judge(SimpleNamespace(dataset=dataset))
        refused = ""
    except DataError as error:
        refused = str(error)
    if len(dataset.metainfo["classes"]) == 1 and not refused:
        return  # one output of a sigmoid: masks of 0 and 1, or one label alone, which is a warning
    assert bool(refused) != right, refused or "accepted"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_data_set_leaves_out_is_never_left_unsaid(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    write_images(tmp_path, 2, (20, 20))
    labels = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20) % 2)
    for i in range(2):
        labels.save(tmp_path / f"maps/{i}.png")
    suffixes = [".jpg", ".JPG", ".jpeg", ".png", ".txt"]
    for i in range(2, 2 + draw.randint(0, 3)):
        folder = draw.choice(["", "sub dir", "ü"])
        for kind in ("images", "maps"):
            (tmp_path / kind / folder).mkdir(exist_ok=True)
        if draw.random() < 0.8:
            # text would be an image by no suffix
            Image.open(tmp_path / "images/0.jpg").save(
                tmp_path / f"images/{folder}/{i}{draw.choice(suffixes)}", format="png"
            )
        if draw.random() < 0.7:
            labels.save(tmp_path / f"maps/{folder}/{i}.png")
    listed = draw.random() < 0.2
    if listed:
        (tmp_path / "list.txt").write_text("0\n1\n")
    dataset = BaseSegDataset(
        data_root=str(tmp_path) + draw.choice(["", "/"]),
        data_prefix=dict(img_path="images", seg_map_path="maps"),
        ann_file="list.txt" if listed else "",
        metainfo=dict(classes=("left", "right")),
        pipeline=[dict(type="mmseg.LoadImageFromFile"), LoadAnnotations(), PackSegInputs()],
    )
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    taken = {Path(info["img_path"]) for info in infos}
    maps = {path.relative_to(tmp_path / "maps").with_suffix("") for path in (tmp_path / "maps").rglob("*.png")}
    images = [p for p in (tmp_path / "images").rglob("*.*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
    stems = {path: path.relative_to(tmp_path / "images").with_suffix("") for path in images}
    without_map = any(stems[path] not in maps for path in taken)
    left_out = not listed and any(stems[path] in maps for path in images if path not in taken)
    alone = not listed and maps - set(stems.values())

    check = SegmentationCheck("train_dataloader", Segmentor(2, 255, False), None, None)
    warnings: list[str] = []
    monkeypatch.setattr(segmentation_check, "warn", lambda name, text: warnings.append(text))
    try:
        check.look_at(dataset, None)
        refused = False
    except DataError:
        refused = True
    assert refused == (without_map or left_out)
    if not refused:
        assert ["have no image" in warning for warning in warnings] == [True] * bool(alone)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_mmdet_reads_is_accepted_and_nothing_else(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    root = write_coco(tmp_path / draw.choice(["shapes", "two words", "ü", "a'b"]))
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        source = root / "images" / image["file_name"]
        kind = draw.choice(["same", "same", "absolute", "nested", "upper", "linked", "unicode", "backslash"])
        if kind == "absolute":
            image["file_name"] = str(source)
        elif kind == "backslash" and draw.random() < 0.5:
            (root / "images/dir").mkdir(exist_ok=True)
            source.rename(root / "images/dir" / source.name)
            image["file_name"] = f"dir\\{source.name}"
        elif kind != "same":
            new = dict(nested="a b/c", upper=source.stem.upper() + ".JPG", linked="link.jpg", unicode="é ü.jpg").get(
                kind, "odd\\name.jpg"
            )
            target = root / "images" / f"{image['id']}{new}"
            if kind == "nested":
                target = target / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "linked":
                target.symlink_to(source)
            else:
                source.rename(target)
            image["file_name"] = str(target.relative_to(root / "images"))
    encoding = draw.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
    content["info"] = "Größe" if draw.random() < 0.7 else ""
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding, errors="replace"))
    if draw.random() < 0.3:
        path.rename(root / "elsewhere.json")
        path.symlink_to(root / "elsewhere.json")

    settings: dict[str, Any] = dict(metainfo=dict(classes=("square", "disc")), data_prefix=dict(img="images"))
    try:
        dataset = CocoDataset(
            data_root=str(root),
            ann_file="annotations/instances_train.json",
            pipeline=[dict(type="mmdet.LoadImageFromFile")],
            **settings,
        )
        listed = [dataset.get_data_info(i) for i in range(len(dataset))]
        right = all(dataset[i]["img"].shape == (48, 64, 3) for i in range(len(dataset)))
    except Exception:
        right = False
    try:
        check_annotations(str(path), ("square", "disc"))
        images = [(info["img_path"], info["width"], info["height"]) for info in listed]
        check_images(images, None, flag="color", backend="cv2")
        accepted = True
    except DataError as error:
        assert str(path) in str(error) or str(root / "images") in str(error)
        accepted = False
    assert accepted == right
