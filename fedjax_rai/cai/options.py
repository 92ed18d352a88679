"""What a phase of constitutional AI is for: its objective, what its programs are compiled for, and their numbers."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai.aliases import Adapter, Array, Float, Int
from fedjax_rai.config.names import look_up
from fedjax_rai.config.schema import CaiConfig
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.mesh import over_rows, ways
from fedjax_rai.train.generate import Sampling
from fedjax_rai.train.losses import PREFERENCES, LogRatios
from fedjax_rai.train.step import PLAIN, Trainer

PreferenceLoss = Callable[..., Float[Array, "n"]]
"""`loss(ratios, beta, ...)` of each pair; whatever else it takes is a number of section `cai`, by the key's name."""
_LOSS = "a function of LogRatios, beta and numbers of section cai by name, that gives a loss of each pair"


class Objective(NamedTuple):
    """What an iteration minimises: the negative log-likelihood of revisions, a preference loss of pairs, or both."""

    likelihood: bool
    preference: PreferenceLoss | None


METHODS: dict[str, Callable[[PreferenceLoss], Objective]] = {
    "sft": lambda preference: Objective(True, None),
    "dpo": lambda preference: Objective(False, preference),
    "sft+dpo": lambda preference: Objective(True, preference),
}


def make_objective(cai: CaiConfig) -> Objective:
    """The objective that `cai.method` and `cai.preference` name; the only place where these names are looked up.

    Raises InputError for names of nothing, and for a method of the user's own that gives no objective.
    """
    method = look_up(METHODS, cai.method, "cai.method")
    preference = look_up(PREFERENCES, cai.preference, "cai.preference")
    if cai.method in METHODS:
        return method(preference)
    stated, form = f"cai.method = {cai.method}", "a function of the preference loss that gives an Objective"
    try:
        objective = method(preference)
    except TypeError as error:
        raise InputError(f"{stated}: calling it failed ({error}); must be {form}") from error
    if not isinstance(objective, Objective):
        raise InputError(f"{stated}: gives a value of the type {type(objective).__name__}; must be {form}")
    return objective


def check_objective(cai: CaiConfig) -> None:
    """Raises InputError for a method that gives no objective, and a preference loss that gives no number a pair.

    The loss is traced with the numbers of section `cai`; nothing is computed.
    """
    preference = make_objective(cai).preference
    if preference is None:
        return
    pairs: Any = jax.ShapeDtypeStruct((3,), jnp.float32)
    ratios = LogRatios(pairs, pairs, pairs, pairs)
    further = _further_numbers(cai)
    try:
        found = jax.eval_shape(preference, ratios, jax.ShapeDtypeStruct((), jnp.float32), **further)
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"cai.preference = {cai.preference}: calling it failed ({reason}); must be {_LOSS}") from error
    if getattr(found, "shape", None) != pairs.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(f"cai.preference = {cai.preference}: gives {found} of 3 pairs; must be {_LOSS}")


class Options(NamedTuple):
    """What the programs of a phase are compiled for."""

    end_ids: tuple[int, ...]  # tokens that end a turn; the first one closes every answer
    max_new: int  # tokens of an answer, at most
    chunk: int  # prompts that are answered at once
    batch_size: int  # answers of an iteration, and pairs whose reference_logps are computed at once
    critic_is_policy: bool  # else the critic is the base
    train_on_revisions: bool  # else on the responses, as a control
    reference_is_base: bool  # else the reference is the adapter that the phase starts from
    objective: Objective
    mesh: jax.sharding.Mesh
    trainer: Trainer = PLAIN  # of the iterations

    def reference(self, adapter: Adapter) -> Adapter | None:
        """The reference's adapter, where the phase starts from that one; None is the base."""
        return None if self.reference_is_base else adapter

    def constrain(self, rows: int) -> Callable[[Any], Any]:
        """Lays so many rows out over the devices, if these divide them."""
        if self.devices(rows) == 1:
            return lambda tree: tree
        return over_rows(self.mesh)

    def devices(self, rows: int) -> int:
        """How many devices so many rows lie over."""
        parts = ways(self.mesh)
        return 1 if rows % parts else parts


class Numbers(NamedTuple):
    """The numbers of a phase's iterations, all traced: another value compiles nothing."""

    iterations: Int[Array, ""]
    learning_rate: Float[Array, ""]
    replay: Float[Array, ""]  # the share of drawn rows that are replayed, in the mean
    beta: Float[Array, ""]
    further: dict[str, Float[Array, ""]]  # what the preference loss takes besides beta, by name


def make_numbers(cai: CaiConfig, replayed: int) -> Numbers:
    """The numbers of section `cai`, where `replayed` benign answers are mixed in with as many revisions as prompts.

    Raises InputError for a preference loss that takes a number which section `cai` does not have.
    """
    return Numbers(
        iterations=jnp.int32(cai.iterations),
        learning_rate=jnp.float32(cai.learning_rate),
        replay=jnp.float32(replayed / (cai.prompts + replayed)),
        beta=jnp.float32(cai.beta),
        further=_further_numbers(cai),
    )


def _further_numbers(cai: CaiConfig) -> dict[str, Array]:
    preference = make_objective(cai).preference
    if preference is None:
        return {}
    numbers = {}
    for name in _arguments(preference, cai.preference)[2:]:
        if name not in CaiConfig.model_fields:
            hint = did_you_mean(name, CaiConfig.model_fields)
            raise InputError(f"cai.preference = {cai.preference}: takes {name}, which is no key of cai{hint}")
        numbers[name] = jnp.float32(getattr(cai, name))
    return numbers


def _arguments(preference: PreferenceLoss, name: str) -> list[str]:
    try:
        return list(inspect.signature(preference).parameters)
    except (TypeError, ValueError) as error:  # of some that are built in
        raise InputError(f"cai.preference = {name}: does not tell its arguments ({error}); must be {_LOSS}") from error


def make_sampling(cai: CaiConfig) -> Sampling:
    """How responses are drawn; a bound that is not set is not compiled in."""
    bounds = {}
    for name in ("top_k", "top_p", "min_p"):
        value = getattr(cai, name)
        if value is not None:
            bounds[name] = jnp.asarray(value)
    return Sampling(jnp.float32(cai.temperature), **bounds)


def is_due(cai: CaiConfig, t: int, safe_share: float | None) -> bool:
    """Whether a phase follows round t: it is the last of every `cai.every`, and the probe is below `cai.trigger`.

    `safe_share`: the probe's; None, which no trigger allows, where there is no probe. NaN is below every trigger: of
    what could not be measured nobody knows that it is safe.
    """
    if not cai.enabled or (t + 1) % cai.every != 0:
        return False
    return cai.trigger is None or (safe_share is not None and not safe_share >= cai.trigger)


def may_be_due(cai: CaiConfig, rounds: int) -> bool:
    """Whether some round of so many may have a phase that trains, whatever the probe says."""
    return cai.iterations > 0 and any(is_due(cai, t, safe_share=0.0) for t in range(rounds))
