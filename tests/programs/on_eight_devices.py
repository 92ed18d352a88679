"""Laws of the mesh on eight devices: `on_eight_devices.py LAW...`, each of them `rounds:NAME:FSDP` or `LAW:NUMBER`."""

import sys

import jax

from tests import mesh_laws

jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8
LAWS = {
    "scoring": mesh_laws.check_scoring,
    "answers": mesh_laws.check_generation,
    "turns": mesh_laws.check_rounds_in_turn,
    "slices": mesh_laws.check_slices,
    "phase": mesh_laws.check_phase,
}
for wanted in sys.argv[1:]:
    print(wanted, file=sys.stderr, flush=True)
    law, *arguments = wanted.split(":")
    if law == "rounds":
        name, fsdp = arguments
        mesh_laws.check_rounds(8, name, int(fsdp))
    else:
        LAWS[law](8, int(*arguments))
