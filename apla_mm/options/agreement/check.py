"""All rules on a config, and one error for all that they find."""

from collections.abc import Sequence

from mmengine.config import Config

from ...data.folders import LOADERS
from . import datasets, evaluation, loaders, model, optimizer, preprocessing, schedule
from .problems import Problem


class DisagreementError(ValueError):
    """Settings of a config do not agree."""


def find_problems(cfg: Config, used: Sequence[str] = LOADERS) -> list[Problem]:
    """All that the rules find.

    Args:
        cfg: The whole config.
        used: The data loaders that will be used; rules of training are left out without that of training.
    """
    rules = [
        *loaders.rules_of(used),
        *datasets.rules_of(used),
        *model.RULES,
        *preprocessing.RULES,
        *evaluation.rules_of(used),
    ]
    if "train_dataloader" in used:
        rules += [
            *optimizer.RULES,
            *schedule.RULES,
            *evaluation.TRAINING_RULES,
            *preprocessing.TRAINING_RULES,
            *model.TRAINING_RULES,
        ]
    return [problem for rule in rules for problem in rule(cfg)]


def check_agreement(cfg: Config, used: Sequence[str] = LOADERS) -> list[str]:
    """Compare the settings of a config that must agree.

    Args:
        cfg: The whole config.
        used: The data loaders that will be used.

    Returns:
        Warnings: settings that would be unusual.

    Raises:
        DisagreementError: Settings cannot be meant as they are; it names all of them, and the warnings.
    """
    problems = find_problems(cfg, used)
    errors = [str(problem) for problem in problems if problem.error]
    warnings = [str(problem) for problem in problems if not problem.error]
    if errors:
        count = "a setting does" if len(errors) == 1 else f"{len(errors)} settings do"
        lines = [*errors, *(f"(warning) {warning}" for warning in warnings)]
        raise DisagreementError(f"{count} not agree with others:\n  " + "\n  ".join(lines))
    return warnings
