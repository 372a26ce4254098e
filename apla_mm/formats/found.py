"""What was found in a folder of data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..text import first_few


@dataclass(frozen=True)
class FoundData:
    """A folder's data, as data sets of mmseg or mmdet.

    Args:
        format: The format in words, such as "COCO's format".
        task: 'seg' or 'det'.
        classes: Their names.
        notes: What was found, guessed, converted and left out, one sentence each.
        splits: 'train' and 'val': the configs of their data sets, without pipelines.
        masks: Whether all objects have masks; of detection.
    """

    format: str
    task: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    splits: Mapping[str, Mapping[str, Any]] = field(repr=False)
    masks: bool = False

    def dataset(self, split: str) -> dict[str, Any]:
        """The config of a split's data set, all but its pipeline.

        Args:
            split: 'train' or 'val'.

        Raises:
            ValueError: It is neither.
        """
        if split not in self.splits:
            raise ValueError(f"there is no split {split!r}: expected one of {first_few(map(repr, self.splits))}")
        config = {
            key: dict(value) if isinstance(value, Mapping) else value for key, value in self.splits[split].items()
        }
        return {**config, "metainfo": dict(classes=self.classes)}

    def evaluator(self) -> dict[str, Any]:
        """The config of the metric of the val split: boxes, and masks where all objects have them; or mIoU."""
        if self.task == "seg":
            return dict(type="IoUMetric", iou_metrics=["mIoU"])
        metrics = ["bbox", "segm"] if self.masks else ["bbox"]
        return dict(type="CocoMetric", ann_file=self.splits["val"]["ann_file"], metric=metrics)
