"""Every command and every block of Python of the README and the pages is run, small, or at least parsed."""

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.documentation.fences import Code, code_in
from helpers.documentation.world import World, small_world
from helpers.optional import needs

from apla_mm.api.recipe import TASKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # a page is many commands

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]

#: how a command begins, or a word that is in it -> why it is parsed and not run
PARSED_ALONE = {
    "make ": "makes environments, or runs what other lines run",
    "pip ": "installs from an index",
    "tools/dist_": "is for 8 GPUs; tests/tools/test_dist_tools.py runs it with 2 processes",
    "torchrun ": "is for 8 GPUs",
    "tools/slurm_": "needs Slurm; tests/tools/test_slurm.py runs it beside a small one",
    "sbatch ": "needs Slurm; tests/tools/test_slurm.py runs it beside a small one",
    "WandbVisBackend": "needs wandb, which is not installed",
    "strategies/fsdp.py": "FSDP needs a group of processes; tests/tuning/test_fsdp.py has one",
    "apla-mm compare ": "trains for minutes; tests/commands/test_compare.py runs it small",
    "apla-mm forgetting ": "needs the runs of a comparison; tests/commands/test_compare.py runs it small",
    "apla-mm benchmark ": "measures full-sized models for minutes; tests/commands/test_benchmark.py runs it small",
    "--int8 --benchmark": "measures five processes; tests/export/test_export.py runs it",
    "apla-mm serve ": "serves until it is stopped; tests/serve/test_server.py runs it",
    "curl ": "asks a server; tests/serve/test_app.py does",
    "apla-mm sweep ": "builds a thousand models; tests/commands/test_sweep.py runs it for a few",
    "-m pytest ": "is a test itself",
    "kill_and_resume.py": "takes minutes; tests/commands/test_kill_and_resume.py runs it with one kill",
    "demo/make_dataset.py": "tests/demo/test_run.py runs it",
}
#: words of commands that stand for something of the reader's
PLACEHOLDERS = {"CONFIG": "configs/seg/apla_vitb_custom.py", "PATH": "work_dirs/apla_vitb_custom/iter_2.pth"}
PLACEHOLDERS |= {"CHECKPOINT": PLACEHOLDERS["PATH"], "DELTA": "seg.safetensors", "COCO_SAMPLE": "data/coco"}
#: what apla_mm.train reads
RECIPES = " ".join(name for name, *_ in TASKS.values())
#: of configs that have no base of their own
BASE = "configs/seg/upernet_swin-t_apla_8xb2-160k_ade20k-512x512.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs("mmpretrain")
    with small_world(tmp_path_factory.mktemp("documentation")) as world:
        world.write_configs(" ".join([*PLACEHOLDERS.values(), BASE, RECIPES]))
        world.train(PLACEHOLDERS["CONFIG"])
        yield world


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, world: World) -> None:
    world.write_configs((ROOT / page).read_text())
    work = world.folder(Path(page).stem)
    failures = []
    for code in sorted(code_in(ROOT / page, page), key=lambda code: code.kind != "file"):  # files are there beforehand
        start = time.monotonic()
        done = run_code(code, world, work)
        print(f"{time.monotonic() - start:6.1f} s  {code.place} {code.text[:90]!r}", flush=True)
        if done is not None and done.returncode:
            failures.append(f"{code.place}: ended by {done.returncode}: {code.text}\n{done.stdout[-3000:]}")
    assert not failures, "\n\n".join(failures)


def run_code(code: Code, world: World, work: Path) -> subprocess.CompletedProcess[str] | None:
    """How it ended, and what it wrote; None if there is nothing to run."""
    text = world.localise(code.text)
    name = re.sub(r"\W", "_", code.place)
    if code.kind == "file":
        (work / code.argument).write_text(text)
        return None
    if code.kind == "named":
        return run_named(text, world, work)
    if code.kind == "script":
        (work / f"{name}.py").write_text(text)
        command = f"python {name}.py {fill(code.argument)}"
    elif code.kind == "config":
        command = config_command(text, world, name)
    else:
        command = fill(text)
    parsed_alone = any(word in f"{command}\n{text}" for word in PARSED_ALONE)
    return world.shell(command, "parse" if parsed_alone else "run", work)


def fill(command: str) -> str:
    return re.sub(r"\b[A-Z_]+\b(?![=.])", lambda word: PLACEHOLDERS.get(word[0], word[0]), command)


def config_command(text: str, world: World, name: str) -> str:
    """The command that trains a config, which lies where its bases are."""
    base = "" if "_base_" in text else f"_base_ = {Path(BASE).name!r}\n"
    path = world.configs / "seg" / f"{name}.py"
    path.write_text(base + text)
    return f"apla-mm train configs/seg/{path.name} --cfg-options max_iters=2"


def run_named(text: str, world: World, work: Path) -> subprocess.CompletedProcess[str]:
    """A command within a sentence: with arguments it is parsed, without there has to be one."""
    name, *arguments = shlex.split(fill(text))[1:]
    if name in ("COMMAND", "NAME", "--help"):
        return world.shell("apla-mm --help", "run", work)
    if not arguments or "..." in arguments:
        return world.shell(f"apla-mm {name} --help", "run", work)
    return world.shell(shlex.join(["apla-mm", name, *arguments]), "parse", work)


def test_what_is_parsed_alone_is_on_a_page_and_run_by_a_test_that_is_there() -> None:
    code = [fill(f"{one.text}\n{one.argument}") for page in PAGES for one in code_in(ROOT / page, page)]
    assert not [word for word in PARSED_ALONE if not any(word in text for text in code)]
    named = re.findall(r"tests/[\w/]+\.py", " ".join(PARSED_ALONE.values()))
    assert named and not [path for path in named if not (ROOT / path).is_file()]
