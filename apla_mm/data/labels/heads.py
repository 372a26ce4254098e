"""Where a model counts the classes of its data set."""

from collections.abc import Iterator

from torch import nn

# proposals are of no class; semantic heads of detectors count other classes; backbones and necks may be classifiers
_OTHER_PARTS = {"rpn_head", "semantic_head", "backbone", "neck"}
_OTHER_TYPES = {"RPNHead", "STDCHead"}  # object or not, edge or not


def is_in_head(path: str) -> bool:
    """Whether a dotted path, of a config or a module, leads into a head that predicts the data set's classes."""
    steps = path.split(".")
    return any(step == "head" or step.endswith("_head") for step in steps) and not _OTHER_PARTS & set(steps)


def is_other_type(name: str) -> bool:
    """Whether a class of heads, by its name in a registry, counts something else than the data set's classes."""
    return name.rpartition(".")[-1] in _OTHER_TYPES


def heads_of(model: nn.Module) -> Iterator[tuple[str, int]]:
    """The names of a model's heads, and the number of classes that each was built for.

    Args:
        model: A model of mmseg, mmdet or mmpretrain, wrapped or not.
    """
    for name, module in model.named_modules():
        outputs = getattr(module, "num_classes", None)
        if type(outputs) is not int or not is_in_head(name) or getattr(module, "class_agnostic", False):
            continue
        loss = any(step.startswith("loss") for step in name.split("."))
        if not loss and not any(is_other_type(cls.__name__) for cls in type(module).__mro__):
            yield name, outputs
