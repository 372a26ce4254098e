"""Blocks of one model exclude one another."""

import gc
import threading
import weakref

import pytest
from torch import nn

from apla_mm.tasks.lock import exclusive


def test_a_thread_cannot_enter_twice():
    model = nn.Linear(1, 1)
    block = exclusive(model, "the second")
    with exclusive(model, "the first"):
        for again in (block, exclusive(model, "the second")):
            with (
                pytest.raises(
                    RuntimeError, match="the second: this thread is in the block of the first already; leave"
                ),
                again,
            ):
                raise AssertionError
    with exclusive(model, "the third"):
        pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_block(error):
    model = nn.Linear(1, 1)
    for _ in range(2):
        with pytest.raises(error), exclusive(model, "one"):
            raise error
    with exclusive(model, "one"):
        pass


def test_models_have_locks_of_their_own():
    """Also a model and what it holds: the lock is the root's."""
    inner = nn.Linear(1, 1)
    model = nn.Sequential(inner)
    entered = threading.Event()

    def enter() -> None:
        with exclusive(inner, "of another thread"):
            entered.set()

    with exclusive(model, "one"):
        with exclusive(inner, "what it holds"), exclusive(nn.Linear(1, 1), "another"):
            pass
        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        assert entered.wait(10)
        thread.join(10)


def test_threads_take_turns(take_turns):
    model = nn.Linear(1, 1)
    inside = []

    def enter() -> None:
        with exclusive(model, "one"):
            inside.append(threading.get_ident())
            assert inside == [threading.get_ident()]
            inside.clear()

    take_turns([enter] * 4, rounds=300)


def test_a_block_may_be_left_in_another_thread(take_turns):
    """As by a server that hands a request's context from worker to worker."""
    model = nn.Linear(1, 1)
    block = exclusive(model, "one")
    block.__enter__()
    entered = threading.Event()

    def wait() -> None:
        with exclusive(model, "of the waiting thread"):
            entered.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert not entered.wait(0.05)
    take_turns([lambda: block.__exit__(None, None, None)], rounds=1)
    assert entered.wait(10)
    waiting.join(10)
    with exclusive(model, "this thread again"):
        pass


def test_a_lock_does_not_keep_its_model_alive():
    model = nn.Linear(1, 1)
    with exclusive(model, "one"):
        pass
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
