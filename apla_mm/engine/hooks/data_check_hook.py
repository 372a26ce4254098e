"""The hook that looks at the data before an hour is spent."""

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..data_check import DataError, check_segmentation


class DataCheckHook(Hook):
    """Checks the training and validation data of a segmentation config before training starts.

    An empty data set, a missing or unreadable file, a label map of another size than its picture, a label outside the
    classes, a head with another number of classes than the data set: an error that names the file and what was
    expected. With several processes each reads its share.

    Args:
        time_limit: Seconds for reading each data set; what is not reached is not read, and the log says so. None
            reads all.
    """

    priority = "VERY_HIGH"

    def __init__(self, time_limit: float | None = 30.0) -> None:
        self.time_limit = time_limit

    def before_train(self, runner: Runner) -> None:
        """Check what training and validation read."""
        self._check(runner, "train_dataloader", runner.train_dataloader)
        if runner.val_loop is not None:
            self._check(runner, "val_dataloader", runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Check what the test reads."""
        self._check(runner, "test_dataloader", runner.test_dataloader)

    def _check(self, runner: Runner, name: str, loader: Any) -> None:
        dataset = loader.dataset
        if not len(dataset):
            raise DataError(f"{name}: the data set is empty; {_where(dataset)}")
        if not hasattr(dataset, "get_data_info"):
            return  # several sets in one are checked by their own means
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if "seg_map_path" not in infos[0] or not dataset.metainfo.get("classes"):
            return
        classes = len(dataset.metainfo["classes"])
        for head, outputs in _heads(runner.model):
            if outputs != classes:
                raise DataError(
                    f"{name}: the data set has {classes} classes and '{head}' was built for {outputs}: set "
                    "num_classes of every head, or the data set's metainfo.classes"
                )
        rank, world_size = get_dist_info()
        share = infos[rank::world_size]
        read = check_segmentation(share, classes, self.time_limit)
        rest = "" if read == len(share) else f" in {self.time_limit:g} s; DataCheckHook(time_limit=None) reads all"
        print_log(f"{name}: {read:,} of {len(share):,} samples read and found in order{rest}", logger="current")


def _heads(model: nn.Module) -> Iterator[tuple[str, int]]:
    for name, module in model.named_modules():
        if name.rpartition(".")[-1] == "decode_head" or ".auxiliary_head" in f".{name}":
            outputs = getattr(module, "num_classes", None)
            if isinstance(outputs, int):
                yield name, outputs


def _where(dataset: Any) -> str:
    folder = (getattr(dataset, "data_prefix", None) or {}).get("img_path")
    return f"expected files '*{dataset.img_suffix}' in {folder}" if folder else f"it is a {type(dataset).__name__}"
