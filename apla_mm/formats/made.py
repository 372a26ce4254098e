"""The files that are made of data: lists of samples, annotations and label maps."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..delta.atomic_file import write_atomic


class Made:
    """Files that are made, for one folder.

    Args:
        into: The folder, of which lists and configs name the paths.
        aside: The folder that files are written into until :meth:`keep` moves them; None for ``into`` itself.

    Attributes:
        into: The folder, absolute.
    """

    def __init__(self, into: str | Path, aside: str | Path | None = None) -> None:
        self.into = Path(into).absolute()
        self._aside = self.into if aside is None else Path(aside).absolute()
        self._names: dict[str, None] = {}  # in the order in which they are to be moved

    def write(self, name: str, content: bytes) -> str:
        """Write a file.

        Args:
            name: Its path below the folder.
            content: What is in it.

        Returns:
            Its absolute path in ``into``.
        """
        write_atomic(content, self._aside / name)
        self._names[name] = None
        return str(self.into / name)

    def write_json(self, name: str, content: Any) -> str:
        """Write a JSON file; see :meth:`write`."""
        return self.write(name, json.dumps(content).encode())

    def now(self, path: str) -> str:
        """Where a file is now, of which :meth:`write` gave the path."""
        return str(self._aside / Path(path).relative_to(self.into))

    def digest(self, others: Iterable[str] = ()) -> str:
        """A digest of what was written, and of other files.

        Args:
            others: Absolute paths; those of what was written do not count twice.
        """
        files = {path: path for path in others}
        files |= {str(self.into / name): str(self._aside / name) for name in self._names}
        digest = hashlib.sha256()
        for name, path in sorted(files.items()):
            digest.update(f"{name}\n{hashlib.sha256(Path(path).read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def keep(self) -> None:
        """Move what was written into its folder, in the order of writing."""
        for name in self._names:
            target = self.into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._aside / name, target)
