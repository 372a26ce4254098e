"""Maps of every kind of ViT that timm has: of the right size, in their place, and timm's own."""

import math

import pytest
import timm
import torch

from apla_mm.models import APLAViT

VIT = dict(embed_dim=64, depth=3, num_heads=2)
CONVIT = dict(embed_dim=16, depth=3, num_heads=4, local_up_to_layer=2)

#: model, arguments that make it small, stride; those of any size, and those of one
ANY = [
    ("vit_tiny_patch16_224", VIT, 16),
    ("vit_tiny_r_s16_p8_224", dict(depth=3), 32),
    ("vit_small_r26_s32_224", dict(depth=2), 32),
    ("vit_base_mci_224", dict(depth=2), 16),
    ("vitamin_small_224", dict(depth=2), 16),
    ("samvit_base_patch16_224", VIT, 16),
    ("naflexvit_base_patch16_gap", VIT, 16),
    ("naflexvit_base_patch16_map", VIT, 16),
    ("qwen3_vit_88m", VIT, 16),
    ("qwen3_vit_88m_merge", VIT, 16),
    ("deepseek_vit_412m", VIT, 14),
    ("gemma4_vit_167m", dict(VIT, head_dim=32, intermediate_size=64), 16),
    ("vit_base_patch16_xp_224", VIT, 16),
    ("xcit_nano_12_p8_224", VIT, 8),
]
ONE = [
    ("beit_base_patch16_224", VIT, 16),
    ("vit_relpos_small_patch16_224", VIT, 16),
    ("vit_srelpos_small_patch16_224", VIT, 16),
    ("vit_relpos_base_patch16_clsgap_224", VIT, 16),
    ("cait_xxs24_224", VIT, 16),
    ("convit_tiny", CONVIT, 16),
]


def make(model_name, kwargs, **options):
    arguments = dict(pretrained=False, model_kwargs=kwargs, apla=dict(r=2), out_indices=(0, -1))
    return APLAViT(model_name, **{**arguments, **options}).eval()


def check(backbone, patch, size):
    """Maps of images of a size that is no multiple: their shapes, values, and what gets a gradient."""
    assert backbone.patch_size == (patch, patch)
    grid = tuple(math.ceil(side / patch) for side in size)
    x = torch.randn(2, 3, *size)
    padded = torch.zeros(2, 3, grid[0] * patch, grid[1] * patch)
    padded[..., : size[0], : size[1]] = x
    maps = backbone(x)
    expected = backbone.vit.forward_intermediates(padded, indices=backbone.out_indices, intermediates_only=True)
    for got, want in zip(maps, expected, strict=True):
        assert got.shape == (2, backbone.embed_dims, *grid)
        assert torch.equal(got, want)
    sum(m.square().sum() for m in maps).backward()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained and trained == {name for name, p in backbone.named_parameters() if p.grad is not None}


def check_places(backbone, patch, shape):
    """What changes in a patch shows in its place of the first block's map, or beside it after convolutions."""
    height, width = shape
    x = torch.randn(1, 3, height * patch, width * patch)
    for i, j in ((1, 2), (height - 2, 1), (1, width - 2)):
        y = x.clone()
        y[..., i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] += 3 * torch.randn(3, patch, patch)
        with torch.no_grad():
            change = (backbone(y)[0] - backbone(x)[0]).square().sum(1)[0]
        place = divmod(change.argmax().item(), width)
        assert max(abs(place[0] - i), abs(place[1] - j)) <= 1


@pytest.mark.parametrize(("model_name", "kwargs", "patch"), ANY, ids=[name for name, *_ in ANY])
def test_maps_of_any_size(model_name, kwargs, patch):
    backbone = make(model_name, kwargs)
    assert backbone.img_size is None
    check(backbone, patch, (4 * patch + 3, 6 * patch + 5))
    check_places(backbone, patch, (5, 7))


@pytest.mark.parametrize(("model_name", "kwargs", "patch"), ONE, ids=[name for name, *_ in ONE])
def test_maps_of_the_one_size_that_positions_belong_to(model_name, kwargs, patch):
    backbone = make(model_name, kwargs, img_size=96)
    assert backbone.img_size == (96, 96)
    check(backbone, patch, (93, 91))
    check_places(backbone, patch, (6, 6))
    with pytest.raises(ValueError, match=r"images of 120 x 96, padded to 128 x 96.*takes, 96 x 96.*give img_size="):
        backbone(torch.zeros(1, 3, 120, 96))


def test_images_that_are_not_square_for_relative_positions():
    check(make("beit_base_patch16_224", VIT, img_size=(64, 96)), 16, (60, 90))


@pytest.mark.parametrize("model_name", ["beit_base_patch16_224", "vit_relpos_small_patch16_224"])
def test_weights_of_another_image_size_have_their_tables_resized(tmp_path, model_name):
    torch.manual_seed(3)
    source = timm.create_model(model_name, num_classes=0, img_size=64, **VIT).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    backbone = make(model_name, VIT, img_size=96, pretrained=tmp_path / "w.pth", apla=None)
    backbone.init_weights()
    check(backbone, 16, (96, 96))
    same = make(model_name, VIT, img_size=64, pretrained=tmp_path / "w.pth", apla=None, out_indices=(-1,))
    same.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = source.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
        torch.testing.assert_close(same(x)[0], want)


def test_the_neck_is_the_norm_of_sam():
    backbone = make("samvit_base_patch16_224", dict(VIT, neck_chans=24), norm=True)
    assert backbone.embed_dims == 24
    assert backbone(torch.randn(1, 3, 40, 64))[0].shape == (1, 24, 3, 4)


def test_building_leaves_values_and_random_numbers_alone():
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **VIT)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    backbone = make("vit_tiny_patch16_224", VIT, apla=None, norm=True)
    assert torch.equal(torch.rand(1), drawn)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, backbone.vit.state_dict()[key]), key
    backbone = APLAViT("vit_tiny_patch16_224", pretrained=False, model_kwargs=VIT)
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ("model_name", "kwargs", "options", "message"),
    [
        ("hiera_tiny_224", {}, {}, "maps of a Hiera are those of 4 stages"),
        ("sam2_hiera_tiny", {}, {}, "those of 4 stages"),
        ("crossvit_tiny_240", {}, {}, "stages, not of its blocks"),
        ("tnt_s_patch16_224", {}, {}, "block 0 gives .*not one token for each of 14 x 14 patches of 16 x 16"),
        ("twins_svt_small", {}, {}, "not its blocks but its stages"),
        ("swin_tiny_patch4_window7_224", {}, {}, "is a SwinTransformer, not a ViT"),
        ("pit_ti_224", {}, {}, "not a ViT"),
        ("mobilenetv4_hybrid_medium", {}, {}, "stages"),
        ("efficientnet_b0", {}, {}, "stages"),
        (
            "vit_small_r26_s32_224",
            dict(depth=2),
            dict(img_size=500),
            "an image size that its embedding does not divide",
        ),
        ("qwen3_vit_88m", VIT, dict(norm=True), "its maps pass no final norm: leave norm=True out"),
        ("samvit_base_patch16_224", VIT, dict(window_size=4), "window_size takes timm's VisionTransformer and Eva"),
        ("beit_base_patch16_224", VIT, dict(window_size=4), "window_size takes timm's VisionTransformer and Eva"),
        ("vit_dpwee_patch16_reg1_gap_256", dict(depth=2), {}, "one layer with the MLP's last"),
    ],
)
def test_what_gives_no_such_maps_is_refused_with_the_reason(model_name, kwargs, options, message):
    with pytest.raises(ValueError, match=message):
        make(model_name, kwargs, **options)


def test_attentions_in_the_config():
    qualified = "timm.models.vision_transformer.DiffParallelScalingBlock"
    backbone = make("vit_dpwee_patch16_reg1_gap_256", dict(depth=2), apla=dict(r=2, attentions={qualified: "out_proj"}))
    assert [p.name for p in backbone.report.projections] == ["blocks.0.out_proj", "blocks.1.out_proj"]


def test_windows_of_hybrids():
    backbone = make("vit_tiny_r_s16_p8_224", dict(depth=2), window_size=9)
    plain = make("vit_tiny_r_s16_p8_224", dict(depth=2))
    plain.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 100, 130)
    with torch.no_grad():
        for got, want in zip(backbone(x), plain(x), strict=True):
            torch.testing.assert_close(got, want)
