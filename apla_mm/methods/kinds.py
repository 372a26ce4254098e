"""Parameters by their kind: norms, biases, position embeddings."""

from torch import nn

_POSITIONS = ("pos_embed", "position_embed", "relative_position_bias_table", "rel_pos")


def norm_names(part: nn.Module) -> list[str]:
    """Names of the weights and biases of a module's norms."""
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in part.named_modules()
        if any("Norm" in cls.__name__ for cls in type(module).__mro__)
        for name, _ in module.named_parameters(recurse=False)
    }
    return [name for name, _ in part.named_parameters() if name in norms]


def bias_names(part: nn.Module) -> list[str]:
    """Names of a module's biases."""
    return [name for name, _ in part.named_parameters() if name.endswith("bias")]


def position_names(part: nn.Module) -> list[str]:
    """Names of a module's position embeddings, absolute and relative."""
    return [name for name, _ in part.named_parameters() if any(word in name for word in _POSITIONS)]
