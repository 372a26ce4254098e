"""The number of classes follows from the folders, unless it is stated: then it is compared."""

import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.data_sets import write_class_folders
from helpers.optional import needs
from helpers.tools import read_config

from apla_mm.data.reading import DataError
from apla_mm.options.agreement import DisagreementError, check_agreement
from apla_mm.options.class_folders import check_classes_are_counted

needs("mmpretrain")
CONFIG = ROOT / "configs/cls/linear_dinov2-s14_apla_1xb64-10k_custom-224x224.py"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "data")


def test_folders_name_the_classes_everywhere(root: Path) -> None:
    cfg = read_config(CONFIG, f"data_root={root}")
    assert cfg.model.head.num_classes == 3
    assert [tuple(cfg[loader].dataset.metainfo.classes) for loader in LOADERS] == [("dark", "light", "red")] * 3
    check_agreement(cfg)
    check_classes_are_counted(cfg)


def test_a_test_alone_has_its_own_folders(root: Path) -> None:
    shutil.rmtree(root / "train")
    assert read_config(CONFIG, f"data_root={root}").model.head.num_classes == 3


def test_a_number_that_is_stated_is_kept_and_refused(root: Path) -> None:
    cfg = read_config(CONFIG, f"data_root={root}", "model.head.num_classes=7")
    message = "model.head.num_classes: 7, and the data set has 3 classes; --cfg-options model.head.num_classes=3"
    with pytest.raises(DisagreementError, match=re.escape(message)):
        check_agreement(cfg)


def test_names_that_are_given_are_kept(root: Path) -> None:
    cfg = read_config(CONFIG, f"data_root={root}", "classes=night,day,rose")
    assert cfg.model.head.num_classes == 3
    assert [tuple(cfg[loader].dataset.metainfo.classes) for loader in LOADERS] == [("night", "day", "rose")] * 3


def test_without_folders_and_names_nothing_is_guessed(tmp_path: Path) -> None:
    cfg = read_config(CONFIG, f"data_root={tmp_path}/nowhere")
    assert cfg.model.head.num_classes is None
    with pytest.raises(DataError, match="number of classes is not known.*data_root=FOLDER or classes=cat,dog"):
        check_classes_are_counted(cfg)
