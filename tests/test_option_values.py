"""What is typed after --cfg-options arrives: names and paths as they are, the rest as mmengine reads it."""

import argparse
import json
import re
import shlex
import string
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import DictAction

from apla_mm.option_values import parse_value, pasted, value_text
from apla_mm.options.command_line import add_common_arguments

PRINTABLE = st.characters(exclude_categories=("C", "Zl", "Zp"))
TEXT = st.text(st.one_of(PRINTABLE, st.sampled_from(" ()[]{}='\"\\,;:$!*?~#-_./0123456789")), min_size=1, max_size=12)
NAME = TEXT.filter(lambda name: "," not in name and name == name.strip() and name[0] not in "'\"[(")
PATHS = (
    *("data_root", "work_dir", "load_from", "model.backbone.pretrained", "model.backbone.init_cfg.checkpoint"),
    *("train_dataloader.dataset.ann_file", "val_dataloader.dataset.data_prefix.img_path", "model.backbone.model_name"),
    *("val_evaluator.ann_file", "test_evaluator.0.output_dir", "val_evaluator.outfile_prefix", "experiment_name"),
    *("visualizer.vis_backends.0.save_dir", "visualizer.name", "visualizer.vis_backends.0.init_kwargs.project"),
    *(
        "test_dataloader.dataset.img_suffix",
        "test_dataloader.dataset.data_prefix.img",
        "default_hooks.checkpoint.out_dir",
    ),
)


def options_of(*argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    return parser.parse_args(["--cfg-options", *argv]).cfg_options


def mmengine_options(*argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    return parser.parse_args(["--cfg-options", *argv]).cfg_options


@given(key=st.sampled_from(PATHS), text=TEXT.filter(lambda text: text.lower() not in ("none", "true", "false")))
@settings(max_examples=400, deadline=None)
def test_paths_and_names_are_taken_as_they_are_typed(key: str, text: str) -> None:
    assert options_of("a=1", f"{key}={text}") == {"a": 1, key: text}


@given(names=st.lists(NAME, min_size=2, max_size=5))
@settings(max_examples=400, deadline=None)
def test_class_names_are_split_at_commas_and_else_as_they_are_typed(names: list[str]) -> None:
    for key in ("classes", "train_dataloader.dataset.metainfo.classes", "classes"):
        assert options_of(f"{key}={','.join(names)}") == {key: names}
        assert options_of(f"{key}={', '.join(names)}") == {key: names}


@given(names=st.lists(TEXT, min_size=1, max_size=5))
@settings(max_examples=400, deadline=None)
def test_any_names_can_be_listed_in_quotes(names: list[str]) -> None:
    for listed in (json.dumps(names), json.dumps(names, ensure_ascii=False), repr(names)):
        assert options_of(f"classes={listed}") == {"classes": names}
        if len(names) > 1:
            assert options_of(f"classes={listed[1:-1]}") == {"classes": names}
    assert options_of(*shlex.split(pasted({"classes": names}))[1:]) == {"classes": names}


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("cell (live),cell - dead", ["cell (live)", "cell - dead"]),
        ("1,2", ["1", "2"]),
        ("007,None,True", ["007", "None", "True"]),
        ("(a),(b)", ["(a)", "(b)"]),
        ("[a],[b]", ["[a]", "[b]"]),
        ("(a,b)", ["a", "b"]),
        ("[a, b c]", ["a", "b c"]),
        ("[1,2]", ["1", "2"]),
        ("a=b,c\\d,é", ["a=b", "c\\d", "é"]),
        ('"traffic light","dog"', ["traffic light", "dog"]),
        ("'traffic light','dog'", ["traffic light", "dog"]),
        ('["a, b","c"]', ["a, b", "c"]),
        ("['a, b', 'c']", ["a, b", "c"]),
        ("traffic light, stop sign", ["traffic light", "stop sign"]),
        ("it's,rock 'n' roll", ["it's", "rock 'n' roll"]),
        ("a,b,", ["a", "b"]),
        ("cell (a, b", ["cell (a", "b"]),
        ("cat", "cat"),
        ("(live)", "(live)"),
        ('["007"]', ["007"]),
        ("12", "12"),
        ('"cat"', "cat"),
    ],
)
def test_class_names(typed: str, names: Any) -> None:
    assert options_of(f"classes={typed}") == {"classes": names}


def test_one_class_of_a_data_set_is_a_list_unless_a_file_lists_them(tmp_path: Path) -> None:
    key = "val_dataloader.dataset.metainfo.classes"
    assert options_of(f"{key}=cat") == {key: ["cat"]}
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert options_of(f"{key}={tmp_path}/names.txt") == {key: f"{tmp_path}/names.txt"}


LITERAL = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.text(string.ascii_letters + "_", min_size=1, max_size=6),
)
NESTED = st.recursive(
    LITERAL, lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)), max_leaves=8
)


def typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ("[{}]" if isinstance(value, list) else "({})").format(",".join(map(typed, value)))
    return str(value)


@given(value=NESTED)
@settings(max_examples=400, deadline=None)
def test_other_values_are_what_mmengine_makes_of_them(value: Any) -> None:
    option = f"optim_wrapper.x.0.y={typed(value)}"
    expected = mmengine_options(option)
    assert repr(options_of(option)) == repr(expected)
    spaced = option.replace(",", ", ")
    assert repr(options_of(spaced)) == repr(expected)


@given(value=NESTED)
@settings(max_examples=400, deadline=None)
def test_any_value_can_be_written_as_an_option(value: Any) -> None:
    for key in ("a.b", "optim_wrapper.optimizer.lr"):
        try:
            option = f"{key}={value_text(key, value)}"
        except ValueError:
            assert isinstance(value, str)  # 'nan' or 'true' is read as something else
            continue
        assert repr(options_of(option)) == repr({key: value}) or list(value) == options_of(option)[key]


@pytest.mark.parametrize(
    "option",
    [
        *("a=1", "a=1.5", "a=1e-4", "a=-3", "a=True", "a=false", "a=None", "a=x", "a=", "a=1,2", "a=x,y", "a=(1,)"),
        *("a=[1]", "a=(1,2)", "a=[(1,2),(3,4)]", "a=()", "a=[]", "a=[[1,2],[x,y]]", "a=1,2,", "a=(x)", "a=x=y"),
        *("a='1,2'", 'a="[1,2]"', "a='x'", "a=[1,,2]", "a=inf", "a=0x10", "a=1_000"),
    ],
)
def test_as_mmengine_reads_it(option: str) -> None:
    assert options_of(option) == mmengine_options(option)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("a=cell (live", "cell (live"),
        ("a=(live) cell", "(live) cell"),
        ("a= 3", 3),
        ("a=1 2", "1 2"),
        ("a=it's", "it's"),
        ("a=(1,2),(3,4)", [(1, 2), (3, 4)]),
        ("a=(traffic light, 1, 2.5)", ("traffic light", 1, 2.5)),
        ("a=['1','x, y']", ["1", "x, y"]),
    ],
)
def test_text_in_other_values_is_taken_as_it_is_typed(option: str, value: Any) -> None:
    assert options_of(option) == {"a": value}


@pytest.mark.parametrize("value", [None, True, False, "None of it", "weights (1).pth"])
def test_pretrained(value: Any) -> None:
    assert parse_value("model.backbone.pretrained", str(value)) == value


@pytest.mark.parametrize("argv", [["data"], ["data_root=/d/my", "data"], ["=x"]])
def test_option_without_a_key_or_a_value_is_an_error_that_says_how_to_quote(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(*argv)
    assert f"--cfg-options: '{argv[-1]}' is not KEY=VALUE; a value with spaces" in capsys.readouterr().err


def test_every_option_that_a_text_of_ours_prints_can_be_pasted() -> None:
    """Options written out in the sources; those made of values go through `pasted`, or are tested where they are."""
    found = 0
    for path in sorted((ROOT / "apla_mm").rglob("*.py")):
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text())  # strings in parts
        for option in re.findall(r"--cfg-options ([\w.]+=[\w.,/{}\"'-]*\w)", text):
            (argv,) = shlex.split(option)
            key, value = argv.split("=", 1)
            assert options_of(argv).keys() == {key}
            found += bool(value)
    assert found >= 3
