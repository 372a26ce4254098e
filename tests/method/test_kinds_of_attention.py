"""Every kind of attention that is known trains by its projection alone, and computes what it did."""

import copy
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import timm
import torch
from helpers.comparisons import changed_rows
from helpers.nets import Attending
from helpers.optional import needs
from timm.models import metaformer
from timm.models.mvitv2 import MultiScaleVitCfg as MViT
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from apla_mm.method import adapt, merge

VIT = dict(embed_dim=32, depth=2, num_heads=2)
STAGES = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2))

MVIT = dict(depths=(1, 1), embed_dim=16, num_heads=1)
METAFORMER = dict(
    token_mixers=[metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention],
    norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
)
VOLO = dict(mlp_ratio=2.0, downsamples=(True, False), outlook_attention=(True, False), post_layers=("ca",))

#: kind -> timm's name and arguments that make it small, and its images' side
TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "pooling of SigLIP": ("vit_base_patch16_siglip_224", dict(VIT, img_size=32), 32),
    "pooling of PE": ("vit_pe_core_tiny_patch16_384", dict(VIT, embed_dim=64, img_size=32), 32),
    "parallel blocks": ("vit_base_patch16_xp_224", dict(VIT, img_size=32), 32),
    "differential": ("vit_dwee_patch16_reg1_gap_256", dict(VIT, embed_dim=64, img_size=32), 32),
    "hybrid": ("vit_tiny_r_s16_p8_224", dict(depth=2, img_size=64), 64),
    "BEiT": ("beit_base_patch16_224", dict(VIT, img_size=32), 32),
    "CaiT": ("cait_xxs24_224", dict(VIT, img_size=32), 32),
    "CoaT": ("coat_tiny", dict(img_size=64, serial_depths=(1,) * 4, parallel_depth=1, embed_dims=(32,) * 4), 64),
    "ConViT": ("convit_tiny", dict(embed_dim=16, depth=3, num_heads=4, local_up_to_layer=2, img_size=32), 32),
    "CrossViT": ("crossvit_tiny_240", dict(depth=((1, 1, 0),), embed_dim=(16, 32), num_heads=(2, 2)), 240),
    "DaViT": ("davit_tiny", dict(depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2)), 64),
    "DeepSeek": ("deepseek_vit_412m", VIT, 28),
    "EdgeNeXt": ("edgenext_xx_small", dict(depths=(1, 1, 2, 2), dims=(8, 16, 24, 32), heads=(4,) * 4), 64),
    "EfficientFormer": ("efficientformer_l1", dict(depths=(1, 1, 1, 2), embed_dims=(8, 16, 24, 32), num_vit=1), 224),
    "FastViT": ("fastvit_sa12", dict(layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 64)), 64),
    "GCViT": ("gcvit.GlobalContextVit", dict(depths=(2,) * 4, embed_dim=16, num_heads=(1, 1, 2, 2), img_size=64), 64),
    "Gemma 4": ("gemma4_vit_167m", dict(VIT, head_dim=16, intermediate_size=32), 48),
    "Hiera": ("hiera_tiny_224", dict(embed_dim=16, stages=(1, 1, 1, 1), img_size=(64, 64)), 64),
    "LeViT": ("levit_128s", dict(embed_dim=(16, 32, 48), num_heads=(1, 2, 3), depth=(1, 1, 1), key_dim=8), 224),
    "MaxViT": ("maxvit_rmlp_pico_rw_256", dict(img_size=128, depths=(1, 1), embed_dim=(32, 64), stem_width=8), 128),
    "MetaFormer": ("metaformer.MetaFormer", dict(METAFORMER, depths=(1,) * 4, dims=(8, 16, 32, 64)), 64),
    "MobileViT": ("mobilevit_xxs", {}, 64),
    "MViTv2": ("mvitv2.MultiScaleVit", dict(cfg=MViT(**MVIT), img_size=64), 64),
    "NaFlexViT": ("naflexvit_base_patch16_map", VIT, 32),
    "NesT": ("nest.Nest", dict(img_size=32, embed_dims=(16, 32), num_heads=(1, 2), depths=(1, 1), num_levels=2), 32),
    "PiT": ("pit_ti_224", dict(depth=[1, 1, 1], base_dims=[8, 8, 8], heads=[1, 2, 4]), 224),
    "PVT v2": ("pvt_v2_b0", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 1, 1, 2)), 64),
    "PVT v2 linear": ("pvt_v2_b2_li", dict(depths=(1,) * 4, embed_dims=(8, 16, 24, 32), num_heads=(1, 1, 1, 2)), 64),
    "Qwen3": ("qwen3_vit_88m", VIT, 32),
    "relative positions": ("vit_relpos_small_patch16_224", dict(VIT, img_size=32), 32),
    "SAM": ("samvit_base_patch16_224", dict(VIT, img_size=32), 32),
    "SAM 2": ("sam2_hiera_tiny", dict(stages=(1, 1, 1, 1), embed_dim=16, num_heads=1), 128),
    "SwiftFormer": ("swiftformer_xs", dict(layers=[1] * 4, embed_dims=[8, 16, 24, 32]), 64),
    "Swin": ("swin_tiny_patch4_window7_224", dict(STAGES, img_size=32, window_size=4), 32),
    "Swin V2": ("swinv2_tiny_window8_256", dict(STAGES, img_size=32, window_size=4), 32),
    "Swin V2 CR": ("swinv2_cr_tiny_224", dict(STAGES, img_size=32, window_size=4), 32),
    "TinyViT": ("tiny_vit_5m_224", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64), num_heads=(1, 1, 2, 2)), 64),
    "TNT": ("tnt_s_patch16_224", dict(embed_dim=32, depth=2, inner_dim=8, num_heads_outer=2, num_heads_inner=2), 224),
    "Twins-PCPVT": ("twins_pcpvt_small", dict(depths=[1] * 4, embed_dims=[8, 16, 24, 32], num_heads=[1] * 4), 224),
    "Twins-SVT": ("twins_svt_small", dict(depths=[2] * 4, embed_dims=[8, 16, 24, 32], num_heads=[1] * 4), 224),
    "VOLO": ("volo.VOLO", dict(VOLO, layers=(1, 1), embed_dims=(16, 32), num_heads=(1, 2), img_size=64), 64),
    "XCiT": ("xcit_nano_12_p16_224", VIT, 32),
}  # fmt: skip


#: kind -> mmpretrain's backbone, and its images' side
MMPRETRAIN: dict[str, tuple[dict[str, Any], int]] = {
    "DaViT": (dict(type="DaViT", arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]), out_indices=(1,)), 64),
    "EdgeNeXt": (
        dict(type="EdgeNeXt", arch=dict(channels=[8, 16, 24, 32], depths=[1] * 4, num_heads=[4] * 4)),
        64,
    ),
    "EfficientFormer": (
        dict(
            type="EfficientFormer",
            arch=dict(
                layers=[1, 1, 1, 2], embed_dims=[8, 16, 24, 32], downsamples=[False, True, True, True], vit_num=1
            ),
        ),
        224,
    ),
    "MixMIM": (
        dict(
            type="MixMIMTransformer",
            arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]),
            img_size=64,
            window_size=[4, 4],
        ),
        64,
    ),
    "MViT": (
        dict(
            type="MViT",
            arch=dict(embed_dims=16, num_layers=2, num_heads=1, downscale_indices=[1]),
            img_size=64,
            out_scales=(0, 1),
        ),
        64,
    ),
    "TinyViT": (
        dict(
            type="TinyViT",
            arch=dict(channels=[8, 16, 32, 64], num_heads=[1, 1, 2, 2], depths=[1] * 4),
            img_size=(64, 64),
            window_size=[7, 7, 4, 2],
        ),
        64,
    ),
    "XCiT": (
        dict(type="XCiT", img_size=32, patch_size=16, embed_dims=128, depth=2, cls_attn_layers=1, num_heads=2),
        32,
    ),
}

#: attentions of models that are slow to run, or that run in one size alone: class, arguments, shape of the input
MODULES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "pooling of CLIP's ResNet": ("timm.layers.AttentionPool2d", (16, 4), dict(num_heads=2), (2, 16, 4, 4)),
    "pooling with rotation": ("timm.layers.RotAttentionPool2d", (16,), dict(num_heads=2), (2, 16, 4, 4)),
    "Next-ViT": ("timm.models.nextvit.EfficientAttention", (16,), dict(head_dim=8, sr_ratio=2), (2, 16, 16)),
    "HiViT": ("mmpretrain.models.backbones.hivit.Attention", (4, 16, 2), dict(rpe=False), (2, 16, 16)),
    "LeViT of mmpretrain": (
        "mmpretrain.models.backbones.levit.Attention",
        (16, 8),
        dict(num_heads=2, attn_ratio=2, act_cfg=dict(type="HSwish"), resolution=4),
        (2, 16, 16),
    ),
    "LeViT of mmpretrain, subsampling": (
        "mmpretrain.models.backbones.levit.AttentionSubsample",
        (16, 24, 8),
        dict(num_heads=2, attn_ratio=2, act_cfg=dict(type="HSwish"), stride=2, resolution=4),
        (2, 16, 16),
    ),
}

#: whose positions are float32
SINGLE = ("mmpretrains EdgeNeXt", "mmpretrains XCiT")

#: of Hugging Face's transformers: model, config, and what makes it small beside :data:`SMALL`
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BEiT": ("BeitModel", "BeitConfig", {}),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "DeiT": ("DeiTModel", "DeiTConfig", {}),
    "DINOv2": ("Dinov2Model", "Dinov2Config", {}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {}),
    "SegFormer": (
        "SegformerModel",
        "SegformerConfig",
        dict(num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2]),
    ),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "Swin": (
        "SwinModel",
        "SwinConfig",
        dict(embed_dim=16, depths=[1, 1], num_heads=[1, 2], patch_size=4, window_size=4),
    ),
    "Swin V2": (
        "Swinv2Model",
        "Swinv2Config",
        dict(embed_dim=16, depths=[1, 1], num_heads=[1, 2], patch_size=4, window_size=4),
    ),
    "ViT": ("ViTModel", "ViTConfig", {}),
}
SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
)


def timms(kind: str) -> tuple[nn.Module, Tensor]:
    name, kwargs, side = TIMM[kind]
    module, _, cls = name.rpartition(".")
    make = (
        getattr(importlib.import_module(f"timm.models.{module}"), cls) if module else partial(timm.create_model, name)
    )
    return make(**{"num_classes": 4, **kwargs}), torch.rand(2, 3, side, side)


def mmpretrains(kind: str) -> tuple[nn.Module, Tensor]:
    needs("mmpretrain.models")
    from mmpretrain.registry import MODELS

    config, side = MMPRETRAIN[kind]
    return MODELS.build(dict(config)), torch.rand(2, 3, side, side)


def torchvisions(kind: str) -> tuple[nn.Module, Tensor]:
    from torchvision.models.maxvit import MaxVit

    model = MaxVit((64, 64), 8, 2, [8, 16], [1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=4)
    return model, torch.rand(2, 3, 64, 64)


def huggingfaces(kind: str) -> tuple[nn.Module, Tensor]:
    transformers = needs("transformers")
    model, config, kwargs = TRANSFORMERS[kind]
    config = getattr(transformers, config)(**{**SMALL, **kwargs})
    return getattr(transformers, model)(config), torch.rand(2, 3, 32, 32)


def modules(kind: str) -> tuple[nn.Module, Tensor]:
    name, args, kwargs, shape = MODULES[kind]
    needs(name.partition(".")[0]) if name.startswith("mm") else None
    module, _, cls = name.rpartition(".")
    return Attending(getattr(importlib.import_module(module), cls)(*args, **kwargs)), torch.rand(shape)


CASES = [
    *[(modules, kind) for kind in MODULES],
    *[(timms, kind) for kind in TIMM],
    *[(mmpretrains, kind) for kind in MMPRETRAIN],
    (torchvisions, "MaxViT"),
    *[(huggingfaces, kind) for kind in TRANSFORMERS],
]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    tensors = tree_leaves(list(y.values()) if isinstance(y, Mapping) else y)
    return torch.stack([t.square().mean() for t in tensors if isinstance(t, Tensor)]).sum()


@pytest.mark.parametrize(("make", "kind"), CASES, ids=[f"{make.__name__} {kind}" for make, kind in CASES])
def test_trains_by_its_projections_alone_and_computes_what_it_did(
    make: Callable[[str], tuple[nn.Module, Tensor]], kind: str
) -> None:
    plain, x = make(kind)
    single = f"{make.__name__} {kind}" in SINGLE
    plain, x = (plain, x) if single else (plain.double(), x.double())
    near = 1e-5 if single else 1e-9
    plain.eval()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)  # what starts at 0 would hide an error
    adapted = copy.deepcopy(plain)
    report = adapt(adapted, r=2)
    before = {name: t.clone() for name, t in adapted.state_dict().items()}
    assert list(before) == list(plain.state_dict())

    expected, got = loss(plain, x), loss(adapted, x)
    torch.testing.assert_close(got, expected, rtol=near, atol=0)
    expected.backward()
    got.backward()
    for projection in report.projections:
        full, rows = plain.get_submodule(projection.name), adapted.get_submodule(projection.name).trained
        for part in ("weight", "bias") if full.bias is not None else ("weight",):
            gradient = getattr(full, part).grad[list(projection.channels)]
            assert gradient.any()
            torch.testing.assert_close(
                getattr(rows, part).grad, gradient, rtol=10 * near, atol=near * gradient.abs().max()
            )

    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss(adapted, x).backward()
        optimizer.step()
    trained = {
        f"{p.name}.{part}": list(p.channels)
        for p in report.projections
        for part in ("weight", "bias")
        if f"{p.name}.{part}" in before
    }
    assert changed_rows(before, adapted.state_dict()) == trained
    with torch.no_grad():
        last = loss(adapted, x)
        merge(adapted)
        torch.testing.assert_close(loss(adapted, x), last, rtol=near, atol=0)
    assert [(n, type(m)) for n, m in adapted.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
