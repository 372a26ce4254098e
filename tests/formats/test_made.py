from pathlib import Path

import numpy as np
from helpers.data_sets import write_scenes
from PIL import Image

from apla_mm.formats import find_data
from apla_mm.formats.made import Made


def test_files_are_written_aside_until_they_are_kept(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    for path in scenes.rglob("*.png"):  # label maps in colour are made ones of indices
        Image.fromarray(np.asarray(Image.open(path))[..., None].repeat(3, axis=2)).save(path)
    straight = find_data(scenes, "seg", tmp_path / "made")
    expected = {path.relative_to(tmp_path / "made"): path.read_bytes() for path in (tmp_path / "made").rglob("*.*")}
    (tmp_path / "made").rename(tmp_path / "before")
    made = Made(tmp_path / "made", tmp_path / "aside")
    assert find_data(scenes, "seg", made) == straight and not (tmp_path / "made").exists()
    made.keep()
    got = {path.relative_to(tmp_path / "made"): path.read_bytes() for path in (tmp_path / "made").rglob("*.*")}
    assert got == expected and len(got) == 7


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    def digest(aside: str, name: str, content: bytes, other: bytes = b"") -> str:
        (tmp_path / "other.json").write_bytes(other)
        made = Made(tmp_path / "made", tmp_path / aside)
        written = made.write(name, content)
        return made.digest([written, str(tmp_path / "other.json")])

    first = digest("a", "x.json", b"1")
    assert digest("b", "x.json", b"1") == first
    others = [digest("c", "y.json", b"1"), digest("d", "x.json", b"2"), digest("e", "x.json", b"1", b"3")]
    assert len({first, *others}) == 4
