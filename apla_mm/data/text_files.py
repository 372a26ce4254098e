"""Lists of samples and annotation files, decoded as those who read them later do."""

import io
import json
from typing import Any

from mmengine.fileio import get

from .reading import DataError


def decoded_json(path: str, backend_args: Any = None) -> Any:
    """What a JSON file holds, if pycocotools can read it, which opens it as text.

    Args:
        path: The file.
        backend_args: Where it is kept, as in mmengine's data sets.

    Raises:
        DataError: It cannot.
    """
    try:
        content = get(path, backend_args=backend_args)
        problem = _encoding_problem(content, json.detect_encoding(content))
        if not problem:
            return json.load(io.TextIOWrapper(io.BytesIO(content)))
    except UnicodeDecodeError as error:
        problem = f"it is no {error.encoding.upper()}: {error.reason} in place {error.start:,}"
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the annotation file '{path}' cannot be read: {error}; expected JSON") from error
    raise DataError(
        f"the annotation file '{path}' cannot be read: {problem}; expected JSON in UTF-8 without a byte order mark, as "
        "mmdet reads it: save it so"
    )


def check_list(path: str, suffix: str) -> None:
    """Check that a list of samples, one a line, is one as mmseg reads it.

    Args:
        path: The file.
        suffix: What mmseg appends to each line for an image's name.

    Raises:
        DataError: It is none.
    """
    cure = "save it as UTF-8 without a byte order mark"
    try:
        with open(path, "rb") as file:
            content = file.read()
        problem = _encoding_problem(content, json.detect_encoding(content))
        # lines end as mmengine's list_from_file sees them
        names = [] if problem else [line.strip() for line in io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")]
    except UnicodeDecodeError as error:
        problem = f"it is no UTF-8: {error.reason} in place {error.start:,}"
    except OSError as error:
        raise DataError(f"ann_file '{path}' cannot be read: {error}") from error
    if problem:
        raise DataError(f"ann_file '{path}' cannot be read: {problem}; {cure}")
    if not any(names):
        raise DataError(f"ann_file '{path}' lists no samples: expected one in each line, without '{suffix}'")
    if "" in names:
        raise DataError(
            f"ann_file '{path}': line {names.index('') + 1} of {len(names)} is empty, for which mmseg would look for "
            f"an image '{suffix}': remove it"
        )


def _encoding_problem(content: bytes, detected: str) -> str:
    if content.startswith(b"\x1f\x8b"):
        return "it is compressed by gzip"
    if content.startswith(b"PK\x03\x04"):
        return "it is a zip archive"
    if detected == "utf-8-sig":
        return "it starts with a byte order mark (UTF-8 with BOM)"
    return "" if detected == "utf-8" else f"it is in {detected.upper()}"
