"""What a file that is named for weights, and holds none, seems to be."""

import zipfile
from pathlib import Path

from ..text import printable

_MOST = 4096  # bytes that are looked at
_STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file: run 'git lfs pull' in the repository it is from"),
    (b"\x1f\x8b", "a compressed file: unpack it first"),
    (b"BZh", "a compressed file: unpack it first"),
    (b"\xfd7zXZ", "a compressed file: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: convert it to a checkpoint of torch first"),
    (b"\x93NUMPY", "an array of NumPy: save a state dict by torch.save"),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_AGAIN = "copy or download it again"


def fault_of(path: Path) -> str:
    """What speaks against a file being a checkpoint of torch: what it seems to be, and what to do about it.

    Args:
        path: The file, which is none of safetensors.

    Returns:
        Text; empty if nothing does, as far as its beginning and its size show.
    """
    with open(path, "rb") as file:
        start = file.read(_MOST)
    if not start:
        return f"it is empty: {_AGAIN}"
    if not start.strip(b"\0"):
        return f"it begins with nothing but zeros, as files do whose disk was full: {_AGAIN}"
    for beginning, seems in _STARTS:
        if start.startswith(beginning):
            return f"it seems to be {seems}"
    if start.lstrip().lower().startswith(_PAGES):
        return "it seems to be a web page, not the file that a link there leads to: download that"
    if start.startswith(b"PK\x03\x04"):
        return _fault_of_archive(path)
    text = start[:60].split(b"\n")[0]
    if all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 for byte in start):
        return f"it seems to be a text, which begins with '{printable(text.decode())}': name the file of weights"
    return ""


def is_npz(path: Path) -> bool:
    """Whether a file is an archive of NumPy's arrays."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    names = _names_in(path)
    return bool(names) and all(name.endswith(".npy") for name in names)


def _fault_of_archive(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"its end is missing: {_AGAIN}"
    names = _names_in(path)
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a TorchScript program, not a checkpoint: where it comes from, torch.save its state_dict()"
    if is_npz(path):
        return "it is an archive of NumPy's arrays, which APLAViT(pretrained=) alone reads, of Google's ViTs"
    if not any(name.endswith("data.pkl") for name in names):
        return f"it is an archive of other files, such as '{printable((names or ['none'])[0])}': unpack it first"
    return ""


def _names_in(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # a damaged archive fails in any way
        return []
