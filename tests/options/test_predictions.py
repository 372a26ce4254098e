from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from apla_mm.options.predictions import PredictionsHook, check_out


def before_test(out: Path, *infos: dict[str, str]) -> None:
    class Dataset:
        data_prefix: ClassVar = dict(img_path=str(out.parent / "data"))

        def __len__(self) -> int:
            return len(infos)

        def get_data_info(self, i: int) -> dict[str, str]:
            return infos[i]

    runner: Any = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=Dataset()))
    PredictionsHook(str(out)).before_test(runner)


def test_predictions_are_not_written_over_images_and_label_maps(tmp_path: Path) -> None:
    data, link = tmp_path / "data", tmp_path / "link"
    data.mkdir()
    link.symlink_to(data)
    image, label = dict(img_path=str(data / "a.png")), str(tmp_path / "labels/b.png")
    labelled = dict(img_path=str(data / "b.jpg"), seg_map_path=label)
    for out, infos in ((data, [image]), (link, [image]), (tmp_path / "labels", [labelled])):
        with pytest.raises(ValueError, match=rf"^--out '{out}': '.*\.png' is a file of the data: name another folder"):
            before_test(out, *infos)
    before_test(tmp_path / "out", image, labelled)


def test_what_cannot_be_written_is_known_before_the_test(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for out, folder, told in (
        (file, True, "must be a folder, and is a file"),
        (tmp_path, False, "must be a file, and is a folder"),
        (file / "x", True, f"cannot be written: '{file}/x': Not a directory"),
        (file / "x.pkl", False, f"cannot be written: '{file}': File exists"),
    ):
        with pytest.raises(ValueError, match=f"^--out '{out}' {told}"):
            check_out(str(out), folder)
    check_out(str(tmp_path / "a/b.pkl"), folder=False)
    check_out(str(tmp_path / "c/d"), folder=True)
    assert (tmp_path / "a").is_dir() and (tmp_path / "c/d").is_dir()
