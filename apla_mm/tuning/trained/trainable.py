"""What trains, by module."""

from dataclasses import dataclass

from torch import nn

from ...method import PartialLinear, count_parameters
from ...text import table


@dataclass(frozen=True)
class TrainableRow:
    """One line of the table: a module, and how many of its parameters train."""

    module: str
    trained: int
    total: int

    @property
    def share(self) -> float:
        """Trained share, in [0, 1]."""
        return self.trained / self.total if self.total else 0.0


def trainable_table(model: nn.Module, depth: int = 3) -> list[TrainableRow]:
    """Count what trains in each part of a model.

    Args:
        model: Any model, adapted or not.
        depth: How many levels of parts there are. Numbered parts (``blocks.0``, ``blocks.1``, ...) count as one.

    Returns:
        One row for each part that holds parameters, in the model's order, and one named ``total`` at the end.
    """
    rows: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        for tensor in module.parameters(recurse=False):
            part = rows.setdefault(_part(name, depth), [0, 0])
            part[0] += tensor.numel() if tensor.requires_grad else 0
            part[1] += tensor.numel()
        if isinstance(module, PartialLinear):  # its trained rows are part of its weight
            rows[_part(name, depth)][1] -= sum(p.numel() for p in module.trained.parameters())
    parts = [TrainableRow(part, *counts) for part, counts in rows.items()]
    return [*parts, TrainableRow("total", sum(row.trained for row in parts), count_parameters(model))]


def _part(module: str, depth: int) -> str:
    return ".".join([step for step in module.split(".") if not step.isdecimal()][:depth]) or "(own)"


def format_trainable(rows: list[TrainableRow]) -> str:
    """The table as text."""
    cells = ((row.module, f"{row.trained:,}", f"{row.total:,}", f"{row.share:.2%}") for row in rows)
    return table(("module", "trained", "total", "share"), cells)
