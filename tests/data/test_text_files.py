import json
from pathlib import Path

import pytest

from apla_mm.data.reading import DataError
from apla_mm.data.text_files import check_list, decoded_json


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8-sig", "byte order mark"),
        ("utf-16", "in UTF-16"),
        ("utf-16-le", "in UTF-16-LE"),
        ("utf-32", "in UTF-32"),
        ("latin-1", "no UTF-8"),
    ],
)
def test_encoding_that_mmdet_cannot_read_is_named(tmp_path: Path, encoding: str, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(json.dumps(dict(name="Tür"), ensure_ascii=False).encode(encoding))
    with pytest.raises(ValueError), path.open() as file:  # as pycocotools opens it
        json.load(file)
    with pytest.raises(DataError, match=rf"^the annotation file '{path}' cannot be read: .*{said}.*UTF-8 without"):
        decoded_json(str(path))


@pytest.mark.parametrize(("magic", "said"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip")])
def test_archive_is_named(tmp_path: Path, magic: bytes, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(magic + b"rest")
    with pytest.raises(DataError, match=said):
        decoded_json(str(path))


def test_utf_8_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(' {"name": "Tür"}\r\n', encoding="utf-8")
    assert decoded_json(str(path)) == dict(name="Tür")


@pytest.mark.parametrize("content", [b"a\nb\n", b"a\r\nb\r\n", b"a\rb", "ü\n \u00e9 b\n".encode()])
def test_lists_that_mmseg_reads_are_in_order(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    check_list(str(path), ".jpg")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\n".encode("utf-8-sig"), "byte order mark"),
        ("a\n".encode("utf-16"), "in UTF-16"),
        ("ü\n".encode("latin-1"), "no UTF-8"),
        (b"", "lists no samples"),
        (b"\n \n", "lists no samples"),
        (b"a\n\nb\n", "line 2 of 3 is empty"),
        (b"a\n\n", "line 2 of 2 is empty"),
    ],
)
def test_list_that_mmseg_cannot_read_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^ann_file '{path}'.*{said}"):
        check_list(str(path), ".jpg")
