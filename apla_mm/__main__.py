"""``apla-mm COMMAND``, and the same as ``python -m apla_mm COMMAND``."""

import linecache
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any

from . import __version__
from .text import said_by_tool

#: what they are for -> command -> what it does; its module in apla_mm.commands has _ for -
COMMANDS = {
    "train and test": {
        "train": "train a segmentor, detector or classifier",
        "test": "test one, or predict for a folder of images",
        "check": "see whether a config will train here, and what it will take",
        "export": "write a model as ONNX, TorchScript or a program of torch.export",
        "serve": "serve a folder of deltas by HTTP, on one base in memory",
        "configs": "list the configs that come with the package",
    },
    "compare": {
        "compare": "compare tuning methods on your data, each at its own best learning rate",
        "forgetting": "measure what the methods of a comparison made a backbone forget",
        "knn": "how well a backbone's features tell classes as they are",
    },
    "files of weights": {
        "info": "say what checkpoints, deltas and base files hold",
        "extract": "make a delta of a full checkpoint and its base",
        "merge": "make a full checkpoint of a delta and its base",
        "make-base": "make a delta's base file from the weights that its config names",
        "publish": "write a checkpoint or a delta for others",
        "card": "write a folder of one that a hub takes, with a card",
        "import-apla": "convert a checkpoint of the APLA authors' code",
        "import-eomt": "convert a published checkpoint of EoMT",
    },
    "data": {
        "make-panoptic": "make panoptic files of annotated objects and of label maps",
    },
    "costs": {
        "benchmark": "memory, arithmetic and time of a training step, by method; the largest batch that fits",
        "traffic": "what the processes of a job send one another in a training step",
        "delta-costs": "sizes and times of deltas",
        "serve-costs": "requests a second, latency and memory of what serve serves",
        "mask-costs": "what label masks cost while losses are computed",
        "sweep": "which transformers of mmseg, mmdet, mmpretrain and timm can be adapted",
    },
    "the installation": {
        "check-env": "import what is needed and print the versions",
        "repair-torchvision": "make torchvision importable beside a torch without CUDA",
    },
}
_EXTRAS = {
    "compare": ("sklearn", "submitit"),
    "serve": ("anyio", "fastapi", "fastapi_offline", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
}
NAMES = [name for group in COMMANDS.values() for name in group]


def usage() -> str:
    """All commands, a line each."""
    lines = ["usage: apla-mm COMMAND ..., apla-mm COMMAND --help, or apla-mm --version"]
    width = max(map(len, NAMES))
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:{width}}  {line}" for name, line in commands.items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name.

    What this package says of a mistake is one line, without a traceback; ``python -m apla_mm.commands.NAME`` shows it.
    All else that goes wrong keeps its traceback.

    Args:
        argv: The arguments; those of the process if None.

    Raises:
        SystemExit: There is no such command (2), a package that it needs is not installed, the command ends otherwise
            than well, it was interrupted (130), or nobody reads what it prints (141).
    """
    try:
        _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + 2) from None
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        raise SystemExit(128 + 13) from None
    except Exception as error:
        if (told := _sentence(error)) is None:
            raise
        raise SystemExit(f"error: {told}") from error


def _is_unread(stream: Any) -> bool:
    """Whether what is written to a stream has no reader, as in ``apla-mm ... | head``."""
    try:
        print(file=stream, flush=True)
    except BrokenPipeError:
        return True
    return False


def _sentence(error: BaseException) -> str | None:
    """What is wrong, where this package has said it, or a part of a config is called wrongly; else None."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    lines = [line for _, line in walk_tb(error.__traceback__)]
    file = frames[-1].f_code.co_filename
    raised = linecache.getline(file, lines[-1]).lstrip().startswith("raise ")
    said = raised and Path(file).is_relative_to(Path(__file__).parent)
    # mmengine's registry, and the constructors that it calls
    built = any(frame.f_code.co_name == "build_from_cfg" for frame in frames)
    of_registry = isinstance(error, KeyError) and " registry. " in str(error)
    of_call = isinstance(error, TypeError) and "__init__() " in str(error) and " argument" in str(error)
    if said and isinstance(error, OSError | RuntimeError | TypeError | ValueError):
        return said_by_tool(error)
    elif isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        return said_by_tool(f"'{error.filename}': {error.strerror}")
    elif built and (of_registry or of_call):
        return said_by_tool(f"the config, or an option for it, is wrong: {error.args[0]}")
    return None


def _run(argv: Sequence[str] | None) -> None:
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"apla_mm {__version__}")
    elif name in NAMES:
        _module_of(name).main(arguments)
    else:
        near = get_close_matches(name.replace("_", "-"), NAMES, n=2, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        print(f"apla-mm: there is no command '{name}'; {meant}apla-mm --help lists all", file=sys.stderr)
        raise SystemExit(2)


def _module_of(name: str) -> Any:
    try:
        return import_module(f"apla_mm.commands.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "apla_mm":
            raise
        extra = next((name for name, packages in _EXTRAS.items() if package in packages), "mm")
        raise SystemExit(
            f"apla-mm {name} needs {package}, which is not installed here: it comes with 'apla_mm[{extra}]', which "
            "the documentation has under Installation"
        ) from error


if __name__ == "__main__":
    main()
