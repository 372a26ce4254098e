"""Classes that a config does not name, named by the folders that images lie in."""

from importlib.util import find_spec

from mmengine.config import Config

from ..data.class_folders import class_folders_of
from ..data.folders import LOADERS, datasets_of
from ..data.reading import DataError
from .shared_options import counting_heads


def name_classes_by_folders(cfg: Config) -> None:
    """Give data sets the classes that folders name, those of training if they are there, and count them; in place.

    What the config, or an option, states itself stays, and is compared before a run starts.

    Args:
        cfg: The config of a classifier, with all options in it; others stay as they are.

    Raises:
        ValueError: mmpretrain is not installed.
    """
    if cfg.get("default_scope") != "mmpretrain":
        return
    if find_spec("mmpretrain") is None:
        raise ValueError("classification needs mmpretrain: pip install -r requirements/mmpretrain.txt")
    found = list(class_folders_of(cfg))
    sets = [settings for loader in LOADERS for settings in datasets_of(cfg, loader)]
    named = [classes for settings in sets if (classes := (settings.get("metainfo") or {}).get("classes"))]
    classes = tuple(named[0] if named else found[0].classes if found else ())
    if not classes:
        return
    for one in found:
        if not (one.settings.get("metainfo") or {}).get("classes"):
            one.settings["metainfo"] = {**(one.settings.get("metainfo") or {}), "classes": classes}
    for head in counting_heads(cfg.model):
        if head.get("num_classes", 0) is None:
            head["num_classes"] = len(classes)


def check_classes_are_counted(cfg: Config) -> None:
    """Check that no head is left without a number of classes.

    Raises:
        DataError: One is.
    """
    if cfg.get("default_scope") == "mmpretrain" and any(
        head.get("num_classes", 0) is None for head in counting_heads(cfg.model)
    ):
        raise DataError(
            "the number of classes is not known: the config does not name them, and its data sets have no folders of "
            "classes; set them by --cfg-options data_root=FOLDER or classes=cat,dog"
        )
