"""Parts of a model by their kind: norms, biases, position embeddings, and modules of which nothing trains."""

from torch import nn

_POSITIONS = ("pos_embed", "position_embed", "relative_position_bias_table", "rel_pos")


def trainable_names(part: nn.Module, norm: bool, bias: bool, pos_embed: bool) -> list[str]:
    """Names of the parameters of these kinds.

    Args:
        part: A backbone, say.
        norm: Weights and biases of norms.
        bias: All biases.
        pos_embed: Position embeddings, absolute and relative.

    Returns:
        Their names inside ``part``.

    Raises:
        ValueError: A kind is asked for and ``part`` has none of it.
    """
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in part.named_modules()
        if any("Norm" in cls.__name__ for cls in type(module).__mro__)
        for name, _ in module.named_parameters(recurse=False)
    }
    kinds = {
        "train_norm": [name for name, _ in part.named_parameters() if norm and name in norms],
        "train_bias": [name for name, _ in part.named_parameters() if bias and name.endswith("bias")],
        "train_pos_embed": [
            name for name, _ in part.named_parameters() if pos_embed and any(word in name for word in _POSITIONS)
        ],
    }
    for (kind, names), asked in zip(kinds.items(), (norm, bias, pos_embed), strict=True):
        if asked and not names:
            raise ValueError(f"{kind}=True, and {type(part).__name__} has none")
    return list(dict.fromkeys(name for names in kinds.values() for name in names))


def frozen_modules(part: nn.Module, drop_path: bool) -> list[nn.Module]:
    """Modules of ``part`` of whose own parameters none trains.

    Args:
        part: An adapted backbone, say.
        drop_path: Leave out stochastic depth.

    Returns:
        The modules, each by itself: their children have modes of their own.
    """
    return [
        module
        for module in part.modules()
        if not any(p.requires_grad for p in module.parameters(recurse=False))
        and not (drop_path and "droppath" in type(module).__name__.lower())
    ]
