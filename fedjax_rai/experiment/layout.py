"""The mesh of arms whose config leaves it to the memory plan, chosen before anything lies on a device."""

from collections.abc import Callable, Sequence

from fedjax_rai import terminal
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory.advice import device_limit
from fedjax_rai.memory.layout import choose
from fedjax_rai.memory.plan import Sizes


def choose_mesh(settings: Sequence[Setting], sizes_of: Callable[[Setting], Sizes] = sizes.sizes) -> None:
    """Choose a mesh on which all of these arms fit, for every base that they share; says which, and why.

    Nothing happens where the config names the mesh, or it is chosen already.
    """
    arms: dict[int, tuple[Models, list[Setting]]] = {}
    for setting in settings:
        if setting.models.layout.auto:
            arms.setdefault(id(setting.models), (setting.models, []))[1].append(setting)
    for models, sharing in arms.values():
        chosen = choose([(setting.config, sizes_of(setting)) for setting in sharing], device_limit())
        models.layout, models.layout_reason = chosen
        terminal.say(chosen.reason)
