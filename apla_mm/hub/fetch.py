"""A model's folder, out of a hub or of the file system."""

import re
from pathlib import Path

SCHEME = "hf://"
_NAME = re.compile(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


def fetch(name: str) -> Path:
    """The folder of a model of the Hugging Face hub: from ``huggingface_hub``'s cache, or downloaded.

    Args:
        name: ``hf://user/name``, or ``hf://user/name@revision``.

    Raises:
        ValueError: The name is none, or ``huggingface_hub`` is not installed.
        FileNotFoundError: There is no such model, or no network and it is not in the cache.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"'{name}' must be {SCHEME}user/name, or {SCHEME}user/name@revision")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(f"'{name}' needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(found[1], revision=found[2]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"'{name}' could not be had: {error}") from error


def weights_in(folder: Path) -> Path:
    """The one file of weights in a model's folder, beside which its base may lie.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    files = sorted([*folder.glob("*.pth"), *folder.glob("*.safetensors")])
    found = [file for file in files if not file.name.startswith("base-")]
    if not found:
        raise FileNotFoundError(f"'{folder}' holds no .pth and no .safetensors file")
    if len(found) > 1:
        raise ValueError(f"'{folder}' holds several files of weights, {', '.join(f.name for f in found)}: name one")
    return found[0]
