"""Where W_O, the projection right after attention, lives in each kind of attention."""

from dataclasses import dataclass

from torch import nn

#: Attention class -> path of its projection inside it. Classes are named, so that nothing but torch is imported.
_PROJECTIONS = {
    "timm.layers.attention.Attention": "proj",
    "timm.layers.attention.AttentionRope": "proj",
    "timm.layers.diff_attention.DiffAttention": "proj",
    "timm.models.beit.Attention": "proj",
    "timm.models.eva.EvaAttention": "proj",
    "timm.models.vision_transformer_relpos.RelPosAttention": "proj",
    "timm.models.vision_transformer_sam.Attention": "proj",
    "torch.nn.modules.activation.MultiheadAttention": "out_proj",
    "mmdet.models.backbones.swin.WindowMSA": "proj",
    "mmseg.models.backbones.beit.BEiTAttention": "proj",
    "mmseg.models.backbones.swin.WindowMSA": "proj",
    "mmseg.models.backbones.twins.LocallyGroupedSelfAttention": "proj",
    "mmpretrain.models.backbones.twins.LocallyGroupedSelfAttention": "proj",
    "mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE": "proj",
    "mmpretrain.models.backbones.vit_sam.Attention": "proj",
    "mmpretrain.models.utils.attention.BEiTAttention": "proj",
    "mmpretrain.models.utils.attention.MultiheadAttention": "proj",
    "mmpretrain.models.utils.attention.WindowMSA": "proj",
    "mmpretrain.models.utils.attention.WindowMSAV2": "proj",
}


#: mmcv's wrapper of nn.MultiheadAttention, which uses the first of its two outputs only.
_WRAPPER = "mmcv.cnn.bricks.transformer.MultiheadAttention"


@dataclass(frozen=True)
class Projection:
    """W_O of one attention module.

    Attributes:
        name: The projection's name inside the searched model.
        linear: The projection.
        attention: The module whose projection it is.
        weights_are_used: False if the module around the attention asks for attention weights and throws them away.
    """

    name: str
    linear: nn.Linear
    attention: nn.Module
    weights_are_used: bool = True


def register_attention(attention: type[nn.Module] | str, projection: str) -> None:
    """Say where a kind of attention keeps its projection.

    Args:
        attention: The attention's class, or its full name such as ``'mypackage.layers.MyAttention'``. Subclasses
            are covered.
        projection: Path of the projection, an ``nn.Linear``, inside it, such as ``'proj'`` or ``'out.0'``.
    """
    _PROJECTIONS[attention if isinstance(attention, str) else _class_name(attention)] = projection


def find_projections(model: nn.Module) -> list[Projection]:
    """Find the projection of every attention in a model, by the attention's class.

    Args:
        model: Any module.

    Returns:
        One projection for each attention module, in the model's order.

    Raises:
        ValueError: The model has no attention, or one of a kind that is not registered, or one whose registered
            projection is not an ``nn.Linear``.
    """
    found, unknown = [], []
    wrapped = {module.attn for module in model.modules() if _has_class(module, _WRAPPER)}
    for name, module in model.named_modules():
        path = _projection_path(module)
        if path is not None:
            linear = module.get_submodule(path)
            if not isinstance(linear, nn.Linear):
                raise ValueError(
                    f"'{path}' of the attention '{name}' ({_class_name(type(module))}) is a "
                    f"{type(linear).__name__}, not an nn.Linear"
                )
            found.append(Projection(f"{name}.{path}" if name else path, linear, module, module not in wrapped))
        elif _looks_like_attention(module):
            unknown.append(f"'{name}' ({_class_name(type(module))})")
    if unknown:
        raise ValueError(
            f"{len(unknown)} modules look like attention of a kind that is not known: {', '.join(unknown[:3])}; "
            "say where the projection is: apla_mm.register_attention('package.module.Class', 'proj')"
        )
    if not found:
        raise ValueError(
            f"no attention was found in {_class_name(type(model))}, and APLA trains the projection after attention; "
            "adapt a transformer, or register its attention with apla_mm.register_attention"
        )
    return found


def _projection_path(module: nn.Module) -> str | None:
    return next((_PROJECTIONS[name] for name in map(_class_name, type(module).__mro__) if name in _PROJECTIONS), None)


def _has_class(module: nn.Module, name: str) -> bool:
    return name in map(_class_name, type(module).__mro__)


def _looks_like_attention(module: nn.Module) -> bool:
    """An attention by name, with a linear layer of its own: an error is due rather than a silent miss."""
    named = any(word in type(module).__name__.lower() for word in ("attention", "attn", "msa"))
    return named and any(isinstance(child, nn.Linear) for child in module.children())


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
