"""The commands of ``apla-mm``, one a module: ``main(argv)`` parses arguments and makes one call.

``apla-mm NAME`` and ``python -m apla_mm NAME`` are the same; ``python -m apla_mm.commands.NAME`` is too, and shows
tracebacks of errors that those tell in a line. :mod:`apla_mm.__main__` has the list.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from ..output_folder import make_output_folder
from ..text import said_by_tool


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command, which calls it ``apla-mm NAME`` however it was started.

    Args:
        name: Of the command.
        description: Its module's docstring, which is printed as it stands.
    """
    return argparse.ArgumentParser(
        f"apla-mm {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def file_to_write(text: str) -> Path:
    """Type of an argument that names a file for figures; makes its folder, before hours of work are lost."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a folder: name a file")
    if problem := make_output_folder(path.parent):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be written: {problem}")
    return path


def timm_model(text: str) -> str:
    """Type of an argument that names a model of timm."""
    import timm

    if ":" in text or timm.is_model(text):  # hf-hub:... is asked for when it is built
        return text
    near = get_close_matches(text, timm.list_models(), n=3)
    meant = f"near to it are {', '.join(near)}" if near else "timm.list_models() lists all"
    raise argparse.ArgumentTypeError(f"timm {timm.__version__} has no model '{text}'; {meant}")


def at_least_one(text: str) -> int:
    """Type of an argument that counts something, or is a size."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


@contextmanager
def errors_in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """End the process with 1 and a line on stderr where an error of these kinds would print a traceback."""
    try:
        yield
    except BrokenPipeError:  # of what is printed, which nobody reads
        raise
    except kinds as error:
        text: object = error
        if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | Path):
            text = f"'{error.filename}': {error.strerror}"  # without the number
        raise SystemExit(f"error: {said_by_tool(text)}") from error
