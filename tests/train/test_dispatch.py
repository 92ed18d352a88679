"""Reading one step late: everything, in order, with two steps under way."""

import pytest

from fedjax_rai.train.dispatch import read_late


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_everything_is_read_in_order_once_the_next_step_has_begun(count):
    """Begun are, when step i is read: i + 2 of them, counted from 0; at the end all."""
    begun = []

    def steps():
        for i in range(count):
            begun.append(i)
            yield i

    read = [(i, len(begun)) for i in read_late(steps())]
    assert read == [(i, min(i + 2, count)) for i in range(count)]
