import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_rai.data.partition import iid
from fedjax_rai.errors import InputError


@settings(deadline=None, max_examples=50)
@given(clients=st.integers(1, 30), more=st.integers(0, 200), seed=st.integers(0, 9))
def test_clients_share_out_everything_evenly(clients: int, more: int, seed: int) -> None:
    n = clients + more
    parts = iid(n, clients, seed)
    assert len(parts) == clients
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_alone_decides() -> None:
    first, again, other = iid(100, 4, 0), iid(100, 4, 0), iid(100, 4, 1)
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert (np.concatenate(first) != np.concatenate(other)).any()
    assert (np.concatenate(first) != np.arange(100)).any(), "dealt in order, not at random"


def test_fewer_examples_than_clients_are_refused() -> None:
    with pytest.raises(InputError, match=r"federated\.clients = 5: more than the 4 training pairs; must be at most 4"):
        iid(4, 5, 0)
