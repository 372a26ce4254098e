"""The folder that files are to be written to."""

import os
from pathlib import Path


def make_output_folder(folder: Path) -> str:
    """Make a folder, unless it is there, and look whether files can be written to it: before hours of work are lost.

    Args:
        folder: The folder.

    Returns:
        Why they cannot; empty if they can.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"'{folder}': {error.strerror}"
    return "" if os.access(folder, os.W_OK) else f"'{folder}' is not writable"
