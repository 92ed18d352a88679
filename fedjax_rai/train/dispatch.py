"""Work of the host beside the device's: what is computed is read one step late, what comes next is made ahead."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_beside = threading.local()  # for each thread that dispatches another one, which makes ahead


def ahead(make: Callable[[], T]) -> Future[T]:
    """What `make` gives, by another thread, while this one dispatches or waits; in the order in which it is asked for.

    On a CPU a small operation, as of a random key, is computed by the thread that asks for it, and only after all that
    this thread has dispatched. So it would wait for the round that it is to be ready for.
    """
    if not hasattr(_beside, "thread"):
        _beside.thread = ThreadPoolExecutor(1, "ahead")
    return _beside.thread.submit(make)


def read_late(dispatched: Iterable[T]) -> Iterator[T]:
    """The items of an iterable that dispatches work when it is advanced, each when the next one has been dispatched.

    So two are under way at any time, however many there are: the device always has the next one to go on with, and
    does not hold the inputs of all. More at once may also never end on several CPU devices, whose collectives then
    wait for each other.
    """
    previous: list[T] = []
    for item in dispatched:
        yield from previous
        previous = [item]
    yield from previous
