"""The commands of ``apla-mm``, one a module: ``main(argv)`` parses arguments and makes one call.

``apla-mm NAME`` and ``python -m apla_mm NAME`` are the same; ``python -m apla_mm.commands.NAME`` is too, and shows
tracebacks of errors that those tell in a line. :mod:`apla_mm.__main__` has the list.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def errors_in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """End the process with 1 and a line on stderr where an error of these kinds would print a traceback."""
    try:
        yield
    except BrokenPipeError:  # of what is printed, which nobody reads
        raise
    except kinds as error:
        raise SystemExit(f"error: {said_by_tool(error)}") from error
