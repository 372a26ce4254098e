"""EoMT against transformers' implementation, and as a part of mmseg's and mmdet's models."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation

import apla_mm
import apla_mm.models.heads.eomt_head
from apla_mm.convert.eomt import convert_eomt
from apla_mm.data.synthetic_batch import synthetic_batch
from apla_mm.delta import extract_delta, save_delta
from apla_mm.models import APLAViT

pytestmark = pytest.mark.slow

DIMS, DEPTH, BLOCKS, QUERIES, CLASSES, SIZE = 32, 4, 2, 5, 3, 64
LOSSES = dict(
    loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=2.0, reduction="mean"),
    loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0),
    loss_dice=dict(type="mmdet.DiceLoss", use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=5.0),
)
TRAIN = dict(
    num_points=64,
    assigner=dict(
        type="mmdet.HungarianAssigner",
        match_costs=[
            dict(type="mmdet.ClassificationCost", weight=2.0),
            dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
            dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
        ],
    ),
    sampler=dict(type="mmdet.MaskPseudoSampler"),
)


def make_backbone(model_name: str = "vit_tiny_patch16_224", **settings: Any) -> APLAViT:
    kwargs = dict(depth=DEPTH, embed_dim=DIMS, num_heads=2)
    if not model_name.endswith("dinov3"):
        kwargs |= dict(reg_tokens=4, no_embed_class=True, init_values=1.0)
    return APLAViT(model_name, pretrained=False, img_size=SIZE, query_blocks=BLOCKS, model_kwargs=kwargs, **settings)


class Model(nn.Module):
    """A backbone and a head by themselves."""

    def __init__(self, scope: str, backbone: APLAViT) -> None:
        super().__init__()
        self.backbone = backbone
        classes = dict(num_classes=CLASSES) if scope == "mmseg" else dict(num_things_classes=2, num_stuff_classes=1)
        cfg = dict(type="EoMTHead", embed_dims=DIMS, num_queries=QUERIES, num_blocks=BLOCKS, train_cfg=TRAIN, **classes)
        with DefaultScope.overwrite_default_scope(scope):
            self.head: Any = MODELS.build({**cfg, **LOSSES})

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.head(self.backbone(images), None)


@pytest.fixture
def reference(masked: bool) -> EomtForUniversalSegmentation:
    torch.manual_seed(0)
    config = EomtConfig(
        hidden_size=DIMS,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        image_size=SIZE,
        num_blocks=BLOCKS,
        num_queries=QUERIES,
        num_labels=CLASSES,
        attn_implementation="eager" if masked else "sdpa",  # eager takes its softmax in float32, and masks
    )
    model = EomtForUniversalSegmentation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scope", ["mmseg", "mmdet"])
def test_it_is_what_transformers_computes(
    reference: EomtForUniversalSegmentation, scope: str, masked: bool, dtype: torch.dtype
) -> None:
    reference.to(dtype).train(masked)
    reference.attn_mask_probs.fill_(float(masked))
    model = Model(scope, make_backbone()).to(dtype).train(masked)
    model.load_state_dict(convert_eomt(reference.state_dict(), "head"))
    model.head.mask_probability.fill_(float(masked))
    images = torch.randn(2, 3, SIZE, SIZE, dtype=dtype)
    right = reference(images)
    classes, masks = model(images)
    assert len(classes) == len(masks) == (BLOCKS + 1 if masked else 1)
    limit = dict(rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-6 if masked else 1e-12)
    torch.testing.assert_close(classes[-1], right.class_queries_logits, **limit)
    torch.testing.assert_close(masks[-1], right.masks_queries_logits, **limit)
    if dtype == torch.float64:
        direction = torch.randn_like(masks[-1])
        (right.masks_queries_logits * direction).sum().backward()
        (masks[-1] * direction).sum().backward()
        gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
        expected = convert_eomt({**gradients, "attn_mask_probs": torch.ones(BLOCKS)}, "head")
        for name, parameter in model.named_parameters():
            if not name.startswith("head.cls_embed"):
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_without_queries_the_blocks_are_the_plain_models(name: str) -> None:
    backbone = make_backbone(name).eval()
    images = torch.randn(2, 3, 64, 96)
    (blocks,) = backbone(images)
    joined = blocks.join(torch.zeros(0, DIMS))
    for i in range(BLOCKS):
        joined = blocks.run(i, joined)
    plain = backbone.vit.forward_intermediates(images, norm=True, intermediates_only=True)[-1]
    torch.testing.assert_close(blocks.split(joined)[1], plain)


def test_queries_of_a_model_with_rotary_positions_have_none() -> None:
    backbone = make_backbone("vit_small_patch16_dinov3").eval()
    (blocks,) = backbone(torch.randn(1, 3, 64, 96))
    queries = torch.randn(2, DIMS)
    there, swapped = (blocks.run(0, blocks.join(q)) for q in (queries, queries.flip(0)))
    torch.testing.assert_close(there[:, -2:], swapped[:, -2:].flip(1))
    torch.testing.assert_close(there[:, :-2], swapped[:, :-2])


def test_share_of_queries_whose_masks_are_on() -> None:
    model = Model("mmseg", make_backbone()).train()
    masks, grid = torch.full((40, QUERIES, 16, 16), -1.0), (4, 4)
    assert model.head._seen(masks, grid, 0.0) is None and not model.head._seen(masks, grid, 1.0).any()
    share = model.head._seen(masks, grid, 0.25).float().mean()
    assert 0.6 < share < 0.9
    model.eval()
    assert not model.head._seen(masks, grid, 0.75).any()  # nothing is drawn


def test_what_does_not_go_together_is_refused() -> None:
    model = Model("mmseg", make_backbone())
    with pytest.raises(TypeError, match="APLAViT with query_blocks=4"):
        model.head((torch.zeros(1, DIMS, 4, 4),), None)
    model.head.mask_probability = torch.ones(3)
    with pytest.raises(ValueError, match="num_blocks=3 and the backbone query_blocks=2"):
        model(torch.randn(1, 3, SIZE, SIZE))
    for settings, message in (
        (dict(out_indices=(1, 2)), "leave out_indices and window_size out"),
        (dict(window_size=2), "leave out_indices and window_size out"),
    ):
        with pytest.raises(ValueError, match=message):
            make_backbone(**settings)
    with pytest.raises(ValueError, match="query_blocks=13 must be a number of the 12 blocks"):
        APLAViT("vit_tiny_patch16_224", pretrained=False, query_blocks=13)
    with pytest.raises(ValueError, match="query_blocks takes timm's"):
        APLAViT("beit_base_patch16_224", pretrained=False, query_blocks=2)


@pytest.mark.parametrize("stuff", [0, 1])
def test_a_detector_of_mmdet_trains_and_finds_instances_or_all(stuff: int) -> None:
    """Instances where there is no stuff, a panoptic map where there is."""
    torch.manual_seed(0)
    counts = dict(num_things_classes=2, num_stuff_classes=stuff)
    head = dict(type="EoMTHead", embed_dims=DIMS, num_queries=QUERIES, num_blocks=BLOCKS, **counts, **LOSSES)
    kwargs = dict(depth=DEPTH, embed_dim=DIMS, num_heads=2)
    backbone = dict(type="APLAViT", model_name="vit_tiny_patch16_224", pretrained=False, img_size=SIZE)
    cfg = dict(
        type="Mask2Former",
        data_preprocessor=dict(type="DetDataPreprocessor", pad_mask=True, pad_size_divisor=SIZE),
        backbone=dict(**backbone, query_blocks=BLOCKS, apla=dict(r=4), model_kwargs=kwargs),
        panoptic_head=head,
        panoptic_fusion_head=dict(type="MaskFormerFusionHead", loss_panoptic=None, **counts),
        train_cfg=TRAIN,
        test_cfg=dict(
            panoptic_on=bool(stuff),
            semantic_on=False,
            instance_on=not stuff,
            max_per_image=4,
            iou_thr=0.8,
            filter_low_score=True,
        ),
    )
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS.build(ConfigDict(cfg))
    batch = synthetic_batch(model, SIZE, 2)
    for sample in batch["data_samples"]:
        sample.gt_sem_seg = PixelData(sem_seg=torch.full((1, SIZE, SIZE), 2 if stuff else 255))
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
    assert {name.rpartition(".")[0] for name in losses} == {"", "d0", "d1"}
    sum(losses.values()).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(model.get_parameter(name).grad is not None for name in trained)
    model.eval().panoptic_head.mask_probability.zero_()
    found = model(**model.data_preprocessor(batch), mode="predict")
    if stuff:
        assert found[0].pred_panoptic_seg.sem_seg.shape == (1, SIZE, SIZE)
    else:
        assert found[0].pred_instances.masks.shape == (4, SIZE, SIZE)


@pytest.mark.parametrize("recompute", ["mlp", "linear", "block"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_blocks_that_queries_join_are_recomputed_alike(name: str, recompute: str) -> None:
    torch.manual_seed(0)
    plain = Model("mmseg", make_backbone(name, apla=dict(r=4, seed=0))).double()
    other = Model("mmseg", make_backbone(name, apla=dict(r=4, seed=0, recompute=recompute))).double()
    other.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    for model in (plain, other):
        classes, masks = model.train()(images)
        sum(part.square().sum() for part in (*classes, *masks)).backward()
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in (plain, other)]
    assert len(gradients[0]) > 2 * DEPTH and gradients[0].keys() == gradients[1].keys()
    for name_, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name_], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_two_tasks_trained_apart_take_turns_on_one_base(name: str, tmp_path: Path) -> None:
    """Classes of pixels, and panoptic: each answers as the model that was trained, and the base comes back exactly."""
    torch.manual_seed(0)
    backbone = make_backbone(name)
    base = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    images = torch.randn(2, 3, SIZE, SIZE)
    switch = apla_mm.TaskSwitch(backbone, prefix="backbone.")
    served, expected = {}, {}
    for seed, scope in enumerate(("mmseg", "mmdet")):
        plain = Model(scope, backbone)
        trained = copy.deepcopy(plain)
        apla_mm.adapt(trained.backbone.vit, r=4, seed=seed)
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(2):
            classes, masks = trained.train()(images)
            sum(part.square().mean() for part in (*classes, *masks)).backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.head.mask_probability.zero_()
        save_delta(extract_delta(trained, r=4, seed=seed), tmp_path / scope)
        switch.add(scope, tmp_path / scope, whole=plain)
        served[scope], expected[scope] = plain.eval(), trained.eval()
    with torch.no_grad():
        for scope in ("mmseg", "mmdet", "mmseg"):
            with switch(scope):
                classes, masks = served[scope](images)
            right = expected[scope](images)
            assert torch.equal(classes[-1], right[0][-1]) and torch.equal(masks[-1], right[1][-1])
            assert all(torch.equal(tensor, base[key]) for key, tensor in backbone.state_dict().items())
