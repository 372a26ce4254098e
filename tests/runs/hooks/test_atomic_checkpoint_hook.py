from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from apla_mm.loading.checkpoint_reader import read_checkpoint


class Rising(BaseMetric):
    """A score that rises by one from validation to validation."""

    scores = 0.0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        Rising.scores += 1  # of all runs of a test
        return {"score": Rising.scores}


def settings(hook: str = "AtomicCheckpointHook", iterations: int = 6, **options: Any) -> dict[str, Any]:
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=2),
        val_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32), labels=0)] * 2, batch_size=2),
        val_cfg=dict(),
        val_evaluator=Evaluator(Rising()),
        default_hooks=dict(
            checkpoint=dict(
                type=hook, by_epoch=False, interval=1, max_keep_ckpts=1, save_best="score", rule="greater", **options
            )
        ),
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pth"))


def test_keeps_and_records_what_mmengines_own_hook_does(
    tiny_classifier: Any, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    found = []
    for hook in ("CheckpointHook", "AtomicCheckpointHook"):
        make_runner(tiny_classifier, work_dir=str(tmp_path / hook), **settings(hook)).train()
        last = Path((tmp_path / hook / "last_checkpoint").read_text())
        assert last == tmp_path / hook / "iter_6.pth"
        info = read_checkpoint(last)["message_hub"]["runtime_info"]
        assert Path(info["last_ckpt"]) == last and Path(info["best_ckpt"]).name == "best_score_iter_6.pth"
        found.append((names(tmp_path / hook), info["keep_ckpt_ids"]))
    assert found[0] == found[1] and found[0][0] == ["best_score_iter_6.pth", "iter_6.pth"]


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("hook", ["CheckpointHook", "AtomicCheckpointHook"])
def test_what_cannot_be_written_costs_no_checkpoint(
    tiny_classifier: Any, make_runner: Callable[..., Runner], tmp_path: Path, hook: str, best: bool
) -> None:
    """mmengine's own hook, here for the difference, removes first: nothing is left of that kind."""
    work = tmp_path / "work"
    make_runner(tiny_classifier, **settings(hook, iterations=2)).train()
    assert names(work) == ["best_score_iter_2.pth", "iter_2.pth"]
    # a folder in the way stands for a disk that is full
    (work / ("best_score_iter_4.pth" if best else "iter_3.pth")).mkdir()
    with pytest.raises(OSError if hook == "CheckpointHook" else RuntimeError) as error:
        make_runner(tiny_classifier, resume=True, **settings(hook)).train()
    left = [path.name for path in sorted(work.glob("*.pth")) if path.is_file()]
    if hook == "CheckpointHook":
        assert left == (["iter_4.pth"] if best else ["best_score_iter_2.pth"])
        return
    assert left == ["best_score_iter_2.pth", "iter_4.pth" if best else "iter_2.pth"]
    last = Path((work / "last_checkpoint").read_text())
    assert last.is_file() and read_checkpoint(last)["meta"]["iter"] == (4 if best else 2)
    assert f"the last checkpoint is '{last}', and --resume goes on from it" in str(error.value)


def test_interval_between_accumulated_gradients_is_told(
    tiny_classifier: Any, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=2)
    for interval in (2, 3):
        hooks = dict(checkpoint=dict(type="AtomicCheckpointHook", by_epoch=False, interval=interval))
        make_runner(tiny_classifier, optim_wrapper=wrapper, default_hooks=hooks).train()
        told = "checkpoints every 3 iterations fall between the 2 that are accumulated" in read_log()
        assert told == (interval == 3)


def test_what_was_half_written_by_a_run_that_was_killed_is_removed(
    tiny_classifier: Any, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    left = [work / name for name in (".iter_4.pth.node.17.part", ".best_score_iter_4.pth.node.17.part")]
    other = work / "notes.part"
    for path in (*left, other):
        path.write_bytes(b"half")
    make_runner(tiny_classifier, **settings()).train()
    assert not any(path.exists() for path in left) and other.exists()


def test_best_checkpoint_that_is_saved_again_stays(
    tiny_classifier: Any, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    """A run that was cut in a validation does it again, and its score may be a trifle better then."""
    chosen = settings(iterations=4)
    chosen["train_cfg"] = dict(type="ResumableTrainLoop", max_iters=2, val_interval=2)
    make_runner(tiny_classifier, **chosen).train()
    make_runner(tiny_classifier, resume=True, **chosen).train()
    best = tmp_path / "work/best_score_iter_2.pth"
    assert best.is_file()
    assert read_checkpoint(tmp_path / "work/iter_2.pth")["message_hub"]["runtime_info"]["best_ckpt"] == str(best)


@pytest.mark.parametrize("folder", [False, True])
def test_nothing_outside_of_the_work_dir_is_removed(
    tiny_classifier: Any, make_runner: Callable[..., Runner], tmp_path: Path, folder: bool
) -> None:
    make_runner(tiny_classifier, **settings(iterations=2)).train()
    victim = tmp_path / "precious.pth"
    if folder:
        victim.mkdir()
    else:
        victim.write_bytes(b"another run's best checkpoint")
    path = tmp_path / "work/iter_2.pth"
    checkpoint = read_checkpoint(path)
    checkpoint["message_hub"]["runtime_info"].update(best_ckpt=str(victim), best_score=-1.0)
    torch.save(checkpoint, path)
    make_runner(tiny_classifier, resume=True, **settings(iterations=4)).train()
    assert victim.exists()
    assert names(tmp_path / "work") == ["best_score_iter_2.pth", "best_score_iter_4.pth", "iter_4.pth"]
