"""Forgetting: the base's features and those of final runs, of a comparison's folder written by hand."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from compare.probes.test_probe import write_classes
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from apla_mm.compare.comparison import Comparison
from apla_mm.compare.probes.forgetting import Forgetting, Probed, _base_of, final_runs, forgetting
from apla_mm.compare.probes.probe import probe_data
from apla_mm.compare.trials.study import Study
from apla_mm.compare.trials.trial import Trial
from apla_mm.options.method import take_method


@pytest.fixture
def folder(segmentation_config: Config, tmp_path: Path) -> Path:
    """Two final runs: one that changed nothing, and one whose last block's projection was lost."""

    def load(options: Mapping[str, Any]) -> Config:
        cfg = Config(segmentation_config.to_dict())
        take_method(cfg, options)
        return cfg

    init_default_scope("mmseg")
    plain = MODELS.build({k: v for k, v in segmentation_config.model.backbone.items() if k not in ("apla", "frozen")})
    plain.init_weights()
    torch.save(plain.vit.state_dict(), tmp_path / "base.pth")
    segmentation_config.model.backbone.pretrained = str(tmp_path / "base.pth")
    starts = {"apla:r=4": (1e-3,), "full": (1e-3,)}
    comparison = Comparison(tmp_path / "out", Study(("apla:r=4", "full"), head_lr=1e-3, starts=starts), load, "mIoU")
    for method in ("apla:r=4", "full"):
        trial = Trial("final", method, 1.0, 0, 1e-3, 1e-3)
        own = comparison.prepare(trial)
        state = {f"backbone.{name}": tensor.clone() for name, tensor in plain.state_dict().items()}
        if method == "full":
            for tensor in state.values():
                tensor.copy_(
                    torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) if tensor.ndim > 1 else tensor
                )
        (own / "run").mkdir()
        torch.save(dict(state_dict={**state, "decode_head.weight": torch.zeros(1)}), own / "run/iter_2.pth")
        (own / "run/last_checkpoint").write_text(str(own / "run/iter_2.pth"))
        (own / "scored.json").write_text(json.dumps(dict(mIoU=1.0)))
        assert json.loads((own / "trial.json").read_text()) == asdict(trial)
    comparison.keep_chosen()
    return tmp_path / "out"


def test_what_did_not_change_is_as_good_as_the_base(folder: Path, tmp_path: Path) -> None:
    data = probe_data(write_classes(tmp_path / "probe"))
    lines: list[str] = []
    found = forgetting(folder, data, tell=lines.append)
    (same,), (other,) = found.methods["apla:r=4", 1.0], found.methods["full", 1.0]
    assert same.scores == found.base and same.similarity == pytest.approx(1, abs=1e-6)
    assert other.similarity < 0.99
    assert len(lines) == 2 and all("CKA" in line for line in lines)


def test_runs_of_a_rate_that_is_no_longer_chosen_do_not_count(folder: Path) -> None:
    first, _ = (own for _, own in final_runs(folder))
    other = first.with_name("lr0.01_head0.001_seed0")
    shutil.copytree(first, other)
    (other / "trial.json").write_text(json.dumps(dict(json.loads((first / "trial.json").read_text()), lr=0.01)))
    assert [own for _, own in final_runs(folder) if own.parent == first.parent] == [first]
    (folder / "chosen.json").unlink()
    with pytest.raises(ValueError, match="no final run that has ended and is in the report"):
        list(final_runs(folder))


def test_random_weights_are_no_base(segmentation_config: Config, folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("final/*/*/*/config.py"):
        cfg = Config.fromfile(file)
        cfg.model.backbone.pretrained = False
        cfg.dump(str(file))
    with pytest.raises(ValueError, match=r"no weights for 'vit\..* no base that could have been forgotten"):
        forgetting(folder, probe_data(write_classes(tmp_path / "probe")))


def test_a_backbone_that_leaves_blocks_to_queries_gives_its_last_map(segmentation_config: Config, folder: Path) -> None:
    backbone = segmentation_config.model.backbone
    backbone.update(query_blocks=2, out_indices=(-1,), pretrained=str(folder.parent / "base.pth"))
    maps = _base_of(segmentation_config)(torch.zeros(1, 3, 32, 32))
    assert [each.shape for each in maps] == [(1, 16, 2, 2)]


def test_table_has_means_changes_and_deviations() -> None:
    runs = [Probed({"k-NN": score, "linear": 50.0}, cka) for score, cka in ((60.0, 0.9), (64.0, 0.8))]
    rows = Forgetting({"k-NN": 70.0, "linear": 50.0}, {("full", 0.5): runs}).as_table().splitlines()
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == ["the base", "", "", "70.0", "50.0", "1"]
    assert [cell.strip() for cell in rows[3].strip("|").split("|")] == [
        "full", "0.5", "2", "62.0 +- 2.8 (-8.0)", "50.0 +- 0.0 (+0.0)", "0.850 +- 0.071"
    ]  # fmt: skip


def test_a_folder_without_final_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no final run that has ended"):
        forgetting(tmp_path, probe_data(write_classes(tmp_path / "probe")))
