"""What one process does for all."""

from collections.abc import Callable

from mmengine.dist import all_gather_object, is_main_process


def in_main_process(action: Callable[[], object], what: str) -> None:
    """Do something in the first process, while the others wait.

    Args:
        action: What to do.
        what: It belongs to, for the error.

    Raises:
        RuntimeError: It failed; in all processes.
    """
    failure = None
    if is_main_process():
        try:
            action()
        except Exception as error:  # else the others would wait for it
            failure = error
    text = all_gather_object(failure and (str(failure) or type(failure).__name__))[0]
    if text:
        raise RuntimeError(f"{what}: {text}") from failure
