"""The programs of documented commands: run, or parsed as far as they can be without running."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[3]
#: what --cfg-options of training are small by, whatever the page gives
SMALL = dict(max_iters=2, crop_size=64)
#: options of sbatch that this package's own texts use
SBATCH = {"partition", "time", "nodes", "ntasks-per-node", "gres", "cpus-per-task"}


class Parsed(BaseException):
    """Arguments were accepted; BaseException, since commands handle errors."""


def run_program(name: str, arguments: list[str]) -> None:
    """Run a program in this process.

    Args:
        name: Of a file in the folder of programs.
        arguments: Its arguments.

    Raises:
        SystemExit: It ends otherwise than well.
    """
    if name == "apla-mm":
        from apla_mm.__main__ import main

        main(small(arguments))
    elif name == "python" and arguments[0] == "-m":
        sys.argv = ["", *arguments[2:]]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif name == "python":
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).absolute().parent))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        raise SystemExit(f"{name} cannot be run here: the table of what is parsed alone has to have it")


def small(arguments: list[str]) -> list[str]:
    """Arguments of apla-mm with smaller values behind those that would make a run long."""
    named = {argument.partition("=")[0] for argument in arguments if "=" in argument}
    smaller = [f"{name}={value}" for name, value in SMALL.items() if name in named]
    return [*arguments, "--cfg-options", *smaller] if smaller and arguments[0] == "train" else arguments


def parse_program(name: str, arguments: list[str]) -> None:
    """See that a program would take its arguments.

    Raises:
        SystemExit: It would not.
    """
    arguments = [argument for argument in arguments if argument != "..."]
    PARSERS[name](arguments)


def _parse_apla_mm(arguments: list[str]) -> None:
    from apla_mm.__main__ import main

    _until_parsed(lambda: main(arguments))


def _until_parsed(call: Callable[[], Any]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any, **how: Any) -> None:
        parse(self, *given, **how)
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop):
        try:
            call()
        except Parsed:
            return
    raise SystemExit("it parsed no arguments")


def _parse_python(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "apla_mm"]:
        _parse_apla_mm(arguments[2:])
    elif arguments[:2] == ["-m", "torch.distributed.run"]:
        _parse_torchrun(arguments[2:])
    elif arguments[:2] == ["-m", "pytest"]:
        paths = [argument for argument in arguments[2:] if argument.endswith(".py")]
        missing = [path for path in paths if not (ROOT / path).is_file()]
        if missing or not paths:
            raise SystemExit(f"no tests: {missing or arguments}")
        from _pytest.config import get_config

        get_config()._parser.parse(arguments[2:])
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).absolute().parent))
        _until_parsed(lambda: runpy.run_path(arguments[0], run_name="__main__"))


def _parse_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    if parsed.module:
        _parse_python(["-m", parsed.training_script, *parsed.training_script_args])
    else:
        _parse_tool([parsed.training_script, *parsed.training_script_args])


def _parse_tool(arguments: list[str]) -> None:
    tool = Path(arguments[0])
    if not tool.is_file():
        raise SystemExit(f"there is no tool {tool}")
    _parse_apla_mm([tool.stem, *arguments[1:]])


def _parse_srun(arguments: list[str]) -> None:
    place = next(i for i, argument in enumerate(arguments) if argument.endswith(".py"))
    _parse_tool(arguments[place:])


def _parse_sbatch(arguments: list[str]) -> None:
    options = [argument for argument in arguments if argument.startswith("--")]
    unknown = [option for option in options if option.removeprefix("--").partition("=")[0] not in SBATCH]
    script, *rest = arguments[len(options) :]
    if unknown or not Path(script).is_file():
        raise SystemExit(f"sbatch: {unknown or script}")
    _parse_apla_mm(["train", *rest])


def _parse_make(arguments: list[str]) -> None:
    """What make would do; of what it would call, the commands are parsed too."""
    done = subprocess.run(
        ["/usr/bin/env", "make", "-n", *arguments], cwd=ROOT, env=_plain(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    for line in done.stdout.replace("\\\n", "").splitlines():
        _, called, after = line.partition(" -m apla_mm ")
        if called:
            _parse_apla_mm(shlex.split(after))


def _plain() -> dict[str, str]:
    """The variables without the folder of programs, which has a make of its own."""
    path = os.environ["PATH"].split(os.pathsep)
    return {**os.environ, "PATH": os.pathsep.join(path[1:])}


def _parse_pip(arguments: list[str]) -> None:
    from pip._internal.commands import create_command

    options, packages = create_command(arguments[0]).parse_args(arguments[1:])
    files = [Path(file) for file in getattr(options, "requirements", ())]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not (packages or files):
        raise SystemExit(f"pip: {missing or arguments}")


def _parse_curl(arguments: list[str]) -> None:
    """The request must be one that the server answers, for a file that is there."""
    import apla_mm.serve.app as app

    parser = argparse.ArgumentParser("curl")
    parser.add_argument("-F", "--form", action="append", default=[])
    parser.add_argument("url")
    args = parser.parse_args(arguments)
    routes = re.findall(r'@app\.\w+\("([^"{]*)', Path(app.__file__).read_text())
    path = urlsplit(args.url).path
    missing = [form for form in args.form if not Path(form.partition("=@")[2]).is_file()]
    if missing or not any(path == route or (route.endswith("/") and path.startswith(route)) for route in routes):
        raise SystemExit(f"curl: {missing or path}")


PARSERS: dict[str, Callable[[list[str]], None]] = {
    "apla-mm": _parse_apla_mm,
    "curl": _parse_curl,
    "make": _parse_make,
    "pip": _parse_pip,
    "python": _parse_python,
    "sbatch": _parse_sbatch,
    "srun": _parse_srun,
    "torchrun": _parse_torchrun,
}


def main(argv: Sequence[str]) -> None:
    """Run or parse, as the variable DOCUMENTATION_MODE says."""
    name, *arguments = argv
    (run_program if os.environ.get("DOCUMENTATION_MODE") == "run" else parse_program)(Path(name).name, arguments)
