"""The length of training, and what is counted in iterations or epochs of it."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from .loaders import by_epoch
from .problems import Problem, as_list, find, keyed, kind


def _length(cfg: Config) -> int | None:
    """Iterations or epochs to train; None if the config does not say."""
    length = find(cfg, "train_cfg", {}).get("max_epochs" if by_epoch(cfg) else "max_iters")
    return length if isinstance(length, int) else None


def _unit(cfg: Config) -> str:
    return "epoch" if by_epoch(cfg) else "iteration"


def counted_by_epochs(cfg: Config) -> Iterator[Problem]:
    """Training by iterations has one endless epoch: what counts epochs does nothing until its end."""
    if by_epoch(cfg) or _length(cfg) is None:
        return
    for key, scheduler in keyed(cfg, "param_scheduler"):
        if isinstance(scheduler, dict) and scheduler.get("by_epoch", True):
            what = f"{kind(scheduler)} counts epochs, and training counts iterations: it would never step"
            yield Problem(f"{key}.by_epoch", what, {f"{key}.by_epoch": False})
    checkpoint = find(cfg, "default_hooks.checkpoint")
    if checkpoint and checkpoint.get("by_epoch", True) and checkpoint.get("interval", -1) > 0:
        what = "checkpoints are saved by epochs, and training counts iterations: none would be saved on the way"
        yield Problem("default_hooks.checkpoint.by_epoch", what, {"default_hooks.checkpoint.by_epoch": False})
    if find(cfg, "log_processor", {}).get("by_epoch", True):
        what = "the log counts epochs, and training counts iterations"
        yield Problem("log_processor.by_epoch", what, {"log_processor.by_epoch": False}, error=False)
    logger = find(cfg, "default_hooks.logger")
    if logger and logger.get("log_metric_by_epoch", True):
        what = "scores are logged by epochs, and training counts iterations: all would be at step 0"
        key = "default_hooks.logger.log_metric_by_epoch"
        yield Problem(key, what, {key: False}, error=False)


def schedules_fit_training(cfg: Config) -> Iterator[Problem]:
    """The learning rate's schedule ends with training, and each of its steps is one of training."""
    length, unit = _length(cfg), _unit(cfg)
    schedulers = [(k, s) for k, s in keyed(cfg, "param_scheduler") if isinstance(s, dict) and _counts_as(cfg, s)]
    if length is None:
        return
    whole = "train_cfg.max_epochs" if by_epoch(cfg) else "train_cfg.max_iters"
    last = max((key for key, s in schedulers if s.get("end")), key=lambda key: find(cfg, key)["end"], default=None)
    for key, scheduler in schedulers:
        begin, end = scheduler.get("begin", 0), scheduler.get("end")
        if begin >= length:
            what = f"{kind(scheduler)} begins at {unit} {begin}, and training ends at {length} ({whole})"
            yield Problem(f"{key}.begin", what, hint=_by_max_iters(cfg), error=False)
            continue
        steps = as_list(scheduler.get("milestones"))
        late = [step for step in steps if step >= length]
        cut = [step for step in steps if end is not None and end <= step < length]
        if cut:
            what = f"{kind(scheduler)} ends at {unit} {end}, before its steps at {', '.join(map(str, cut))}"
            yield Problem(f"{key}.end", what, {f"{key}.end": length}, error=False)
        elif late:
            what = f"{kind(scheduler)} steps at {unit} {', '.join(map(str, late))}, and training ends at {length}"
            yield Problem(f"{key}.milestones", f"{what} ({whole})", hint=_by_max_iters(cfg), error=False)
        elif end is not None and (end > length or (key == last and end < length and _decays(scheduler))):
            then = "the schedule would be cut" if end > length else "the last value would stay"
            what = f"{kind(scheduler)} ends at {unit} {end}, and training at {length} ({whole}): {then}"
            mended = {f"{key}.end": length} if length > begin + 1 else {}
            yield Problem(f"{key}.end", what, mended, error=False)
        period = scheduler.get("T_max")
        if period and "CosineAnnealing" in kind(scheduler) and period < min(end or length, length) - begin:
            what = f"the cosine is back at its start after 2 x {period} {unit}s, and the schedule lasts longer"
            cure = {f"{key}.T_max": min(end or length, length) - begin}
            yield Problem(f"{key}.T_max", what, cure, error=False)


def _counts_as(cfg: Config, scheduler: dict[str, Any]) -> bool:
    return bool(scheduler.get("by_epoch", True)) == by_epoch(cfg)


def _decays(scheduler: dict[str, Any]) -> bool:
    return any(name in kind(scheduler) for name in ("Poly", "Cosine", "LinearLR")) and not (
        "LinearLR" in kind(scheduler) and scheduler.get("begin", 0) == 0
    )


def _by_max_iters(cfg: Config) -> str:
    return "" if by_epoch(cfg) else "the option max_iters=N, in place of train_cfg.max_iters=N, scales the schedule too"


def validation_is_reached(cfg: Config) -> Iterator[Problem]:
    """Validation, and what begins at some iteration, is within training."""
    length, unit = _length(cfg), _unit(cfg)
    settings = find(cfg, "train_cfg", {})
    if length is None or not find(cfg, "val_dataloader"):
        return
    for key, default in (("val_interval", 1), ("val_begin", 1)):
        value = settings.get(key, default)
        where = f"train_cfg.{key}"
        if not isinstance(value, int | float) or value != int(value) or value < 1:
            yield Problem(where, f"{value!r} must be an int of at least 1", {where: length})
        elif value > length and key == "val_begin":
            what = f"{value} is after the last {unit}, {length}: there would be no validation"
            yield Problem(where, what, {where: 1}, error=_best_is_saved(cfg))
        elif value > length and "val_interval" in settings:
            what = f"{value} is more than all {length} {unit}s: there would be no validation before the end"
            yield Problem(where, what, {where: max(1, length // 10)}, error=False)


def _best_is_saved(cfg: Config) -> bool:
    return bool(find(cfg, "default_hooks.checkpoint.save_best"))


def checkpoints_are_saved(cfg: Config) -> Iterator[Problem]:
    """A run leaves a checkpoint."""
    hook, length, unit = find(cfg, "default_hooks.checkpoint"), _length(cfg), _unit(cfg)
    if not hook or length is None:
        return
    interval, key = hook.get("interval", -1), "default_hooks.checkpoint"
    counts = bool(hook.get("by_epoch", True)) == by_epoch(cfg)
    if counts and (interval < 1 or interval > length) and not hook.get("save_last", True):
        cure = {f"{key}.interval": max(1, length // 10)}
        what = f"{interval}, of {length} {unit}s, and save_last=False: no checkpoint would be saved"
        yield Problem(f"{key}.interval", what, cure)
    kept = hook.get("max_keep_ckpts", -1)
    if isinstance(kept, int) and kept > 0 and interval < 1 and "interval" in hook:
        what = f"{kept}, and {key}.interval={interval} saves none on the way"
        cure = {f"{key}.interval": max(1, length // 10)}
        yield Problem(f"{key}.max_keep_ckpts", what, cure, error=False)
    if counts and hook.get("save_begin", 0) > length:
        what = f"{hook['save_begin']} is after the last {unit}, {length}: no checkpoint would be saved"
        yield Problem(f"{key}.save_begin", what, {f"{key}.save_begin": 0})


def averages_begin(cfg: Config) -> Iterator[Problem]:
    """The average of weights begins within training."""
    length = _length(cfg)
    for key, hook in keyed(cfg, "custom_hooks"):
        if kind(hook) != "EMAHook" or length is None:
            continue
        begin = "begin_epoch" if by_epoch(cfg) else "begin_iter"
        if (hook.get(begin) or 0) >= length:
            what = f"the average begins at {hook[begin]}, and training ends at {length}"
            yield Problem(f"{key}.{begin}", what, {f"{key}.{begin}": 0})
        if hook.get("begin_epoch") and not by_epoch(cfg):
            what = "the average begins at an epoch, and training counts iterations"
            yield Problem(f"{key}.begin_epoch", what, {f"{key}.begin_epoch": 0}, f"and {key}.begin_iter")


def resumes_from_one_place(cfg: Config) -> Iterator[Problem]:
    """With resume=True a run goes on from load_from, each time, whatever it has saved since."""
    begin, work_dir = cfg.get("load_from"), cfg.get("work_dir")
    if not cfg.get("resume") or not begin or not work_dir:
        return
    latest = find_latest_checkpoint(work_dir)
    if latest and str(latest) != str(begin):
        what = (
            f"with resume=True the run goes on from there, '{begin}', and not from the latest of work_dir, '{latest}'"
        )
        yield Problem("load_from", what, hint="to go on from the latest give --resume, and no path", error=False)


RULES = [
    counted_by_epochs,
    schedules_fit_training,
    validation_is_reached,
    checkpoints_are_saved,
    averages_begin,
    resumes_from_one_place,
]
