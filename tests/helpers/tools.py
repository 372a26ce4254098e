"""Tools in this process, where a process of their own would take seconds to start."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope

from apla_mm.options.command_line import add_common_arguments, load_config

CONVERTERS = ROOT / "tools/model_converters"


def call_tool(path: Path, *arguments: object) -> None:
    """Runs a tool as the command would; raises SystemExit where that would end otherwise than well."""
    with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope(None):
        patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # tools set both: they are put back afterwards
        patch.setenv("LOCAL_RANK", "0")
        patch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")


def read_config(config: Path, *options: str) -> Config:
    """A config as tools read it with these options; the variables that they set are put back after each test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    add_common_arguments(parser)
    return load_config(parser.parse_args([str(config), *(("--cfg-options", *options) if options else ())]))
