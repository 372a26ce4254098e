"""Kills training at random moments, resumes it, and compares with a run that was never killed.

Usage: PYTHONPATH=tests python tests/helpers/kill_and_resume.py [--kills 20] [--seed 0] [--processes 1] \
    [--loop ResumableTrainLoop] [--work-dir FOLDER]
"""

import argparse
import contextlib
import random
import re
import subprocess
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from helpers.comparisons import PARTS, differences
from helpers.data_sets import write_photos
from helpers.logs import scalars_of
from helpers.processes import ON_CPU, started
from helpers.small_run import CONFIG, DIST_TRAIN, OPTIONS, TRAIN

from apla_mm.loading.checkpoint_reader import read_checkpoint

ITERATIONS = 24
#: everything that has a state: augmentation in workers, dropout, stochastic depth, an EMA, two schedules
SETTINGS = [
    f"train_cfg.max_iters={ITERATIONS}",
    "train_cfg.val_interval=8",
    "default_hooks.checkpoint.interval=1",
    "train_dataloader.num_workers=2",
    "model.backbone.model_kwargs.drop_path_rate=0.3",
    "model.decode_head.dropout_ratio=0.3",
    f"param_scheduler.1.end={ITERATIONS}",
]
MORE = f"""
_base_ = "{CONFIG}"
custom_hooks = [dict(type="APLAHook"), dict(type="EMAHook", momentum=0.1)]
"""
LOOP = "ResumableTrainLoop"


def training(
    work_dir: Path, data: str, processes: int, loop: str = LOOP, until: str = ""
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Training, resumed if there is a checkpoint, once its log has a pattern."""
    work_dir.mkdir(exist_ok=True)
    config = work_dir / "config.py"
    config.write_text(MORE)
    command = [TRAIN, config] if processes == 1 else [DIST_TRAIN, config, processes]
    options = ["--cfg-options", *OPTIONS, *SETTINGS, data, f"train_cfg.type={loop}"]
    log = work_dir / "output.txt"
    return started(*command, "--resume", "--work-dir", work_dir, *options, log=log, until=until, env=ON_CPU)


def finish(work_dir: Path, data: str, processes: int, loop: str = LOOP) -> None:
    """Train to the end."""
    with training(work_dir, data, processes, loop) as process:
        if process.wait(600):
            raise RuntimeError((work_dir / "output.txt").read_text()[-5000:])


def kill_after(work_dir: Path, data: str, processes: int, iteration: int, seconds: float, loop: str = LOOP) -> None:
    """Train, and kill all processes so many seconds after an iteration, unless they have ended."""
    with (
        training(work_dir, data, processes, loop, rf"Iter\(train\) \[ *{iteration}/") as process,
        contextlib.suppress(subprocess.TimeoutExpired),
    ):
        process.wait(seconds)


def unreadable(work_dir: Path) -> list[str]:
    """Checkpoints that cannot be read, or are named and not there."""
    bad = []
    named = work_dir / "last_checkpoint"
    paths = set(work_dir.glob("*.pth"))
    if named.exists():
        paths.add(Path(named.read_text()))
    for path in sorted(paths):
        try:
            read_checkpoint(path)
        except (ValueError, FileNotFoundError) as error:
            bad.append(str(error))
    return bad


def losses(work_dir: Path) -> dict[int, set[tuple[float, ...]]]:
    """All that was logged of each iteration's losses and learning rates, by every start of the run."""
    found: dict[int, set[tuple[float, ...]]] = {}
    for line in scalars_of(work_dir):
        if "loss" in line:
            found.setdefault(line["iter"], set()).add((line["loss"], line["decode.acc_seg"], line["lr"]))
    return found


def scores(work_dir: Path) -> list[str]:
    """The last score of each validation."""
    found = re.findall(r"Iter\(val\) .*mIoU: ([\d.]+)", (work_dir / "output.txt").read_text())
    return found[-1:]


def compare(work_dir: Path, reference: Path) -> list[str]:
    """What differs between a run that was killed and one that was not."""
    found = []
    for name in (f"iter_{ITERATIONS}.pth", f"iter_{ITERATIONS - 1}.pth"):
        one, other = read_checkpoint(work_dir / name), read_checkpoint(reference / name)
        for part in PARTS:
            found += differences(one[part], other[part], path=f"{name} {part}")
    mine, theirs = losses(work_dir), losses(reference)
    found += [f"iteration {i}: {mine.get(i)}, not {theirs[i]}" for i in theirs if mine.get(i) != theirs[i]]
    if sorted(path.name for path in work_dir.glob("*.pth")) != sorted(path.name for path in reference.glob("*.pth")):
        found.append(f"checkpoints {sorted(path.name for path in work_dir.glob('*.pth'))}")
    if scores(work_dir) != scores(reference):
        found.append(f"mIoU {scores(work_dir)}, not {scores(reference)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs that are killed, once each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--processes", type=int, default=1, help="processes of each run")
    parser.add_argument("--loop", default=LOOP, help="type of train_cfg: mmengine's IterBasedTrainLoop, to compare")
    parser.add_argument("--work-dir", type=Path, help="empty or new folder to keep the runs in (default: temporary)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work_dir or Path(temporary)
        folder.mkdir(exist_ok=True)
        data = f"data_root={write_photos(folder / 'data')}"
        finish(folder / "whole", data, args.processes, args.loop)
        print(
            f"never killed: {len(losses(folder / 'whole'))} iterations, mIoU {scores(folder / 'whole')[0]}", flush=True
        )
        saved = sorted(path.stat().st_mtime for path in (folder / "whole").glob("iter_*.pth"))
        each = (saved[-1] - saved[0]) / (len(saved) - 1)
        draw = random.Random(args.seed)
        equal = bad = cut = 0
        for i in range(args.kills):
            work_dir, iteration, moment = (
                folder / f"killed_{i}",
                draw.randint(1, ITERATIONS),
                draw.uniform(0, 1.5 * each),
            )
            kill_after(work_dir, data, args.processes, iteration, moment, args.loop)
            parts = [str(path.name) for path in work_dir.glob(".*.part")]
            broken = unreadable(work_dir)
            named = work_dir / "last_checkpoint"
            at = Path(named.read_text()).name if named.exists() else "no checkpoint"
            finish(work_dir, data, args.processes, args.loop)
            different = compare(work_dir, folder / "whole")
            equal, bad, cut = equal + (not different), bad + len(broken), cut + len(parts)
            print(
                f"kill {i + 1:2d}, {moment * 1000:3.0f} ms after iteration {iteration:2d}, {at}"
                f"{', while saving' if parts else ''}: "
                f"{'bit-equal' if not different else different[:3]}; unreadable: {broken or 0}",
                flush=True,
            )
        print(
            f"{equal} of {args.kills} ended bit-equal; {bad} checkpoints were unreadable; "
            f"{cut} kills while a checkpoint was written"
        )
        if equal < args.kills or bad:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
