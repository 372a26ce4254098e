"""Which labels the heads of a model, or the metrics of an evaluation, can take."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...text import first_few
from ..reading import DataError
from .heads import heads_of

_IGNORED = 255  # of all heads and metrics of mmseg where nothing else is set


@dataclass(frozen=True)
class LabelRules:
    """Labels that are classes, and those that are ignored.

    Args:
        num_classes: Labels 0 to num_classes - 1 are classes.
        ignored: The labels that all who read them ignore.
        readers: Where each of those who read them says what it ignores, and what.
    """

    num_classes: int
    ignored: frozenset[int] = frozenset({_IGNORED})
    readers: tuple[tuple[str, int], ...] = ()

    def allow(self, label: int) -> bool:
        """Whether a label is a class or ignored."""
        return 0 <= label < self.num_classes or label in self.ignored

    @property
    def classes(self) -> list[int]:
        """The labels that are learned or scored."""
        hidden = {label for _, label in self.readers} | self.ignored
        return [label for label in range(self.num_classes) if label not in hidden]

    @property
    def cure(self) -> str:
        """What may have to be set for other labels to be ignored; nothing where all is as mmseg has it."""
        if all(label == _IGNORED for _, label in self.readers):
            return ""
        return f", or what is ignored: {first_few((f'{where}={label}' for where, label in self.readers), 5)}"

    def warnings(self, names: Sequence[str]) -> Iterator[str]:
        """What is said of classes that are ignored."""
        for where, label in self.readers:
            if 0 <= label < len(names):
                yield (
                    f"{where}={label} is the class '{names[label]}': no pixel of it counts there; if that is not "
                    "meant, set it to a label that no class has"
                )


def training_rules(model: nn.Module, num_classes: int) -> LabelRules:
    """What the heads of a model and their losses take."""
    readers: list[tuple[str, int]] = []
    for name, head in label_heads(model):
        if _outputs(head) == 1:
            num_classes = max(num_classes, 2)  # one output stands for 0 and 1
        readers.append((f"{name}.ignore_index", getattr(head, "ignore_index", _IGNORED)))
    common = _common(readers)
    for name, head in label_heads(model):
        refusing = [loss for loss in _losses(head) for label in common if _refuses(head, loss, label)]
        readers += [(f"{name}.{_name(loss)}", _own_ignored(loss)) for loss in refusing]
    return LabelRules(num_classes, _common(readers), tuple(readers))


def scoring_rules(metrics: Iterable[Any], num_classes: int, otherwise: LabelRules) -> LabelRules:
    """What the metrics of an evaluation take.

    Args:
        metrics: The metrics, built.
        num_classes: The data set's classes.
        otherwise: The rules where none of them ignores a label.
    """
    readers = [
        (f"{type(metric).__name__}.ignore_index", metric.ignore_index)
        for metric in metrics
        if isinstance(getattr(metric, "ignore_index", None), int) and not getattr(metric, "format_only", False)
    ]
    if not readers:
        return otherwise
    least = otherwise.num_classes if num_classes == 1 else num_classes
    return LabelRules(least, _common(readers), tuple(readers))


def label_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The heads of a model that compare with label maps; not the parts of heads."""
    seen: list[str] = []
    for name, _ in heads_of(model):
        if not any(name.startswith(f"{other}.") for other in seen):
            seen.append(name)
            yield name.removeprefix("module."), model.get_submodule(name)


def check_losses(model: nn.Module) -> None:
    """Check that a head with one output has a loss that is not 0 whatever it predicts.

    Raises:
        DataError: A head's losses are.
    """
    for name, head in label_heads(model):
        gradients = [_gradient(head, loss, label) for loss in _losses(head) for label in (0, 1)]
        known = [gradient for gradient in gradients if gradient is not None]
        if _outputs(head) == 1 and known and not any(gradient.any() for gradient in known):
            raise DataError(
                f"'{name}' has one output, and its loss is 0 whatever it predicts: softmax over one class is always 1. "
                "Expected at least two classes, the background being one, as by classes=background,object with the "
                "labels 0 and 1; or a loss with use_sigmoid=True"
            )


def _common(readers: list[tuple[str, int]]) -> frozenset[int]:
    labels = {label for _, label in readers}
    return frozenset(labels or {_IGNORED}) if len(labels) < 2 else frozenset()


def _outputs(head: nn.Module) -> int:
    found = getattr(head, "out_channels", None)
    return found if isinstance(found, int) else getattr(head, "num_classes", 2)


def _name(loss: nn.Module) -> str:
    key = next((key for key in ("ignore_index", "ignore_label") if isinstance(getattr(loss, key, None), int)), "")
    return f"{type(loss).__name__}.{key}" if key else type(loss).__name__


def _own_ignored(loss: nn.Module) -> int:
    own = [getattr(loss, key, None) for key in ("ignore_index", "ignore_label")]
    return next((label for label in own if isinstance(label, int)), -1)


def _losses(head: nn.Module) -> list[nn.Module]:
    losses = getattr(head, "loss_decode", None)
    if isinstance(losses, nn.ModuleList):
        return list(losses)
    return [losses] if isinstance(losses, nn.Module) else []


def _refuses(head: nn.Module, loss: nn.Module, label: int) -> bool:
    """Whether a loss fails of a label that its head ignores."""
    return _gradient(head, loss, 0) is not None and _gradient(head, loss, label) is None


def _gradient(head: nn.Module, loss: nn.Module, label: int) -> Tensor | None:
    """The gradient of a loss where one of four pixels has the label; None if it fails."""
    outputs = _outputs(head)
    logits = torch.linspace(-1, 1, 4 * outputs).reshape(1, outputs, 2, 2).requires_grad_()
    labels = torch.tensor([[[label, 0], [0, 0]]])
    with torch.enable_grad():
        try:
            # on the CPU: on a GPU such a failure would end the process
            value = copy.deepcopy(loss).cpu()(logits, labels, ignore_index=getattr(head, "ignore_index", _IGNORED))
            (gradient,) = torch.autograd.grad(value.sum(), logits)
        except Exception:
            return None
    return gradient
