"""Reading what the device computes one step late, so that neither it nor the host waits for the other."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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
