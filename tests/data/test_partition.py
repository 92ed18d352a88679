import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_rai.data.partition import checked_partition, iid
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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 1], [2]], "gives 2 arrays; must give one for each of the 3 clients"),
        (None, "gives a NoneType, not a list of arrays; must give one for each of the 3 clients"),
        ([[0], [1.5], [2]], r"client 1 gets float64\[1\]; must get an integer array \[n\] of indices"),
        ([[0], [[1], [2]], [3]], r"client 1 gets int64\[2, 1\]; must get"),
        ([[0], [1], [2, 5]], "client 2 gets the index 5; must be from 0 to 4"),
        ([[-1], [1], [2]], "client 0 gets the index -1; must be from 0 to 4"),
        ([[0, 3], [1], [2, 3]], r"pair 3 stands twice, at clients \[0, 2\]; no index may"),
        ([[0], [1, 1], [2]], r"pair 1 stands twice, at clients \[1\]; no index may"),
    ],
)
def test_a_partition_of_the_users_own_that_is_none_is_refused(parts, message) -> None:
    with pytest.raises(InputError, match=f"^data.partition = mine:deal: {message}"):
        checked_partition(parts and [np.array(part) for part in parts], 5, 3, "mine:deal")


def test_a_partition_may_leave_out_pairs_and_clients() -> None:
    found = checked_partition([np.array([3]), np.array([]), np.array([4, 0])], 5, 3, "mine:deal")
    assert [part.tolist() for part in found] == [[3], [], [4, 0]]
    assert [part.dtype.kind for part in found] == ["i"] * 3
