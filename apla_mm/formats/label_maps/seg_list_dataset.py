"""Segmentation data of any names: images and label maps listed in mmengine's own format."""

from collections.abc import Mapping, Sequence
from os.path import join
from typing import Any

from mmengine.fileio import load
from mmengine.registry import DATASETS
from mmseg.datasets.basesegdataset import BaseSegDataset


@DATASETS.register_module()
class SegListDataset(BaseSegDataset):
    """Reads ``{"metainfo": {...}, "data_list": [{"img_path": ..., "seg_map_path": ...}, ...]}``.

    ``metainfo`` has ``classes``, their names; and may have ``labels``, the label of each class in the files (0, 1, ...
    without it), and ``ignored``, labels that become ``ignore_index``.

    Args:
        ann_file: The list, a JSON file, below ``data_root`` or absolute.
        data_root: The folder that paths are relative to.
        metainfo: With ``classes``, those of the list's classes to be learned, in their order; the others are ignored.
        settings: As of mmseg's BaseSegDataset.
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str | None = None,
        metainfo: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        path = join(data_root or "", ann_file)
        content = load(path)
        if not isinstance(content, dict) or not {"metainfo", "data_list"} <= content.keys():
            raise ValueError(f"'{path}' is no list of samples: expected an object with 'metainfo' and 'data_list'")
        self._path, self._content = path, content
        listed = {key: value for key, value in content["metainfo"].items() if key not in ("labels", "ignored")}
        super().__init__(ann_file=ann_file, data_root=data_root, metainfo={**listed, **(metainfo or {})}, **settings)

    def get_label_map(self, new_classes: Sequence[str] | None = None) -> dict[int, int] | None:
        """What labels become; None where they stay."""
        meta = self._content["metainfo"]
        names = list(meta.get("classes", []))
        unknown = [name for name in new_classes or () if name not in names]
        if unknown:
            raise ValueError(f"'{self._path}' has no class {unknown[0]!r}: expected some of {names}")
        index: dict[str, int] = {name: i for i, name in enumerate(new_classes or ())}
        reduced = int(self.reduce_zero_label)  # labels are mapped after it
        labels = meta.get("labels") or range(reduced, len(names) + reduced)
        ignored: int = self.ignore_index
        label_map = {label - reduced: index.get(name, ignored) for label, name in zip(labels, names, strict=True)}
        label_map |= {label - reduced: self.ignore_index for label in meta.get("ignored", []) if label >= reduced}
        return label_map if any(old != new for old, new in label_map.items()) else None

    def load_data_list(self) -> list[dict[str, Any]]:
        """The samples, with absolute paths if the data root is."""
        folders = {key: self.data_prefix.get(key) or "" for key in ("img_path", "seg_map_path")}
        return [
            {
                **{key: join(folders[key], path) for key, path in sample.items() if key in folders},
                "label_map": self.label_map,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for sample in self._content["data_list"]
        ]
