"""The command apla-mm: what it lists, what it runs, and what it loads for that."""

import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.processes import run, run_python
from safetensors.torch import save_file

import apla_mm.commands
from apla_mm.__main__ import COMMANDS, NAMES, main

#: of a clone -> command
TOOLS = {
    "extract_delta": "extract",
    "merge_delta": "merge",
    "sweep_configs": "sweep",
}


def test_every_command_is_listed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    modules = {module.name for module in pkgutil.iter_modules(apla_mm.commands.__path__)}
    assert {name.replace("-", "_") for name in NAMES} == modules and len(NAMES) == len(set(NAMES))
    main(["--help"])
    listed = dict(re.findall(r"^  ([a-z-]+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert listed == {name: line for group in COMMANDS.values() for name, line in group.items()}


def test_help_is_given_without_torch_and_openmmlab() -> None:
    code = """
        import sys
        from apla_mm.__main__ import main
        main([])
        main(["--version"])
        main(["configs", "apla_vitb_ade"])
        others = ("torch", "mmengine", "mmcv", "mmseg", "mmdet", "timm", "numpy", "safetensors")
        print(sorted(sys.modules.keys() & set(others)))
    """
    *_, version, config, loaded = run_python(code).stdout.splitlines()
    assert (version, config) == (f"apla_mm {apla_mm.__version__}", "apla_mm::seg/apla_vitb_ade.py")
    assert loaded == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_a_command_prints_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    said = capsys.readouterr().out
    module = sys.modules[f"apla_mm.commands.{name.replace('-', '_')}"]
    assert ended.value.code == 0 and re.search(rf"^usage: apla-mm {name} ", said, re.MULTILINE)
    assert module.__doc__ is not None and module.__doc__.splitlines()[0] in said


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "did you mean train"),
        ("extract_delta", "did you mean extract"),
        ("import_apla", "did you mean import-apla"),
        ("zzz", "there is no command 'zzz'; apla-mm --help lists all"),
    ],
)
def test_a_mistyped_command_ends_with_2_and_a_suggestion(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([typed])
    assert ended.value.code == 2 and meant in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [("mmengine", "train", "mm"), ("sklearn", "forgetting", "compare"), ("uvicorn", "serve", "serve")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(missing: str, command: str, extra: str) -> None:
    code = f"""
        import sys

        class Without:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, path=None, target=None):
                return None if name.partition(".")[0] == {missing!r} else self.finder.find_spec(name, path, target)

        sys.meta_path[:] = map(Without, sys.meta_path)
        from apla_mm.__main__ import main
        main([{command!r}, "x"])
    """
    done = run_python(code, returncode=1)
    assert done.stderr.splitlines()[-1].startswith(f"apla-mm {command} needs {missing}, which is not installed here")
    assert f"'apla_mm[{extra}]'" in done.stderr and "Traceback" not in done.stderr


def test_as_a_module_it_ends_as_the_command_does() -> None:
    done = run(sys.executable, "-m", "apla_mm", "configs", "nothing", returncode=1)
    assert (done.stdout, done.stderr) == ("", "no config's name has 'nothing' in it; apla-mm configs lists all\n")


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").rglob("*.py")), ids=lambda path: path.stem)
def test_tools_of_a_clone_are_the_commands(tool: Path) -> None:
    name = TOOLS.get(tool.stem, tool.stem.replace("_", "-"))
    assert name in NAMES
    found = runpy.run_path(str(tool), run_name="imported")["main"]
    assert found is sys.modules[f"apla_mm.commands.{name.replace('-', '_')}"].main


def told_of(code: str, returncode: int = 1) -> str:
    """What apla-mm says on stderr where a command does this."""
    program = f"""
        import sys, types

        def main(argv):
            {code}

        sys.modules["apla_mm.commands.configs"] = types.SimpleNamespace(main=main)
        from apla_mm.__main__ import main as run
        run(["configs"])
    """
    return run_python(program, returncode=returncode).stderr


def test_what_this_package_says_of_a_mistake_is_a_line() -> None:
    code = "from apla_mm.config_files import find_config; find_config('zzz.py')"
    assert told_of(code) == "error: there is no config 'zzz.py'; apla-mm configs lists those of apla_mm\n"


def test_a_file_that_the_system_refuses_is_a_line() -> None:
    assert told_of("open('/dev/null/x')") == "error: '/dev/null/x': Not a directory\n"


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('a fault of other code')",
        "int('a fault of other code')",
        "from apla_mm.text import table; table(['a fault of other code'], [['x', 'y']])",
    ],
)
def test_faults_of_code_keep_their_traceback(code: str) -> None:
    assert "Traceback" in told_of(code)


def test_a_part_of_a_config_that_is_called_wrongly_is_a_line() -> None:
    built = "from mmengine.registry import HOOKS; HOOKS.build(dict(type='{}', inteval=3))"
    assert (
        told_of(built.format("IterTimerHook"))
        .splitlines()[-1]
        .startswith("error: the config, or an option for it, is wrong: ")
    )
    told = told_of(built.format("NoSuchHook"))
    assert "NoSuchHook is not in the mmengine::hook registry" in told and "Traceback" not in told


def test_an_interruption_ends_with_130() -> None:
    assert told_of("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 130) == "interrupted\n"


@pytest.mark.parametrize("arguments", [["configs"], ["info", "FILE"], ["--help"]])
def test_nothing_is_said_where_nobody_reads_what_is_printed(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(1)}, file)
    command = [sys.executable, "-m", "apla_mm", *(str(file) if one == "FILE" else one for one in arguments)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=290, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
