"""apla-mm train with method=, resumed, and apla-mm test on what it saved, as processes."""

from pathlib import Path

import pytest
from helpers.comparisons import assert_same, assert_same_checkpoint
from helpers.data_sets import write_photos
from helpers.processes import run
from helpers.small_run import CONFIG, OPTIONS, TEST, TRAIN, miou

from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow

OTHERS = [option for option in OPTIONS if ".apla." not in option]
LORA = "method=lora:r=4,layers=[qkv,fc1]"


def train(work: Path, *arguments: str, options: list[str]) -> str:
    return run(TRAIN, CONFIG, "--work-dir", work, *arguments, "--cfg-options", *OTHERS, *options).output


def test_lora_trains_resumes_to_the_bit_and_is_tested_as_a_plain_checkpoint(tmp_path: Path) -> None:
    data = f"data_root={write_photos(tmp_path / 'photos')}"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    output = train(whole, options=[data, LORA])
    assert "trained by LoRA(r=4" in output and "what trains:" in output
    (parts).mkdir()
    (parts / "iter_2.pth").write_bytes((whole / "iter_2.pth").read_bytes())
    train(parts, "--resume", str(parts / "iter_2.pth"), options=[data, LORA])
    assert_same_checkpoint(whole / "iter_4.pth", parts / "iter_4.pth", ("state_dict", "optimizer", "apla_mm_unmerged"))

    # the score of the validation in training, by a plain config
    plain = [data, "model.backbone.apla=None", "load_from=None"]
    tested = run(TEST, CONFIG, whole / "iter_4.pth", "--work-dir", tmp_path / "test", "--cfg-options", *OTHERS, *plain)
    each = 3 if "[3/3]" in tested.output else int(tested.output.rpartition("Iter(test) [")[2].partition("/")[0])
    assert miou(tested.output, each) == miou(output[output.index("what trains:") :], each)

    refused = run(TRAIN, CONFIG, "--work-dir", parts, "--resume", "--cfg-options", *OTHERS, data, "method=head",
                  returncode=None)  # fmt: skip
    assert refused.returncode and "custom_hooks" in refused.output
    state = read_checkpoint(whole / "iter_4.pth")["state_dict"]
    published = tmp_path / "plain.pth"
    run(TRAIN.parent / "model_converters/publish.py", whole / "iter_4.pth", published)
    (path,) = tmp_path.glob("plain*.pth")
    assert_same(read_checkpoint(path)["state_dict"], state)


def test_what_is_no_method_is_told_before_anything_is_built(tmp_path: Path) -> None:
    done = run(TRAIN, CONFIG, "--cfg-options", "method=lor", returncode=None, cwd=tmp_path)
    assert done.returncode and "there is no method 'lor'; there are full, head" in done.stderr
    assert not list(tmp_path.iterdir())
