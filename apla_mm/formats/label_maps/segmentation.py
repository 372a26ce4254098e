"""Segmentation data: images and label maps listed for SegListDataset."""

from collections.abc import Sequence
from typing import Any

from ...text import quoted
from ..class_files import class_file
from ..files import Files, split_folder_words
from ..found import FoundData
from ..made import Made
from ..splits import train_and_val
from ..voc_lists import find_voc_pairs
from .colours import index_maps
from .label_values import read_labels
from .seg_classes import SegClasses, name_classes
from .seg_pairs import Pairs, find_pairs


def find_segmentation(
    files: Files, made: Made, classes: Sequence[str] | None, held_out: float, seed: int
) -> FoundData | None:
    """Data sets of images and label maps; None if there are none.

    Args:
        files: The files.
        made: The folder for the lists that are made.
        classes: See :func:`~apla_mm.formats.find_data`.
        held_out: The share of images that are validated on where there is no split.
        seed: Which of them.

    Raises:
        DataError: Label maps cannot be learned from, or contradict each other or the classes.
    """
    voc = find_voc_pairs(files)
    pairs = voc or find_pairs(files)
    if pairs is None:
        return None
    names = {split: [image for image, _ in ones] for split, ones in pairs.pairs.items()}
    used, notes = train_and_val(pairs.pairs, names, held_out, seed, None if voc else files)
    maps = [label_map for ones in used.values() for _, label_map in ones]
    table = class_file(files)
    indexed = index_maps(files, maps, table, made)
    if indexed:
        by = f", by '{table.path}'" if table is not None and table.colours is not None else ""
        place = made.into / "label_maps"
        notes.append(f"Label maps in colour are made ones of class indices{by}, in '{place}' ({len(indexed):,}).")
        used = {split: [(image, indexed.get(one, one)) for image, one in ones] for split, ones in used.items()}
    values = read_labels(files, maps, {path: made.now(one) for path, one in indexed.items()})
    found = name_classes(files, values, maps, classes, voc is not None, table)
    if values.deep:
        notes.append(
            f"Label maps of more than 8 bits are read, as their labels fit 8 ({len(values.deep):,}): "
            f"{quoted(sorted(values.deep), 2)}."
        )
    sets = {split: _dataset(files, made, f"{split}.json", ones, found) for split, ones in used.items()}
    lists = " and ".join(f"'{one['ann_file']}'" for one in sets.values())
    told = [
        *pairs.notes,
        *notes,
        *found.notes,
        f"{lists} list the {len(used['train']):,} images of training, {len(used['val']):,} of validation.",
    ]
    return FoundData(_format(voc, maps), "seg", tuple(found.chosen), tuple(told), sets)


def _dataset(files: Files, made: Made, name: str, ones: Sequence[tuple[str, str]], found: SegClasses) -> dict[str, Any]:
    meta = dict(classes=found.names, labels=found.labels, ignored=found.ignored)
    samples = [dict(img_path=image, seg_map_path=label_map) for image, label_map in ones]
    return dict(
        type="SegListDataset",
        data_root=str(files.root),
        ann_file=made.write_json(name, dict(metainfo=meta, data_list=samples)),
        data_prefix=dict(img_path="", seg_map_path=""),
        reduce_zero_label=found.reduce_zero_label,
    )


def _format(voc: Pairs | None, label_maps: Sequence[str]) -> str:
    if voc is not None:
        return "Pascal VOC's format"
    if all(path.endswith(("_labelIds.png", "_labelTrainIds.png")) and "_gt" in path for path in label_maps):
        return "Cityscapes' format"
    words = split_folder_words(label_maps)
    if words == {"training", "validation"} and all("annotations" in path.split("/") for path in label_maps):
        return "ADE20K's format"
    if words:
        return "images and label maps in folders of splits"
    return "images and label maps"
