"""The mesh that a config asks for on eight devices, or leaves to the plan; one that they do not make is refused."""

from jax.sharding import PartitionSpec as P

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import layout, sizes
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory.layout import ROOM
from fedjax_rai.memory.plan import plan


def setting(**mesh: int | bool) -> Setting:
    sections = {
        "mesh": mesh,
        "data": {"red": 12, "acceptable": 28, "max_length": 64},
        "federated": {"clients": 4, "cohort": 2},
        "filter": {"enabled": False},
        "cai": {"enabled": False},
    }
    return Setting(ExperimentConfig.model_validate(sections))


split = setting(fsdp=2, tensor=2)
assert dict(split.models.mesh.shape) == {"clients": 2, "fsdp": 2, "tensor": 2}
assert split.models.base["embed_tokens"].sharding.spec == P("tensor", "fsdp")
assert split.models.base["layers"]["o_proj"].sharding.spec == P(None, "tensor", "fsdp")
message = ""
try:
    setting(fsdp=3).check()
except InputError as error:
    message = str(error)
assert message == "mesh.fsdp * mesh.tensor = 3: must divide the 8 devices here", message

whole = setting()
needed = plan(whole.config, sizes.sizes(whole))
limit = int(needed.need(needed.peak) / ROOM) - 1
setattr(layout, "device_limit", lambda: limit)  # noqa: B010
chosen = setting(auto=True)
layout.choose_mesh([chosen])
assert dict(chosen.models.mesh.shape) == {"clients": 4, "fsdp": 2, "tensor": 1}, chosen.models.layout
assert chosen.planned.mesh.fsdp == 2 and chosen.config.mesh.auto
assert (chosen.models.layout_reason or "").startswith("mesh auto: fsdp=2 of 8 devices: needs ")
assert chosen.models.base["layers"]["o_proj"].sharding.spec == P(None, "tensor", "fsdp")
layout.choose_mesh([whole])  # which names its mesh
assert dict(whole.models.mesh.shape) == {"clients": 8, "fsdp": 1, "tensor": 1}
