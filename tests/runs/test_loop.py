"""How runs that go together share a round's seconds."""

from fedjax_rai.runs.loop import shared


def test_the_seconds_of_a_round_are_shared_out_evenly():
    """Nine seconds of three runs, of which 4.5 are the phase's: a run's seconds add up over the runs to the round's."""
    assert shared({"seconds": 9.0, "cai_seconds": 4.5}, 3) == {"seconds": 3.0, "cai_seconds": 1.5, "together": 3}
