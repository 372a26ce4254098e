import argparse
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.tools import call_tool, read_config

from apla_mm.option_values import parse_value
from apla_mm.options.command_line import add_cfg_options

CONFIG = ROOT / "configs/seg/apla_vitb_custom.py"


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("max_iter=5", "did you mean max_iters"),
        ("data_rot=/d", "did you mean data_root"),
        ("optim_wraper.optimizer.lr=1", "did you mean optim_wrapper"),
        ("modl.backbone.frozen=True", "did you mean model"),
        ("zzz=1", "the config has no such setting"),
    ],
)
def test_options_that_nothing_reads_are_refused(option: str, meant: str) -> None:
    key = option.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^option '{key}': nothing reads '{key.partition('.')[0]}'.*{meant}"):
        read_config(CONFIG, option)


@pytest.mark.parametrize(
    "option",
    [
        "log_level=DEBUG",
        "resume=True",
        "auto_scale_lr.enable=True",
        "find_unused_parameters=True",
        "custom_imports.imports=['math']",
        "model_wrapper_cfg.broadcast_buffers=True",
        "experiment_name=one",
        "vis_backends=TensorboardVisBackend",
    ],
)
def test_what_a_runner_reads_may_be_given_though_the_config_has_it_not(option: str) -> None:
    key, _, text = option.partition("=")
    node = read_config(CONFIG, option)
    for step in key.split("."):
        node = node[step]
    assert node == parse_value(key, text)


def test_what_the_config_file_has_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(f"_base_ = {str(CONFIG)!r}\nof_my_hook = 1\n")
    assert read_config(path, "of_my_hook=2").of_my_hook == 2


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.auxiliary_head.9.channels=3", r"'model\.auxiliary_head' is a list of 3, whose items"),
        ("model.auxiliary_head.first=3", r"'model\.auxiliary_head' is a list of 3, whose items"),
        ("train_dataloader.batch_size.x=3", r"'train_dataloader\.batch_size' is \d+, which holds no settings"),
    ],
)
def test_options_without_a_place_are_refused_by_their_key(option: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^option '{option.partition('=')[0]}' has no place in the config: {told}"):
        read_config(CONFIG, "log_level=DEBUG", option)


@pytest.mark.parametrize("option", ["=3", ".=3", "model.=3", "model..x=3", "model"])
def test_keys_with_an_empty_step_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--cfg-options", option])
    assert f"'{option}' is not KEY=VALUE" in capsys.readouterr().err


def test_make_base_takes_the_options_that_train_takes(tmp_path: Path) -> None:
    delta = tmp_path / "no.safetensors"  # which is looked for once the options were taken
    tool = ROOT / "tools/model_converters/make_base.py"
    for option, told in (
        ("max_iter=5", "nothing reads 'max_iter'"),
        ("crop_size=x", "crop_size='x' must be"),
        ("method=lor", "there is no method 'lor'"),
        ("crop_size=64", "it cannot be opened"),
    ):
        with pytest.raises(SystemExit, match=told):
            call_tool(tool, CONFIG, delta, "--cfg-options", option)
