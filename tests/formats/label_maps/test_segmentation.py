import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_formats import SEG_PIPELINE, SPLITS, copy_seg, copy_voc_seg, read_seg, seg_samples
from helpers.data_sets import write_coco, write_scenes
from mmengine.registry import DATASETS
from mmseg.datasets import CityscapesDataset, PascalVOCDataset
from PIL import Image

from apla_mm.data.reading import DataError
from apla_mm.formats import FoundData, find_data

CLASSES = ("class 0", "class 1")


def names(folder: str, end: str = "", suffix: str = "") -> Any:
    """The names of the files of one kind."""
    return lambda split, name: f"{folder.format(split=split, long=SPLITS[split])}{name}{end}{suffix}"


def samples(found: FoundData, split: str, **settings: Any) -> list[tuple[Any, Any]]:
    config = dict(found.dataset(split), pipeline=SEG_PIPELINE, serialize_data=False, **settings)
    return read_seg(DATASETS.build(dict(config, _scope_="mmseg")))


def assert_same(found: FoundData, scenes: Path) -> None:
    """The images and label maps are those that mmseg reads of the original."""
    for split, folder in SPLITS.items():
        expected, got = seg_samples(scenes, folder), samples(found, split)
        assert len(got) == len(expected) > 0
        for one, other in zip(got, expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


@pytest.mark.parametrize(
    ("image", "label_map", "expected"),
    [
        (names("images/{long}/"), names("annotations/{long}/", suffix=".png"), "ADE20K's format"),
        (names("images/{split}/"), names("annotations_semantic/{split}/", suffix=".png"), "folders of splits"),
        (names("{split}/img/"), names("{split}/masks/", suffix=".png"), "folders of splits"),
        (names("{split}_images/"), names("{split}_masks/", suffix=".png"), "folders of splits"),
        (names("{split}2017/photo_"), names("gt/{split}2017/mask_", "_v2", ".png"), "folders of splits"),
        (
            names("leftImg8bit/{split}/bonn/", "_leftImg8bit"),
            names("gtFine/{split}/bonn/", "_gtFine_labelIds", ".png"),
            "Cityscapes' format",
        ),
        (names("a/{split}/"), names("b/{split}/", suffix=".png"), "folders of splits"),
        (names("{split}/{split}_"), names("masks/{split}_", suffix=".png"), "images and label maps"),
        (names("img/{split}_"), names("masks/{split}/{split}_", suffix=".png"), "folders of splits"),
    ],
)
def test_folders_of_splits_are_read_as_the_originals(
    scenes: Path, tmp_path: Path, image: Any, label_map: Any, expected: str
) -> None:
    root = copy_seg(scenes, image, label_map, tmp_path / "copy")
    found = find_data(root, "seg", tmp_path / "lists")
    assert expected in found.format
    assert found.classes == CLASSES
    assert any("Nothing names the classes" in note for note in found.notes)
    assert_same(found, scenes)


@pytest.mark.parametrize(
    ("image", "label_map"),
    [
        (names("{split}_"), names("{split}_", "_mask", ".png")),
        (names("{split}_"), names("mask_{split}_", "", ".png")),
        (names("{split}_"), names("masks/label-{split}_", "", ".tif")),
        (names("data/{split}_", "_leftImg8bit"), names("data/{split}_", "_gtFine_labelIds", ".png")),
        (names("x/photo-{split}_"), names("y/{split}_", "z", ".png")),
        (names("{split}_"), names("{split}_", "", ".png")),
    ],
)
def test_one_folder_is_paired_by_names_and_split(scenes: Path, tmp_path: Path, image: Any, label_map: Any) -> None:
    root = copy_seg(scenes, image, label_map, tmp_path / "copy")
    found = find_data(root, "seg", tmp_path / "lists", held_out=0.4)
    assert any("paired by the rule" in note for note in found.notes)
    assert any("Held out for validation: 2 of 5 images (40%)" in note for note in found.notes)
    got = [*samples(found, "train"), *samples(found, "val")]
    expected = [pair for folder in SPLITS.values() for pair in seg_samples(scenes, folder)]
    key = lambda pair: pair[0].tobytes()  # noqa: E731
    for one, other in zip(sorted(got, key=key), sorted(expected, key=key), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_pascal_voc_is_read_by_its_lists(scenes: Path, tmp_path: Path) -> None:
    root = copy_voc_seg(scenes, tmp_path / "VOCdevkit/VOC2012")
    found = find_data(root.parent, "seg", tmp_path / "lists")
    assert (found.format, found.classes) == ("Pascal VOC's format", PascalVOCDataset.METAINFO["classes"])
    assert_same(found, scenes)
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("lost\n")
    with pytest.raises(DataError, match="val.txt', line 3: 'lost' has no image in JPEGImages"):
        find_data(root, "seg", tmp_path / "lists")


def test_other_kinds_of_label_maps_are_left_out_and_several_of_one_kind_refused(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    for end in ("_labelIds", "_labelTrainIds", "_instanceIds", "_color"):
        copy_seg(scenes, names("img/{split}/"), names("gtFine/{split}/", f"_gtFine{end}", ".png"), root)
    found = find_data(root, "seg", tmp_path / "lists")
    assert found.classes == CityscapesDataset.METAINFO["classes"]
    assert sum("Other files of images' names are left out" in note for note in found.notes) == 3
    assert_same(found, scenes)
    for path in root.rglob("*_gtFine_*"):
        path.rename(path.with_name(path.name.replace("TrainIds", "By1").replace("labelIds", "labelBy2")))
    with pytest.raises(DataError, match="each image has 2 label maps by their names"):
        find_data(root, "seg", tmp_path / "lists")


def test_images_and_label_maps_without_a_partner_are_named(scenes: Path, tmp_path: Path) -> None:
    (scenes / "annotations/training/scene_1.png").rename(scenes / "annotations/training/other_7.png")
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert "Images without a label map are left out (1): 'images/training/scene_1.jpg'." in found.notes
    assert "Label maps without an image are left out (1): 'annotations/training/other_7.png'." in found.notes
    assert len(samples(found, "train")) == 2


def test_names_that_have_no_rule_are_shown(scenes: Path, tmp_path: Path) -> None:
    root = copy_seg(scenes, names("images/{split}/"), names("masks/{split}/", suffix=".png"), tmp_path / "copy")
    for path in root.rglob("*.png"):
        path.rename(path.with_name(f"{['one', 'two', 'three'][int(path.stem[-1])]}.png"))
    with pytest.raises(
        DataError, match="there are 5 images, .* and 5 label maps, .* no rule pairs more than 2 of them"
    ):
        find_data(root, "seg", tmp_path / "lists")


def test_one_word_in_a_name_does_not_make_a_label_map(scenes: Path, tmp_path: Path) -> None:
    root = copy_seg(scenes, names("x/{split}_"), names("y/{split}_", suffix=".png"), tmp_path / "copy")
    for path in (root / "x/train_scene_0.jpg", root / "y/train_scene_0.png"):
        path.rename(path.with_name(f"mask_scene_9{path.suffix}"))
    found = find_data(root, "seg", tmp_path / "lists")
    assert len(samples(found, "train")) + len(samples(found, "val")) == 5


def test_grey_images_are_told_from_label_maps_by_their_values(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for folder in ("one", "two"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(noise.integers(0, 255, (40, 48), dtype=np.uint8)).save(tmp_path / f"data/one/{i}.png")
        Image.fromarray(noise.integers(0, 3, (40, 48), dtype=np.uint8)).save(tmp_path / f"data/two/{i}.png")
    found = find_data(tmp_path / "data", "seg", tmp_path / "lists", held_out=0.25)
    assert found.classes == ("class 0", "class 1", "class 2")
    assert any("'one/*' has the label map 'two/*'" in note for note in found.notes)
    assert any("told from images by their values" in note for note in found.notes)


def rewrite(root: Path, change: Any, folder: str = "annotations") -> None:
    for path in (root / folder).rglob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("classes", "expected"), [(None, ("class 0", "class 255")), (["crack"], ("background", "crack"))]
)
def test_masks_of_0_and_255_have_two_classes(scenes: Path, tmp_path: Path, classes: Any, expected: Any) -> None:
    rewrite(scenes, lambda labels: np.where(labels == 1, 255, 0).astype(np.uint8))
    found = find_data(scenes, "seg", tmp_path / "lists", classes=classes)
    assert found.classes == expected
    assert any("255 is taken for the second class" in note for note in found.notes)
    for _, labels in samples(found, "train"):
        assert np.array_equal(labels, seg_samples(scenes, "training")[0][1] // 255)


def test_255_is_a_class_where_it_is_named_and_asked_for_where_it_may_be(scenes: Path, tmp_path: Path) -> None:
    before = seg_samples(scenes, "training")
    grey = np.array([0, 128] + [255] * 254, np.uint8)
    rewrite(scenes, lambda labels: grey[labels])
    question = r"hold the labels 0, 128, 255, .* there is the label 128, .* 3 names if 255 is a class, or with 2"
    with pytest.raises(DataError, match=question):
        find_data(scenes, "seg", tmp_path / "lists")
    found = find_data(scenes, "seg", tmp_path / "lists", classes=["cup", "disc", "background"])
    assert found.classes == ("cup", "disc", "background")
    assert any("it is taken for a class, and not for ignored" in note for note in found.notes)
    for (_, labels), (_, expected) in zip(samples(found, "train"), before, strict=True):
        assert np.array_equal(labels, np.where(expected == 255, 2, expected))
    (scenes / "classes.txt").write_text("cup\ndisc\n")
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert found.classes == ("cup", "disc") and "The label 255 is ignored." in found.notes
    assert np.array_equal(samples(found, "train")[0][1], before[0][1])


def test_255_of_most_pixels_is_asked_for(scenes: Path, tmp_path: Path) -> None:
    rewrite(scenes, lambda labels: np.where(np.arange(48) < 30, 255, labels).astype(np.uint8))
    with pytest.raises(DataError, match=r"but 6\d% of the pixels have the label 255: .* with 2 names"):
        find_data(scenes, "seg", tmp_path / "lists")
    for names, last in ((["grass", "scribble", "unknown"], 2), (["grass", "scribble"], 255)):
        rewrite(scenes, lambda labels: np.where(np.arange(48) < 4, 0, labels).astype(np.uint8))
        found = find_data(scenes, "seg", tmp_path / "lists", classes=names)
        assert np.unique(samples(found, "train")[0][1]).tolist() == [0, 1, last]


def test_noise_beside_0_and_255_is_refused(scenes: Path, tmp_path: Path) -> None:
    def noisy(labels: np.ndarray) -> np.ndarray:
        mask = np.where(labels == 1, 255, 0).astype(np.uint8)
        mask[5, 5], mask[5, 40] = 1, 254
        return mask

    rewrite(scenes, noisy)
    with pytest.raises(DataError, match=r"2 labels between, such as 254 in '.*/scene_\d.png': .* edges are blended"):
        find_data(scenes, "seg", tmp_path / "lists")


def test_labels_with_gaps_are_numbered_on(scenes: Path, tmp_path: Path) -> None:
    before = seg_samples(scenes, "validation")
    rewrite(scenes, lambda labels: np.array([3, 40] + [9] * 253 + [255], np.uint8)[labels])
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert found.classes == ("class 3", "class 40")
    for (_, labels), (_, expected) in zip(samples(found, "val"), before, strict=True):
        assert np.array_equal(labels, expected)
    assert find_data(scenes, "seg", tmp_path / "lists", classes=["sky", "sea"]).classes == ("sky", "sea")


def test_jpeg_label_maps_are_refused(scenes: Path, tmp_path: Path) -> None:
    root = copy_seg(scenes, names("images/{split}/"), names("masks/{split}/", suffix=".jpg"), tmp_path / "copy")
    with pytest.raises(DataError, match=r"masks/\w+/scene_\d.jpg' is a JPEG, which changes labels"):
        find_data(root, "seg", tmp_path / "lists")


def test_colours_are_refused_and_named(scenes: Path, tmp_path: Path) -> None:
    rewrite(scenes, lambda labels: np.array([[9, 0, 0], [0, 128, 7]] + [[0, 0, 0]] * 254, np.uint8)[labels])
    with pytest.raises(
        DataError, match=r"is in colour \(RGB\), with the colours .*\(0, 128, 7\).*save one channel.*class_dict.csv"
    ):
        find_data(scenes, "seg", tmp_path / "lists")


def test_16_bits_are_read_if_the_labels_fit_8(scenes: Path, tmp_path: Path) -> None:
    before = seg_samples(scenes, "training")
    rewrite(scenes, lambda labels: labels.astype(np.uint16))
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert any("as their labels fit 8 (5)" in note for note in found.notes)
    for (_, labels), (_, expected) in zip(samples(found, "train"), before, strict=True):
        assert np.array_equal(labels, expected)
    rewrite(scenes, lambda labels: labels.astype(np.uint16) * 1000)
    with pytest.raises(DataError, match="holds the label 1,000, of 3: mmseg reads 8 bits"):
        find_data(scenes, "seg", tmp_path / "lists")


def test_masks_with_blended_edges_are_refused(scenes: Path, tmp_path: Path) -> None:
    def blend(labels: np.ndarray) -> np.ndarray:
        mask = Image.fromarray(np.where(labels == 1, 255, 0).astype(np.uint8))
        return np.asarray(mask.resize((50, 42), Image.Resampling.BICUBIC).resize((48, 40), Image.Resampling.BICUBIC))

    rewrite(scenes, blend)
    with pytest.raises(DataError, match="look like masks of which the edges are blended"):
        find_data(scenes, "seg", tmp_path / "lists")


def test_blended_labels_are_refused(scenes: Path, tmp_path: Path) -> None:
    rewrite(scenes, lambda labels: np.arange(labels.size, dtype=np.uint8).reshape(labels.shape) // 2)
    with pytest.raises(DataError, match="holds 128 labels, and nothing names so many classes"):
        find_data(scenes, "seg", tmp_path / "lists")


@pytest.mark.parametrize(
    ("first", "lines", "expected"),
    [
        (0, "wall\nsky\n", ("wall", "sky")),
        (0, "0 wall\n1 blue sky\n", ("wall", "blue sky")),
        (0, "wall\nsky\nsea\n", ("wall", "sky", "sea")),
        (0, "__ignore__\nwall\nsky\n", ("wall", "sky")),
        (1, "wall\nsky\n", ("wall", "sky")),
    ],
)
def test_names_are_read_from_a_file(tmp_path: Path, first: int, lines: str, expected: tuple[str, ...]) -> None:
    scenes = write_scenes(tmp_path / "scenes", first=first)
    (scenes / "classes.txt").write_text(lines)
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert found.classes == expected
    for (_, labels), (_, original) in zip(samples(found, "train"), seg_samples(scenes, "training"), strict=True):
        assert np.array_equal(labels, np.where(original == 255, 255, original.astype(int) - first))


def test_names_are_those_of_a_coco_file_beside(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    write_coco(tmp_path / "coco")
    (tmp_path / "coco/annotations/instances_train.json").rename(scenes / "things.json")
    assert find_data(scenes, "seg", tmp_path / "lists").classes == ("background", "square", "disc")


def test_ade20k_ignores_0_and_a_part_of_the_classes_can_be_learned(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", first=0)
    rows = [f"{i}\t0.1\t1\t1\tname{i}, other {i}" for i in range(1, 151)]
    (scenes / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert found.classes == tuple(f"name{i}" for i in range(1, 151))
    (_, labels), (_, original) = samples(found, "val")[0], seg_samples(scenes, "validation")[0]
    assert np.array_equal(labels, np.where(original == 1, 0, 255))
    part = find_data(scenes, "seg", tmp_path / "lists", classes=["name2", "name1"])
    assert part.classes == ("name2", "name1")
    assert np.array_equal(samples(part, "val")[0][1], np.where(original == 1, 1, 255))


def test_names_that_do_not_fit_are_refused(scenes: Path, tmp_path: Path) -> None:
    rewrite(scenes, lambda labels: labels * 7)
    (scenes / "labels.txt").write_text("wall\nsky\nsea\nsun")
    with pytest.raises(DataError, match=r"4 classes are named by 'labels.txt', wall, sky, sea, sun, and .* 249 is in"):
        find_data(scenes, "seg", tmp_path / "lists")
    with pytest.raises(DataError, match=r"classes=\['moon'\] are none of 'labels.txt', wall, sky, sea, sun"):
        find_data(scenes, "seg", tmp_path / "lists", classes=["moon"])


def test_the_data_set_takes_labels_and_ignored_ones(scenes: Path, tmp_path: Path) -> None:
    content = dict(
        metainfo=dict(classes=["a", "b"], labels=[1, 0], ignored=[255]),
        data_list=[dict(img_path="images/training/scene_0.jpg", seg_map_path="annotations/training/scene_0.png")],
    )
    (tmp_path / "list.json").write_text(json.dumps(content))
    config = dict(type="SegListDataset", ann_file=str(tmp_path / "list.json"), data_root=str(scenes), _scope_="mmseg")
    _, original = seg_samples(scenes, "training")[0]
    swapped = np.array([1, 0] + [200] * 254, np.uint8)[original]
    ((_, labels),) = read_seg(
        DATASETS.build(dict(config, pipeline=SEG_PIPELINE, serialize_data=False, ignore_index=200))
    )
    assert np.array_equal(labels, swapped)
    with pytest.raises(ValueError, match="has no class 'c': expected some of"):
        DATASETS.build(dict(config, metainfo=dict(classes=["c"])))
