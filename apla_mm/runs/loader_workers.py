"""Workers of data loaders leave signals to the process that they work for.

Slurm and torchrun signal every process of a job, its loaders' workers too. Those would end, and the loader with an
error, before the iteration is finished that is to be saved.
"""

import os
import signal
import threading

_shielded = False
_registered = False


def shield_workers(on: bool) -> None:
    """From now on, let processes forked from this one ignore signals that do not come from their parent, or no more.

    Args:
        on: Whether they do. SIGINT and SIGUSR1 they ignore; SIGTERM, by which a parent ends its workers, ends them if
            it comes from the parent.
    """
    global _shielded, _registered
    _shielded = on
    if not _registered:
        os.register_at_fork(after_in_child=_shield)
        _registered = True


def _shield() -> None:
    if not _shielded:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # only by waiting for it does Python learn who sent a signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
