"""Files that may be meant where one is missing."""

import unicodedata
from pathlib import Path

#: what the decoders of images read, in lower case
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm", ".pbm", ".gif")
)


def hint_at(path: str, key: str, image: str) -> str:
    """What to do about a missing file, if one with nearly its name exists; else nothing.

    Args:
        path: The missing file.
        key: The key of the sample that names it.
        image: The sample's image, which is no label map.
    """
    wanted = Path(path)
    if wanted.is_symlink():
        return f"; it is a link to '{wanted.readlink()}', which does not exist"
    if "\N{BYTE ORDER MARK}" in path:
        return "; its name starts with a byte order mark: save the list of samples as UTF-8 without BOM"
    if "\\" in path and Path(path.replace("\\", "/")).is_file():
        return "; there is one with / in place of \\: replace them in the annotation file"
    if Path(path.rpartition(".")[0]).is_file():
        return "; there is one without the second suffix: leave the suffix out of the list of samples"
    if not wanted.parent.is_dir():
        return ""
    suffix = dict(img_path="img_suffix", seg_map_path="seg_map_suffix").get(key, "")
    for other in sorted({*wanted.parent.iterdir()} - {Path(image)}):
        if _plain(other.name) == _plain(wanted.name) or (
            other.stem == wanted.stem and other.suffix.lower() in IMAGE_SUFFIXES
        ):
            cure = f"set {suffix}, or rename" if suffix and other.suffix != wanted.suffix else "rename one"
            return f"; there is '{other.name}': {cure}"
    return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()
