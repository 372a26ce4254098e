import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from apla_mm.data.synthetic_batch import synthetic_batch
from apla_mm.options.shared_options import apply_shared_options

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("classes", [["car"], ["car", "bus", "tram"]])
def test_boxes_are_of_classes_that_the_detector_has(classes):
    cfg = Config.fromfile(CONFIGS / "det/apla_vitb_custom.py")
    apply_shared_options(cfg, dict(crop_size=64, classes=classes))
    with DefaultScope.overwrite_default_scope("mmdet"):
        __import__("mmdet.models")
        head = MODELS.build(cfg.model.roi_head)
    model = torch.nn.Module()
    model.roi_head = head
    labels = torch.cat([sample.gt_instances.labels for sample in synthetic_batch(model, 64, 2)["data_samples"]])
    assert labels.unique().tolist() == list(range(len(classes)))[:2]


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        ("seg/segformer_mit-b0_apla_8xb2-160k_ade20k-512x512.py", {"decode.loss_ce", "decode.acc_seg"}),
        (
            "det/mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800.py",
            {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox", "loss_mask"},
        ),
    ],
)
def test_models_take_it_as_a_batch(config, losses):
    cfg = Config.fromfile(CONFIGS / config)
    apply_shared_options(cfg, dict(crop_size=64))
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        __import__(f"{cfg.default_scope}.models")
        model = MODELS.build(cfg.model).train()
        batch = synthetic_batch(model, 64, 2)
        assert [tuple(image.shape) for image in batch["inputs"]] == [(3, 64, 64)] * 2
        data = model.data_preprocessor(batch, training=True)
        assert data["inputs"].shape == (2, 3, 64, 64)
        loss, scalars = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert losses <= scalars.keys() and all(torch.isfinite(value) for value in scalars.values())
    assert all(scalars[name] > 0 for name in losses if "loss" in name)


def test_the_seed_draws_it():
    model = torch.nn.Module()
    model.decode_head = torch.nn.Module()
    model.num_classes = 5
    one, same, other = (synthetic_batch(model, 16, 2, seed) for seed in (1, 1, 2))
    for a, b, c in zip(one["data_samples"], same["data_samples"], other["data_samples"], strict=True):
        assert torch.equal(a.gt_sem_seg.data, b.gt_sem_seg.data)
        assert not torch.equal(a.gt_sem_seg.data, c.gt_sem_seg.data)
        assert a.gt_sem_seg.data.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(one["inputs"][1], same["inputs"][1]) and not torch.equal(one["inputs"][0], one["inputs"][1])
