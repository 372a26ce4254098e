"""The device that a model shall run on."""

import torch


def find_device(name: str | None = None) -> str:
    """The device of a name, which is tried, so that a wrong one is told before any work.

    Args:
        name: Such as ``'cuda:0'``; None for a GPU where there is one.

    Returns:
        The name.

    Raises:
        ValueError: This machine, or this torch, has no such device.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device '{device}' is not one of this machine: {reason}; leave it out, or name cpu or cuda:0"
        ) from error
    return device
