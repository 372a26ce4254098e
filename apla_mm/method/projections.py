"""Where W_O, the projection right after attention, lives in each kind of attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from .attention.recognition import attends, reads_weight_of, says_attention, why_none

#: Attention class -> path of its projection inside it; None: it has none, and stays frozen. Classes are named, so that
#: nothing but torch is imported. A class that pools by attention has a projection like any other.
_PROJECTIONS: dict[str, str | None] = {
    "torch.nn.modules.activation.MultiheadAttention": "out_proj",
    # timm: layers
    "timm.layers.attention.Attention": "proj",
    "timm.layers.attention.AttentionRope": "proj",
    "timm.layers.attention_pool.AttentionPoolLatent": "proj",
    "timm.layers.attention_pool2d.AttentionPool2d": "proj",
    "timm.layers.attention_pool2d.RotAttentionPool2d": "proj",
    "timm.layers.diff_attention.DiffAttention": "proj",
    # timm: models
    "timm.models.beit.Attention": "proj",
    "timm.models.cait.ClassAttn": "proj",
    "timm.models.cait.TalkingHeadAttn": "proj",
    "timm.models.coat.FactorAttnConvRelPosEnc": "proj",
    "timm.models.convit.GPSA": "proj",
    "timm.models.convit.MHSA": "proj",
    "timm.models.crossvit.CrossAttention": "proj",
    "timm.models.csatv2.SpatialTransformerBlock": None,  # a single channel, which an MLP follows
    "timm.models.davit.ChannelAttention": "proj",
    "timm.models.davit.ChannelAttentionV2": "proj",
    "timm.models.davit.WindowAttention": "proj",
    "timm.models.edgenext.CrossCovarianceAttn": "proj",
    "timm.models.efficientformer.Attention": "proj",
    "timm.models.eva.EvaAttention": "proj",
    "timm.models.fastvit.Attention": "proj",
    "timm.models.gcvit.WindowAttentionGlobal": "proj",
    "timm.models.gemma4_vit.Gemma4Attention": "o_proj.linear",
    "timm.models.hiera.MaskUnitAttention": "proj",
    "timm.models.hieradet_sam2.MultiScaleAttention": "proj",
    "timm.models.levit.Attention": "proj.ln.linear",  # trains as a linear layer, then a norm
    "timm.models.levit.AttentionDownsample": "proj.ln.linear",
    "timm.models.maxxvit.AttentionCl": "proj",
    "timm.models.metaformer.Attention": "proj",
    "timm.models.mvitv2.MultiScaleAttention": "proj",
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": "proj",
    "timm.models.nest.Attention": "proj",
    "timm.models.nextvit.EfficientAttention": "proj",
    "timm.models.pvt_v2.Attention": "proj",
    "timm.models.swiftformer.EfficientAdditiveAttention": "proj",
    "timm.models.swin_transformer.WindowAttention": "proj",
    "timm.models.swin_transformer_v2.WindowAttention": "proj",
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": "proj",
    "timm.models.tiny_vit.Attention": "proj",
    "timm.models.tnt.Attention": "proj",
    "timm.models.twins.GlobalSubSampleAttn": "proj",
    "timm.models.twins.LocallyGroupedAttn": "proj",
    "timm.models.vision_transformer.ParallelScalingBlock": "attn_out_proj",
    "timm.models.vision_transformer_relpos.RelPosAttention": "proj",
    "timm.models.vision_transformer_sam.Attention": "proj",
    "timm.models.volo.Attention": "proj",
    "timm.models.volo.ClassAttention": "proj",
    "timm.models.volo.OutlookAttention": "proj",
    "timm.models.xcit.XCA": "proj",
    # OpenMMLab
    "mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttention": "output_proj",
    "mmdet.models.backbones.swin.WindowMSA": "proj",
    "mmdet.models.layers.transformer.utils.ConditionalAttention": "out_proj",
    "mmseg.models.backbones.beit.BEiTAttention": "proj",
    "mmseg.models.backbones.swin.WindowMSA": "proj",
    "mmseg.models.backbones.twins.LocallyGroupedSelfAttention": "proj",
    "mmpretrain.models.backbones.davit.ChannelAttention": "proj",
    "mmpretrain.models.backbones.davit.DaViTWindowMSA": "proj",
    "mmpretrain.models.backbones.efficientformer.AttentionWithBias": "proj",
    "mmpretrain.models.backbones.hivit.Attention": "proj",
    "mmpretrain.models.backbones.levit.Attention": "proj.1.linear",
    "mmpretrain.models.backbones.levit.AttentionSubsample": "proj.1.linear",
    "mmpretrain.models.backbones.mvit.MultiScaleAttention": "proj",
    "mmpretrain.models.backbones.twins.LocallyGroupedSelfAttention": "proj",
    "mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE": "proj",
    "mmpretrain.models.backbones.vit_sam.Attention": "proj",
    "mmpretrain.models.backbones.xcit.ClassAttntion": "proj",
    "mmpretrain.models.backbones.xcit.XCA": "proj",
    "mmpretrain.models.utils.attention.BEiTAttention": "proj",
    "mmpretrain.models.utils.attention.ChannelMultiheadAttention": "proj",
    "mmpretrain.models.utils.attention.CrossMultiheadAttention": "proj",
    "mmpretrain.models.utils.attention.LeAttention": "proj",
    "mmpretrain.models.utils.attention.MultiheadAttention": "proj",
    "mmpretrain.models.utils.attention.WindowMSA": "proj",
    "mmpretrain.models.utils.attention.WindowMSAV2": "proj",
    # torchvision
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": "merge",
    "torchvision.models.video.mvit.MultiscaleAttention": "project.0",
    # Hugging Face's transformers
    "transformers.models.beit.modeling_beit.BeitAttention": "output.dense",
    "transformers.models.clip.modeling_clip.CLIPAttention": "out_proj",
    "transformers.models.deit.modeling_deit.DeiTAttention": "output.dense",
    "transformers.models.dinov2.modeling_dinov2.Dinov2Attention": "output.dense",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersAttention": (
        "output.dense"
    ),
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention": "o_proj",
    "transformers.models.hiera.modeling_hiera.HieraMaskUnitAttention": "proj",
    "transformers.models.sam.modeling_sam.SamVisionAttention": "proj",
    "transformers.models.segformer.modeling_segformer.SegformerAttention": "output.dense",
    "transformers.models.siglip.modeling_siglip.SiglipAttention": "out_proj",
    "transformers.models.siglip2.modeling_siglip2.Siglip2Attention": "out_proj",
    "transformers.models.swin.modeling_swin.SwinAttention": "output.dense",
    "transformers.models.swinv2.modeling_swinv2.Swinv2Attention": "output.dense",
    "transformers.models.vit.modeling_vit.ViTAttention": "output.dense",
    "transformers.models.vit_mae.modeling_vit_mae.ViTMAEAttention": "output.dense",
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNAttention": "output.dense",
}

#: Attention class -> why it, or a form of it, has no W_O that could train.
_REASONS = {
    "mmdet.models.utils.vlfuse_helper.BiMultiHeadAttention": "it has two output projections, of images and of words",
    "timm.models.levit.Attention": "with use_conv=True W_O is a convolution",
    "timm.models.levit.AttentionDownsample": "with use_conv=True W_O is a convolution",
    "timm.models.vision_transformer.DiffParallelScalingBlock": "W_O is one layer with the MLP's last, for both inputs",
    "timm.models.vision_transformer.ParallelScalingBlock": (
        "with fuse_out_proj=True W_O is one layer with the MLP's last, for both inputs"
    ),
}

#: mmcv's wrapper of nn.MultiheadAttention, which uses the first of its two outputs only.
_WRAPPER = "mmcv.cnn.bricks.transformer.MultiheadAttention"

_NOTHING: Mapping[str, str | None] = MappingProxyType({})
#: what is known within a call alone
_LOCAL: ContextVar[Mapping[str, str | None]] = ContextVar("of one call", default=_NOTHING)

Attentions = Mapping[type[nn.Module] | str, str | None]


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


def register_attention(attention: type[nn.Module] | str, projection: str | None) -> None:
    """Say where a kind of attention keeps its projection, for all models from now on.

    Args:
        attention: The attention's class, or its full name such as ``'mypackage.layers.MyAttention'``. Subclasses
            are covered.
        projection: Path of the projection, an ``nn.Linear`` that is called, inside it, such as ``'proj'`` or
            ``'out.0'``; None for what is no attention, or one without a projection: it stays frozen.
    """
    _PROJECTIONS.update(attention_names({attention: projection}))


@contextmanager
def also_known(attentions: Attentions | None) -> Iterator[None]:
    """Within it, :func:`find_projections` knows further kinds of attention; see :func:`register_attention`.

    Args:
        attentions: Classes, or their full names, and their projections' paths.

    Raises:
        ValueError: They are no such thing.
    """
    token = _LOCAL.set({**_LOCAL.get(), **attention_names(attentions or {})})
    try:
        yield
    finally:
        _LOCAL.reset(token)


def find_projections(model: nn.Module, attentions: Attentions | None = None) -> list[Projection]:
    """Find the projection of every attention in a model, by the attention's class.

    A layer that is the projection of several attentions is found once, with the first; :func:`find_attentions` gives
    them all. What pools by attention counts as one. A module of a class that is not known is taken for an attention
    if its class, or its name in a block, is called so, or if its children and its code compute one: that is an error.

    Args:
        model: Any module.
        attentions: Further kinds of attention for this call, by class or full name, as of :func:`register_attention`.

    Returns:
        The projections, in the model's order.

    Raises:
        ValueError: The model has no attention, or one of a kind that is not known, or one whose projection is not an
            ``nn.Linear`` that is called; or ``attentions`` names a class that the model does not have.
    """
    return each_once(find_attentions(model, attentions))


def each_once(found: list[Projection]) -> list[Projection]:
    """Of projections that are one layer the first alone."""
    first: dict[nn.Module, Projection] = {}
    for one in found:
        first.setdefault(one.linear, one)
    return list(first.values())


def find_attentions(model: nn.Module, attentions: Attentions | None = None) -> list[Projection]:
    """As :func:`find_projections`, with one projection for each attention module."""
    with also_known(attentions):
        kinds = {name: kind for name, module in model.named_modules() if (kind := _kind(module)) is not None}
        _check_all_are_there(model, attention_names(attentions or {}))
        _check_all_are_known(model, kinds)
        found = _projections(model, kinds)
    if not found:
        raise ValueError(
            f"no attention was found in {_class_name(type(model))}, and APLA trains the projection after attention; "
            "adapt a transformer, or say what its attention is: apla_mm.register_attention, or "
            "adapt(..., attentions={'package.module.Class': 'proj'})"
        )
    return found


def _projections(model: nn.Module, kinds: Mapping[str, str]) -> list[Projection]:
    wrapped = {module.attn for module in model.modules() if _has_class(module, _WRAPPER)}
    found: list[Projection] = []
    for name, kind in kinds.items():
        path = _path(kind)
        if path is None:
            continue
        module = model.get_submodule(name)
        try:
            linear = module.get_submodule(path)
        except AttributeError:
            linear = None
        problem = ""
        if not isinstance(linear, nn.Linear):
            problem = f"is {'missing' if linear is None else f'a {type(linear).__name__}'}, not an nn.Linear"
            problem += f": {reason}" if (reason := _REASONS.get(kind)) else ""
        elif reads_weight_of(module, path):
            problem = "is not called, its weight is used by itself: what trains of it would get no gradient"
        if problem:
            raise ValueError(f"'{path}' of the attention '{name}' ({_class_name(type(module))}) {problem}")
        assert isinstance(linear, nn.Linear)
        found.append(Projection(f"{name}.{path}" if name else path, linear, module, module not in wrapped))
    return found


def _check_all_are_there(model: nn.Module, attentions: Mapping[str, str | None]) -> None:
    classes = {name for module in model.modules() for name in map(_class_name, type(module).__mro__)}
    absent = [name for name in attentions if name not in classes]
    if absent:
        own = sorted({_class_name(type(m)) for m in model.modules() if not type(m).__module__.startswith("torch.")})
        alike = [name for name in own if name.rpartition(".")[2] in {n.rpartition(".")[2] for n in absent}] or own[:5]
        raise ValueError(
            f"attentions: the model has no module of class {', '.join(map(repr, absent))}; there are {', '.join(alike)}"
        )


def _check_all_are_known(model: nn.Module, kinds: Mapping[str, str]) -> None:
    """An attention that is not in the table is an error rather than a silent miss."""
    modules = dict(model.named_modules())
    known = {modules[name] for name in kinds}
    inside = tuple(f"{name}." if name else "" for name in kinds)
    unknown: dict[type, list[str]] = {}
    for name, module in modules.items():
        if name in kinds or name.startswith(inside):
            continue
        if attends(module, known) or says_attention(name, module, modules, known):
            unknown.setdefault(type(module), []).append(name)
    if not unknown:
        return
    names = [
        f"'{names[0]}' ({_class_name(cls)}{f', {len(names)} of them' if len(names) > 1 else ''})"
        for cls, names in unknown.items()
    ]
    reasons = [
        f"{cls.__qualname__}: {reason}"
        for cls, names in unknown.items()
        if (reason := _REASONS.get(_class_name(cls)) or why_none(modules[names[0]]))
    ]
    head = f"{sum(map(len, unknown.values()))} modules look like attention of a kind that is not known: "
    if len(reasons) == len(unknown):
        raise ValueError(
            f"{head}{', '.join(names)}; APLA trains an nn.Linear right after attention, and here is none "
            f"({'; '.join(reasons)}); attentions={{'package.module.Class': None}} leaves such a one frozen"
        )
    told = f" ({'; '.join(reasons)})" if reasons else ""
    raise ValueError(
        f"{head}{', '.join(names)}{told}; say where the projection is: apla_mm.register_attention("
        "'package.module.Class', 'proj'), or adapt(..., attentions={'package.module.Class': 'proj'}), with None for "
        "what is no attention"
    )


def attention_names(attentions: Attentions) -> dict[str, str | None]:
    """Kinds of attention by their full names.

    Raises:
        ValueError: A class or a path is none.
    """
    if not isinstance(attentions, Mapping):
        raise ValueError(f"attentions={attentions!r} must map classes to paths: {{'package.module.Class': 'proj'}}")
    checked = {}
    for attention, path in attentions.items():
        is_class = isinstance(attention, type) and issubclass(attention, nn.Module)
        if not (is_class or (isinstance(attention, str) and "." in attention)):
            raise ValueError(f"attention {attention!r} must be a class, or its full name: 'package.module.Class'")
        if path is not None and not (isinstance(path, str) and path):
            raise ValueError(f"the projection of {attention!r} must be its path, such as 'proj', or None, not {path!r}")
        checked[attention if isinstance(attention, str) else _class_name(attention)] = path
    return checked


def left_frozen(module: nn.Module) -> bool:
    """Whether a module is of a kind of attention that is known to have no projection, and stays frozen."""
    kind = _kind(module)
    return kind is not None and _path(kind) is None


def _kind(module: nn.Module) -> str | None:
    """The class, as it is known, that says where a module's projection is."""
    local = _LOCAL.get()
    names = list(map(_class_name, type(module).__mro__))
    return next((name for name in names if name in local or name in _PROJECTIONS), None)


def _path(kind: str) -> str | None:
    local = _LOCAL.get()
    return local[kind] if kind in local else _PROJECTIONS[kind]


def _has_class(module: nn.Module, name: str) -> bool:
    return name in map(_class_name, type(module).__mro__)


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
