"""What a phase is for: objectives by name, and the numbers of its config."""

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from fedjax_rai.aliases import Float
from fedjax_rai.cai import options as cai_options
from fedjax_rai.cai.align import Drawn, objective_loss
from fedjax_rai.cai.options import METHODS, Objective, check_objective, make_numbers, make_objective, make_sampling
from fedjax_rai.config.schema import CaiConfig
from fedjax_rai.errors import InputError
from fedjax_rai.mesh import AXES
from fedjax_rai.train.losses import PREFERENCES, ipo, sigmoid
from tests import small
from tests.cai.common import options
from tests.cai.test_align import above_reference


@pytest.mark.parametrize(
    ("prompts", "replayed", "share"), [(4, 4, 0.5), (12, 4, 0.25), (1, 3, 0.75), (64, 0, 0.0), (30, 10, 0.25)]
)
def test_the_share_of_replay_is_that_of_the_pool(prompts, replayed, share):
    """Each answer of a pool whose revisions are all usable is drawn as often as any other, in the mean."""
    assert make_numbers(CaiConfig(prompts=prompts), replayed).replay == pytest.approx(share)


def test_numbers_are_those_of_the_config():
    numbers = make_numbers(CaiConfig(iterations=7, learning_rate=0.25, beta=0.5, prompts=3), 1)
    assert [float(number) for number in numbers[:4]] == [7, 0.25, 0.25, 0.5] and numbers.further == {}


def test_bounds_that_are_not_set_are_not_compiled_in():
    plain, bounded = make_sampling(CaiConfig()), make_sampling(CaiConfig(temperature=0.5, top_k=3, min_p=0.25))
    assert plain[1:] == (None, None, None) and plain.temperature == 1
    assert (bounded.temperature, bounded.top_p, bounded.top_k, bounded.min_p) == (0.5, None, 3, 0.25)


def test_objectives_by_name():
    """The method says whether revisions are learnt and whether they are preferred; the preference, by which loss."""
    names = [("sft", "ipo"), ("dpo", "ipo"), ("sft+dpo", "sigmoid")]
    found = [make_objective(CaiConfig(method=method, preference=preference)) for method, preference in names]  # pyright: ignore
    assert found == [Objective(True, None), Objective(False, ipo), Objective(True, sigmoid)]


def test_an_objective_of_the_users_own_is_named_as_module_and_attribute():
    config = CaiConfig(method="dpo", preference=f"{__name__}:scaled")
    assert make_objective(config) == Objective(False, scaled)
    with pytest.raises(InputError, match="cai.preference = .*:scaling: .* has no scaling"):
        make_objective(CaiConfig(preference=f"{__name__}:scaling"))


def scaled(ratios, beta: Float, temperature: Float):
    """A loss with a number besides beta."""
    return temperature * ratios.chosen


def misspelt(ratios, beta: Float, temperatur: Float):
    return temperatur * ratios.chosen


def config_of(monkeypatch, loss) -> CaiConfig:
    """A config that names the loss, as if its table had it."""
    monkeypatch.setitem(PREFERENCES, "mine", loss)
    return CaiConfig(method="dpo").model_copy(update={"preference": "mine", "temperature": 0.5})


@pytest.mark.slow
def test_a_preference_loss_takes_its_further_numbers_from_the_config(monkeypatch):
    """Pairs 0, 1 and 2 are preferred, with log-ratios 3, 1 and -2 of their chosen answers; 0.5 times their mean."""
    cai = config_of(monkeypatch, scaled)
    numbers = make_numbers(cai, 0)
    assert {name: float(number) for name, number in numbers.further.items()} == {"temperature": 0.5}
    compiled, drawn = options(objective=make_objective(cai)), Drawn(jnp.arange(4), jnp.zeros(4, bool))
    value, _ = objective_loss(small.LM, compiled, small.adapter(), above_reference(), drawn, numbers)
    assert float(value) == pytest.approx(0.5 * (3 + 1 - 2) / 3, abs=1e-5)


def test_a_number_that_the_config_does_not_have_is_refused_with_the_nearest_key(monkeypatch):
    cai = config_of(monkeypatch, misspelt)
    with pytest.raises(InputError, match="cai.preference = mine: takes temperatur, .* did you mean temperature?"):
        make_numbers(cai, 0)


def test_rows_that_the_devices_do_not_divide_are_left_where_they_are(monkeypatch):
    monkeypatch.setattr(cai_options, "over_rows", lambda mesh: lambda tree: ("laid out", tree))
    compiled = options(mesh=AbstractMesh((2, 2, 1), AXES))
    assert compiled.constrain(8)(5) == ("laid out", 5) and compiled.constrain(6)(5) == 5


def test_every_method_is_an_objective():
    assert all(isinstance(method(sigmoid), Objective) for method in METHODS.values())


def no_objective(preference) -> str:
    return "dpo"


def one_number(ratios, beta: Float):
    return beta * ratios.chosen.mean()


def both(preference) -> Objective:
    return Objective(True, preference)


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("method", "os:getcwd", r"calling it failed \(.*\); must be a function of the preference loss"),
        ("method", f"{__name__}:no_objective", "gives a value of the type str; must be .* an Objective"),
        ("preference", "os:getcwd", r"calling it failed \(.*\); must be a function of LogRatios"),
        ("preference", "builtins:min", r"does not tell its arguments .*; must be a function of LogRatios"),
        ("preference", f"{__name__}:one_number", "gives .* of 3 pairs; must be .* a loss of each pair"),
        ("preference", f"{__name__}:misspelt", "takes temperatur, which is no key"),
    ],
)
def test_what_is_no_method_or_preference_loss_is_refused(key, name, message):
    cai = CaiConfig.model_validate({"method": "dpo", key: name})
    with pytest.raises(InputError, match=f"^cai.{key} = {name}: {message}"):
        check_objective(cai)


@pytest.mark.parametrize("method", ["dpo", f"{__name__}:both"])
@pytest.mark.parametrize("preference", [*PREFERENCES, f"{__name__}:scaled"])
def test_a_method_and_a_preference_loss_that_can_be_used_are_let_through(method, preference):
    check_objective(CaiConfig(method=method, preference=preference))
