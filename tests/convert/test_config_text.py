"""Texts of configs, which may come from anyone."""

import json

import pytest

from apla_mm.convert.config_text import read_config, summary

CONFIG = """
custom_imports = dict(imports=['apla_mm'])
model = dict(
    backbone=dict(
        apla=dict(r=64, seed=5), model_name='vit_base_patch16_224', out_indices=(2, 5), type='APLAViT'),
    decode_head=dict(type='SETRUPHead'),
    type='EncoderDecoder')
optim_wrapper = dict(optimizer=dict(lr=-1e-3, betas=(0.9, 0.999)))
"""


def test_text_is_read():
    config = read_config(CONFIG)
    assert config.keys() == {"custom_imports", "model", "optim_wrapper"}
    assert config["optim_wrapper"] == dict(optimizer=dict(lr=-1e-3, betas=(0.9, 0.999)))
    assert config["model"]["backbone"]["apla"] == dict(r=64, seed=5)
    assert len(str(read_config("x = " + "[" * 90 + "]" * 90)["x"])) == 180
    assert read_config("x = {'a': 1, 2: 3, 'b': [None, True]}") == dict(x=dict(a=1, b=[None, True]))


def test_text_is_summed_up():
    assert summary(CONFIG) == "EncoderDecoder, backbone APLAViT vit_base_patch16_224, decode_head SETRUPHead"
    detector = "model = dict(type='FCOS', backbone=dict(depth=3), neck=dict(type='FPN'), bbox_head=dict(type='Head'))"
    assert summary(detector) == "FCOS, neck FPN, bbox_head Head"
    for text in ("", "x = 1", "model = 3", "model = dict()", "model = make()", "("):
        assert summary(text) == ""


def test_text_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    evil = f"x = __import__('pathlib').Path({str(mark)!r}).touch()\nmodel = dict(backbone=dict(apla=dict(r=4)))"
    assert read_config(evil) == dict(x=None, model=dict(backbone=dict(apla=dict(r=4)))) and not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "x = (",
        "\0",
        "x = " + "(" * 5000 + ")" * 5000,
        "x = " + "-" * 100000 + "1",
        "x = 1\n" * 2**18,  # takes long
    ],
    ids=["syntax", "null", "parentheses", "signs", "long"],
)
def test_text_that_cannot_be_parsed_gives_nothing(text):
    assert read_config(text) == {} and summary(text) == ""


@pytest.mark.parametrize("blocks", ["range(6, 12)", "{1, 2}", "[1, last]", "b'all'", "[i for i in range(3)]", "1j"])
def test_of_what_only_running_gives_nothing_is_read(blocks):
    config = read_config(f"model = dict(backbone=dict(apla=dict(r=8, blocks={blocks})))")
    settings = config["model"]["backbone"]["apla"]
    assert settings["r"] == 8 and settings["blocks"] in (None, [1, None])
    assert json.loads(json.dumps(config)) == config
