"""A law of the mesh on eight devices: `on_eight_devices.py rounds NAME [FSDP]`, `... LAW FSDP`, or `... phase`."""

import sys

import jax

from tests import mesh_laws

jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8
FURTHER = {
    "scoring": mesh_laws.check_scoring,
    "answers": mesh_laws.check_generation,
    "turns": mesh_laws.check_rounds_in_turn,
    "slices": mesh_laws.check_slices,
}
law, *arguments = sys.argv[1:]
if law == "rounds":
    name, *fsdp = arguments
    mesh_laws.check_rounds(8, name, *map(int, fsdp))
elif law in FURTHER:
    FURTHER[law](8, int(*arguments))
else:
    mesh_laws.check_phase(8, revisions=2)
