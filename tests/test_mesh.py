"""Several devices compute what one does, and all lies where it should: on two in this process, on eight in others."""

import pytest

from tests import mesh_laws, small
from tests.processes import succeed

either_axis = pytest.mark.parametrize("fsdp", [1, 2])


@pytest.mark.parametrize(("name", "fsdp"), [("fedavg", 1), small.slow("fedavg", 2), small.slow("scaffold", 1)])
def test_rounds_on_two_devices_are_those_on_one(name, fsdp):
    mesh_laws.check_rounds(2, name, fsdp)


@either_axis
def test_clients_that_have_all_devices_in_turn_learn_as_on_one(fsdp):
    mesh_laws.check_rounds_in_turn(2, fsdp)


def test_a_round_of_clients_on_two_devices_sends_sums_alone():
    mesh_laws.check_collectives(2)


@pytest.mark.slow
def test_control_variates_of_all_clients_are_spread_over_devices():
    mesh_laws.check_stacks(2)


@either_axis
def test_scores_on_two_devices_are_those_on_one(fsdp):
    mesh_laws.check_scoring(2, fsdp)


@either_axis
def test_answers_on_two_devices_are_those_on_one(fsdp):
    mesh_laws.check_generation(2, fsdp)


@pytest.mark.slow
def test_a_phase_on_two_devices_is_that_on_one():
    mesh_laws.check_phase(2, revisions=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "laws",
    [
        "rounds:fedavg:1 rounds:fedavg:2 rounds:scaffold:1 turns:2",
        "phase:2 scoring:2 answers:2 slices:2 slices:8",
    ],
)
def test_eight_devices_are_one_device(laws):
    """In two processes, as each has to compile what all of them need."""
    succeed("on_eight_devices", *laws.split(), devices=8)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 8])
def test_no_stage_is_computed_twice(fsdp):
    succeed("every_stage", fsdp, devices=8)


@pytest.mark.slow
def test_a_base_is_read_into_quarters_and_trained_on():
    succeed("base_in_quarters", devices=8)


@pytest.mark.slow
def test_an_axis_that_the_mesh_does_not_divide_is_whole(tmp_path):
    succeed("uneven_base", tmp_path, devices=8)


@pytest.mark.slow
def test_the_mesh_of_a_config():
    succeed("mesh_of_config", devices=8)


@pytest.mark.slow
def test_a_base_in_parts_by_columns_computes_what_one_device_does_by_two_sums_a_layer(tmp_path):
    succeed("tensor_parts", tmp_path, devices=4)
