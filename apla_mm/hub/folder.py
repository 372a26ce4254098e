"""A folder of a model for others."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..convert.publish import publish
from ..delta import load_delta
from ..delta.base_file import BASE_FILE, find_base
from ..delta.weights_file import Kind, kind_of
from ..loading.checkpoint_reader import read_checkpoint
from ..loading.delta_meta import scores_of
from .card import card


def write_folder(
    path: Path,
    out: Path,
    *,
    license: str,
    title: str | None = None,
    base_model: str | None = None,
    data: str | None = None,
    command: str | None = None,
    with_base: bool = True,
) -> Path:
    """Write a folder of a model, as a hub takes it: weights, ``config.py`` and a card.

    Args:
        path: A checkpoint or a delta.
        out: The folder, new.
        license: Of these weights, as a hub calls it, such as ``'apache-2.0'``.
        title: Of the model; the folder's name if None.
        base_model: What it was adapted from, as a hub calls it.
        data: What it was trained on, in words.
        command: That trained it.
        with_base: Whether a delta's base file goes along; its licence may not allow it.

    Returns:
        The folder. It is there whole, or not at all.

    Raises:
        FileExistsError: It is there already.
        ValueError: The file is none to publish, or holds no config.
        DeltaError: It is a delta, and damaged, or its base file was not found.
    """
    if out.exists():
        raise FileExistsError(f"'{out}' is there already: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as unfinished:
        folder = Path(unfinished) / "folder"
        folder.mkdir()
        file = publish(Path(path), folder / out.name)
        facts: dict[str, str] = {}
        if kind_of(path) is Kind.DELTA:
            header = load_delta(path).header
            config, metrics = header.config, header.metrics
            name: Any = header.extra.get(BASE_FILE)
            if header.r is not None:
                facts["channels of each W_O that train"] = str(header.r)
            facts["its base's fingerprint"] = header.fingerprint
            if isinstance(name, str) and with_base:
                shutil.copyfile(find_base(name, Path(path)), folder / name)
                facts["its base"] = f"{name}, in this folder"
            elif isinstance(name, str):
                facts["its base"] = f"{name}, made of the weights that config.py names: apla-mm make-base"
            if header.iteration is not None:
                facts["iterations"] = f"{header.iteration:,}"
            facts["versions"] = ", ".join(f"{name} {version}" for name, version in header.versions.items())
        else:
            checkpoint = read_checkpoint(str(path))
            config, metrics = str(checkpoint.get("meta", {}).get("cfg") or ""), scores_of(checkpoint)
        if not config:
            raise ValueError(f"'{path}' holds no config, without which nobody can use it")
        if command:
            facts["trained by"] = f"`{command}`"
        (folder / "config.py").write_text(config)
        text = card(
            title or out.name,
            config,
            license=license,
            size=file.stat().st_size,
            metrics=metrics,
            facts=facts,
            base_model=base_model,
            data=data,
            file=file.name,
        )
        (folder / "README.md").write_text(text)
        folder.rename(out)
    return out
