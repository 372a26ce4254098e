"""A folder that has what the documentation's commands name, small."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import ROOT
from helpers.data_sets import edit_json, write_class_folders, write_coco, write_panoptic, write_scenes
from helpers.documentation.programs import PARSERS
from helpers.documentation.server import CLIENT
from helpers.documentation.small import VIT
from helpers.processes import ON_CPU, kill, wait_until
from helpers.small_configs import SIZES, shrink
from mmengine.config import Config

_SIZES = {
    **SIZES,
    "APLAViT": dict(model_kwargs=VIT, out_indices=(2, 5, 8, 11)),
    "VisionTransformer": dict(SIZES["VisionTransformer"], embed_dims=VIT["embed_dim"]),
    "SwinTransformer": dict(SIZES["SwinTransformer"], embed_dims=72),
}
_CONFIG = re.compile(r"\b(?:seg|det|cls)/[\w-]+\.py")
_CHECKPOINT = re.compile(r"work_dirs/[\w-]+/iter_\d+(?=(?:\.delta)?\.(?:pth|safetensors))")


class World:
    """What commands find: data, programs, and this package with small configs; and a folder to run in for each page.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._package, self._programs = root, root / "package", root / "programs"
        self.configs = self._package / "apla_mm/.mim/configs"
        self._write_package()
        self._write_data()

    def _write_package(self) -> None:
        """This package as it is, but for its configs, and what makes models small in every process."""
        self.configs.mkdir(parents=True)
        for path in (ROOT / "apla_mm").iterdir():
            if path.name != ".mim":
                (self._package / "apla_mm" / path.name).symlink_to(path)
        for name in ("_base_", "demo"):
            (self.configs / name).symlink_to(ROOT / "configs" / name)
        for name in ("model-index.yml", "tools"):
            (self._package / "apla_mm/.mim" / name).symlink_to(ROOT / "apla_mm/.mim" / name)
        (self._package / "sitecustomize.py").symlink_to(ROOT / "tests/helpers/documentation/small.py")

    def write_configs(self, text: str) -> None:
        """Write the configs that a text names, small, under their names."""
        for name in sorted(set(_CONFIG.findall(text))):
            path = self.configs / name
            if not path.exists() and (ROOT / "configs" / name).exists():
                cfg = Config.fromfile(ROOT / "configs" / name)
                shrink(cfg, _SIZES)
                path.parent.mkdir(exist_ok=True)
                path.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.to_dict().items()))

    def _write_data(self) -> None:
        data = self.root / "data"
        write_scenes(data / "ade/ADEChallengeData2016", first=1)
        for name in ("my_dataset", "photos"):
            write_scenes(data / name)
        write_scenes(write_scenes(data / "pets"), training=1, validation=1, first=1)  # three classes in all
        (data / "photos/classes.txt").write_text("left\nright\n")
        write_class_folders(data / "birds", training=12)
        write_coco(data / "toys")
        _write_all_of_coco(data / "coco")

    def write_programs(self, server: Path) -> None:
        """Write the programs, which ask a server."""
        self._programs.mkdir()
        for name in PARSERS:
            program = self._programs / name
            program.write_text(CLIENT.format(python=sys.executable, address=str(server), name=name))
            program.chmod(0o755)

    def folder(self, name: str) -> Path:
        """A new folder to run in."""
        work = self.root / name
        (work / ".venv/bin").mkdir(parents=True)
        (work / ".venv/bin/python").symlink_to(self._programs / "python")
        for shared in ("demo", "docs", "requirements", "tests", "tools"):
            (work / shared).symlink_to(ROOT / shared)
        (work / "configs").symlink_to(self.configs)
        (work / "data").symlink_to(self.root / "data")
        photos = self.root / "data/photos"
        (work / "photos").symlink_to(photos)
        (work / "new_photos").symlink_to(photos / "images/validation")
        for image in ("image.jpg", "photo.jpg"):
            (work / image).symlink_to(photos / "images/validation/scene_0.jpg")
        return work

    def environment(self, mode: str) -> dict[str, str]:
        """The variables of commands; ``mode`` is 'run' or 'parse'."""
        path = os.pathsep.join([str(self._programs), os.environ["PATH"]])
        python_path = os.pathsep.join([str(self._package), str(ROOT / "tests")])
        threads = dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="agg")
        programs = dict(PATH=path, PYTHON="python", PYTHONPATH=python_path)  # PYTHON: tools/*.sh start what it names
        return {**os.environ, **ON_CPU, **threads, **programs, "DOCUMENTATION_MODE": mode}

    def localise(self, text: str) -> str:
        """A command or script with the folder /data where it can be written."""
        return re.sub(r"(?<![\w/])/data/", f"{self.root}/data/", text)

    def train(self, config: str) -> None:
        """Train a config for what pages name without having trained it: a checkpoint, and seg.safetensors."""
        work, path = self.folder("trained"), self.configs / config.removeprefix("configs/")
        hooks = [dict(type=name) for name in ("DataCheckHook", "APLAHook", "DeltaHook")]
        path.with_name("trained.py").write_text(f"_base_ = {path.name!r}\ncustom_hooks = {hooks}\n")
        command = f"apla-mm train {Path(config).with_name('trained.py')} --work-dir work_dirs/{path.stem}"
        done = self.shell(command, "run", work)
        assert done.returncode == 0, done.stdout[-5000:]

    def _provide(self, command: str, work: Path) -> None:
        """Let a checkpoint of a command have the number of steps that it names; the trained one is everyone's."""
        trained = self.root / "trained"
        for stem in _CHECKPOINT.findall(command):
            folder = (work / stem).parent
            if not folder.exists() and (trained / stem).parent.exists():
                shutil.copytree((trained / stem).parent, folder)
            for saved in folder.glob("iter_2.*"):
                named = saved.with_name(saved.name.replace("iter_2", Path(stem).name))
                if not named.exists():
                    named.symlink_to(saved)
        if "seg.safetensors" in command and not (work / "seg.safetensors").exists():
            for file in trained.glob("work_dirs/*/*.safetensors"):
                name = file.name if file.name.startswith("base-") else "seg.safetensors"
                shutil.copy(file, work / name)

    def shell(self, command: str, mode: str, work: Path) -> subprocess.CompletedProcess[str]:
        """What a shell makes of a command in a folder."""
        self._provide(command, work)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=work,
            env=self.environment(mode),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )


def _write_all_of_coco(root: Path) -> None:
    """At the places of COCO's own files too, with super-categories."""
    write_panoptic(root)
    for split in ("train", "val"):
        for kind in ("instances", "panoptic"):
            edit_json(root / f"annotations/{kind}_{split}.json", _add_groups)
        (root / f"{split}2017").symlink_to(root / "images")
        for name in (f"instances_{split}.json", f"panoptic_{split}.json", f"panoptic_{split}"):
            (root / f"annotations/{name.replace(split, f'{split}2017')}").symlink_to(root / f"annotations/{name}")


def _add_groups(content: dict) -> None:
    for category in content["categories"]:
        category["supercategory"] = f"{category['name']}s"


@contextmanager
def small_world(root: Path) -> Iterator[World]:
    """A world, with the server of its programs, in an empty folder."""
    world = World(root)
    with TemporaryDirectory(prefix="apla") as folder:  # a socket's path may have some 100 characters
        address, log = Path(folder, "socket"), Path(folder, "log")
        command = [sys.executable, "-m", "helpers.documentation.server", str(address)]
        with log.open("w") as output:
            environment = world.environment("run")
            process = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output, text=True)
        try:
            wait_until(partial(_listens, address, process, log), 600, log.read_text)
            world.write_programs(address)
            yield world
        finally:
            kill(process)


def _listens(address: Path, process: subprocess.Popen[str], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return address.exists()
