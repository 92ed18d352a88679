"""The mesh that a config asks for on eight devices, and the refusal of one that these do not make."""

from jax.sharding import PartitionSpec as P

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting


def setting(**mesh: int) -> Setting:
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
