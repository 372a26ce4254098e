"""Files that do not predict, and configs of strangers, of which nothing is run."""

from pathlib import Path

import pytest
import torch

import apla_mm


def test_files_that_do_not_predict_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint or delta"):
        apla_mm.load(tmp_path / "no.pth")
    path = tmp_path / "a.pth"
    torch.save(dict(state_dict=dict(x=torch.zeros(1)), meta={}), path)
    with pytest.raises(ValueError, match="holds no config: name it by config="):
        apla_mm.load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model = dict(type='subprocess.Popen', args=['touch', '{mark}'])", "is code of its author's"),
        ("model = dict(type='EncoderDecoder', backbone=dict(type='os.system'))", "is code of its author's"),
        ("custom_imports = dict(imports=['evil'])\nmodel = dict(type='EncoderDecoder')", "imports evil"),
        ("default_scope = 'mmrotate'\nmodel = dict(type='X')", "scope 'mmrotate'"),
    ],
)
def test_a_config_in_a_file_runs_nothing_of_its_authors(tmp_path: Path, text: str, expected: str) -> None:
    mark = tmp_path / "mark"
    scope = "" if "default_scope" in text else "default_scope = 'mmseg'\n"
    meta = dict(cfg=scope + text.replace("{mark}", str(mark)))
    torch.save(dict(state_dict=dict(x=torch.zeros(1)), meta=meta), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=expected):
        apla_mm.load(tmp_path / "a.pth")
    assert not mark.exists()
