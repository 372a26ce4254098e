"""Arguments that several commands take, before anything is loaded or run."""

from pathlib import Path

import pytest
from helpers import ROOT

from apla_mm.__main__ import main
from apla_mm.commands import errors_in_one_line

SEGMENTOR = str(ROOT / "configs/seg/apla_vitb_custom.py")
COMPARE = ["compare", SEGMENTOR, "--methods", "head"]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [["benchmark", "vit_tiny_patch16_224", "--count"], ["traffic", SEGMENTOR], ["delta-costs"], ["serve-costs", "."]],
)
def test_figures_are_written_where_they_can_be(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert f"'{tmp_path}' is a folder: name a file" in said([*arguments, "--json", str(tmp_path)], capsys)
    inside = str(tmp_path / "file/x.json")
    assert f"'{inside}' cannot be written: '{tmp_path}/file'" in said([*arguments, "--json", inside], capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["benchmark", "vit_tinny_patch16_224"], "has no model 'vit_tinny_patch16_224'; near to it are vit_tiny_p"),
        (["delta-costs", "--models", "zzz"], "has no model 'zzz'; timm.list_models() lists all"),
        (["benchmark", "vit_tiny_patch16_224", "--img-size", "0"], "--img-size: 0 must be 1 or more"),
        (["benchmark", "vit_tiny_patch16_224", "--batch-size", "-2"], "--batch-size: -2 must be 1 or more"),
        (["traffic", SEGMENTOR, "--img-size", "-5"], "--img-size: -5 must be 1 or more"),
        ([*COMPARE, "--fractions", "2"], "--fractions must be above 0 and at most 1"),
        ([*COMPARE, "--fractions", "nan"], "--fractions must be above 0 and at most 1"),
        ([*COMPARE, "--head-lr", "nan"], "--head-lr must be above 0"),
        ([*COMPARE, "--head-lr", "-1"], "--head-lr must be above 0"),
        (["make-panoptic", "a", "b", "--label-maps", "c", "--stuff", "sky=1", "sky=2"], "a name has one label alone"),
    ],
)
def test_what_means_nothing_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in said(arguments, capsys)


def test_a_benchmark_that_measured_nothing_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "vit_tiny_patch16_224", "--count", "--img-size", "32", "--r", "0", "--only", "APLA r=0,"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1 and "not measured: ValueError: r=0" in capsys.readouterr().out


def test_files_that_the_system_refuses_are_told_without_numbers(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"^error: '{tmp_path}': Is a directory$"), errors_in_one_line(OSError):
        tmp_path.read_bytes()


def test_an_unread_stdout_is_no_error_of_the_command() -> None:
    with pytest.raises(BrokenPipeError), errors_in_one_line(OSError):
        raise BrokenPipeError(32, "Broken pipe")
