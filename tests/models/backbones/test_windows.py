import pytest
import timm
import torch
from torch import Tensor, nn

from apla_mm.models import APLAViT
from apla_mm.models.backbones.windows import Windows

TINY = dict(embed_dim=32, depth=4, num_heads=2)
FAMILIES = [
    ("vit_tiny_patch16_224", TINY, 16),
    ("vit_small_patch14_reg4_dinov2", TINY, 14),
    ("eva02_tiny_patch14_224", {**TINY, "embed_dim": 64}, 14),
    ("vit_small_patch16_dinov3", {**TINY, "embed_dim": 64}, 16),
    ("vit_small_patch16_rope_mixed_224", {**TINY, "embed_dim": 64}, 16),
]
NO_PREFIX = dict(**TINY, class_token=False, global_pool="avg")


def make(model_name="vit_tiny_patch16_224", kwargs=TINY, patch=16, **options) -> APLAViT:
    return APLAViT(model_name, pretrained=False, img_size=4 * patch, model_kwargs=kwargs, **options).eval()


def same_window(grid: tuple[int, int], size: int, prefix: int) -> Tensor:
    """Which token sees which: those of its window, and the prefix tokens; these see everything."""
    rows, columns = torch.meshgrid(*(torch.arange(side) // size for side in grid), indexing="ij")
    window = (rows * 1000 + columns).flatten()
    sees = torch.ones(prefix + len(window), prefix + len(window), dtype=torch.bool)
    sees[prefix:, prefix:] = window[:, None] == window
    return sees


@pytest.mark.parametrize(("grid", "size"), [((4, 6), 2), ((5, 3), 2), ((3, 7), 4), ((2, 2), 5)])
@pytest.mark.parametrize("prefix", [0, 3])
def test_joining_undoes_splitting(grid: tuple[int, int], size: int, prefix: int) -> None:
    windows = Windows(grid, size, prefix)
    tokens = torch.randn(2, prefix + grid[0] * grid[1], 5)
    split = windows.split(tokens)
    assert split.shape == (2 * windows.count, prefix + size**2, 5)
    torch.testing.assert_close(windows.join(split), tokens)


def test_windows_are_pieces_of_the_image_in_reading_order() -> None:
    image = torch.arange(2 * 3 * 5).view(2, 3, 5)
    split = Windows((3, 5), 2).split(image.view(2, 15, 1)).view(2, 2, 3, 2, 2)
    padded = torch.zeros(2, 4, 6, dtype=image.dtype)
    padded[:, :3, :5] = image
    for i in range(2):
        for j in range(3):
            assert torch.equal(split[:, i, j], padded[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2])


def test_prefix_tokens_are_copied_and_averaged() -> None:
    windows = Windows((2, 4), 2, prefix=1)
    split = windows.split(torch.randn(1, 9, 3))
    assert torch.equal(split[0, 0], split[1, 0])
    split[1, 0] += 2
    torch.testing.assert_close(windows.join(split)[0, 0], split[0, 0] + 1)


@pytest.mark.parametrize("size", [(64, 64), (80, 48)])
def test_blocks_attend_in_windows_as_timm_does_under_a_mask(size: tuple[int, int]) -> None:
    backbone = make(kwargs=NO_PREFIX, out_indices=(0, 1, 3), norm=True, window_size=2, global_blocks=(1,))
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, dynamic_img_size=True, **NO_PREFIX)
    model.eval().load_state_dict(backbone.vit.state_dict())
    x = torch.randn(2, 3, *size)
    grid = (size[0] // 16, size[1] // 16)
    tokens = model._pos_embed(model.patch_embed(x))
    expected = []
    for i, block in enumerate(model.blocks):
        tokens = block(tokens, attn_mask=None if i == 1 else same_window(grid, 2, 0))
        expected.append(model.norm(tokens).transpose(1, 2).unflatten(2, grid))
    for got, i in zip(backbone(x), (0, 1, 3), strict=True):
        torch.testing.assert_close(got, expected[i])


@pytest.mark.parametrize(("model_name", "kwargs", "patch"), FAMILIES)
def test_patches_see_their_window_and_the_prefix(model_name: str, kwargs: dict, patch: int) -> None:
    backbone = make(model_name, kwargs, patch, out_indices=(0,), window_size=3)
    x = torch.randn(2, 3, 4 * patch, 5 * patch)
    with torch.no_grad():
        mask = same_window((4, 5), 3, backbone.vit.num_prefix_tokens)
        (expected,) = backbone.vit.forward_intermediates(
            x, indices=[0], intermediates_only=True, stop_early=True, attn_mask=mask
        )
        torch.testing.assert_close(backbone(x)[0], expected)


@pytest.mark.parametrize(("model_name", "kwargs", "patch"), FAMILIES)
@pytest.mark.parametrize("options", [dict(window_size=9), dict(window_size=2, global_blocks=range(4))])
def test_windows_that_hold_everything_change_nothing(model_name: str, kwargs: dict, patch: int, options: dict) -> None:
    backbone = make(model_name, kwargs, patch, out_indices=(1, 3), **options)
    plain = make(model_name, kwargs, patch, out_indices=(1, 3))
    plain.load_state_dict(backbone.state_dict(), strict=True)
    x = torch.randn(2, 3, 5 * patch - 3, 3 * patch)
    with torch.no_grad():
        for got, expected in zip(backbone(x), plain(x), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("model_name", "kwargs", "patch"), FAMILIES)
def test_each_image_of_a_batch_is_by_itself_and_trains_alike(model_name: str, kwargs: dict, patch: int) -> None:
    backbone = make(model_name, kwargs, patch, window_size=2, global_blocks=(1,), apla=dict(r=4))
    x = torch.randn(3, 3, 5 * patch, 3 * patch)
    together = backbone(x)[0]
    for i in range(3):
        torch.testing.assert_close(together[i], backbone(x[i : i + 1])[0][0], rtol=1e-4, atol=1e-5)
    together.square().sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert len(trained) == 2 * 4 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window_size=0), "window_size=0 must be"),
        (dict(window_size=2.5), r"window_size=2\.5 must be"),
        (dict(window_size=2, global_blocks=(1, 4)), r"global_blocks=\(1, 4\) must be blocks 0 to 3"),
        (dict(global_blocks=(1,)), "give window_size too"),
    ],
)
def test_windows_that_cannot_be_are_an_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_structure_does_not_change() -> None:
    def names(model: nn.Module) -> list[tuple[str, str]]:
        return [(name, type(module).__name__) for name, module in model.named_modules()]

    assert names(make(window_size=2)) == names(make())
