"""apla-mm compare as users call it: real trials in processes of their own, killed and begun again."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from compare.probes.test_probe import write_classes
from helpers import ROOT
from helpers.processes import run, started
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from apla_mm.commands import compare

pytestmark = pytest.mark.slow
TOOL, FORGETTING = ROOT / "tools/compare.py", ROOT / "tools/analysis_tools/forgetting.py"


@pytest.fixture
def config(segmentation_config: Config, tmp_path: Path) -> Path:
    backbone = {k: v for k, v in segmentation_config.model.backbone.items() if k != "apla"}
    with DefaultScope.overwrite_default_scope("mmseg"):
        vit = MODELS.build(backbone).vit
    torch.save(vit.state_dict(), tmp_path / "base.pth")
    segmentation_config.model.backbone.pretrained = str(tmp_path / "base.pth")
    segmentation_config.dump(str(tmp_path / "config.py"))
    return tmp_path / "config.py"


def test_killed_it_goes_on_and_more_can_be_asked_for(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [TOOL, config, "--head-lr", 1e-3, "--trials", 2, "--metric", "mIoU", "--work-dir", out]
    command += ["--rates", "apla:r=4=1e-4,1e-3", "--methods", "apla:r=4"]
    first = out / "search/apla_r=4/fraction1/lr0.0001_head0.001_seed0/trained.json"
    with started(*command, "--seeds", 1, log=tmp_path / "log", until=r"lr0\.0001_head0\.001_seed0: mIoU") as process:
        os.kill(process.pid, signal.SIGKILL)  # and not the trial that may have begun: it is waited for
        process.wait()
    before = first.stat().st_mtime_ns
    run(*command, "--seeds", 2)
    assert first.stat().st_mtime_ns == before
    assert len(list(out.glob("search/*/*/*/trained.json"))) == 2
    assert len(list(out.glob("final/*/*/*/scored.json"))) == 2
    report = (out / "report.md").read_text()
    scores = [json.loads(file.read_text())["mIoU"] for file in out.glob("final/*/*/*/scored.json")]
    assert f"{sum(scores) / 2:.4g}" in report and "| apla:r=4 |    2 |" in report
    assert "base64" in (out / "report.html").read_text()
    assert not list(out.glob("search/*/*/*/run/*.pth"))
    other = run(*command, "--seeds", 2, "--held-out", 0.5, returncode=1)
    assert "comparison with other settings (held_out)" in other.output
    forgotten = run(FORGETTING, out, write_classes(tmp_path / "probe"))
    assert "| apla:r=4 " in forgotten.output and "CKA" in (out / "forgetting_probe.md").read_text()
    nothing = run(FORGETTING, out, tmp_path / "nowhere", returncode=1)
    assert "must have a folder for each of two or more classes" in nothing.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "apla:r=4", "nonsense"], "nonsense"),
        (["--methods", "full", "full"], "names one twice"),
        (["--methods", "full", "--rates", "lora=1e-3,1e-4"], "names lora, which --methods does not"),
        (["--methods", "full", "--rates", "full=a,b"], "write METHOD=RATE,RATE,RATE"),
        (["--methods", "full", "--rates", "full=nan"], "write METHOD=RATE,RATE,RATE"),
        (["--methods", "full", "--held-out", "1.5"], "--held-out must be between 0 and 1"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_trial(
    config: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(TOOL, config, *arguments, "--metric", "mIoU", "--work-dir", tmp_path / "out", returncode=None)
    assert done.returncode != 0 and message in done.output
    assert not list(tmp_path.glob("out/search/*"))


def test_without_a_work_dir_it_lies_where_the_help_says(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def place(folder: Path, *_: object) -> None:
        raise ValueError(folder)

    monkeypatch.setattr(compare, "Comparison", place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        compare.main([str(config), "--methods", "apla:r=4", "--metric", "mIoU"])
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    said = re.search(r"checkpoints \(default: (\S+) NAME\)", " ".join(capsys.readouterr().out.split()))
    assert said is not None
    assert str(ended.value) == str(tmp_path / said[1].replace("CONFIG'S", config.stem))
