"""Laws of federated algorithms; those named by `ALGORITHMS` are all put through every one that concerns them."""

import inspect
import re
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from fedjax_rai import trees
from fedjax_rai.config.schema import ExperimentConfig, FederatedConfig
from fedjax_rai.data.examples import take
from fedjax_rai.fed.aggregate import AGGREGATORS, weighted_mean
from fedjax_rai.fed.algorithm import ALGORITHMS, chunk_of_clients, in_turn, make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import HELD_TOGETHER, ClientUpdate, Mapper, Task, laid_out, local_update
from fedjax_rai.fed.fedopt import SERVERS, fedopt
from fedjax_rai.mesh import AXES, make_mesh
from fedjax_rai.model.decoder import LM, Decoder, init_base
from fedjax_rai.train.losses import sft
from fedjax_rai.train.optimizers import OPTIMIZERS, SCHEDULES, learning_rate
from fedjax_rai.train.step import PLAIN, Trainer, train
from tests import small

CLIENTS, RATE = 6, jnp.float32(3e-2)
# the field's defaults hide a number that is not read (a learning rate of 1, a first moment that does not decay)
NUMBERS: dict[str, dict[str, float]] = {
    "fedprox": {"mu": 2.0},
    "fedavgm": {"momentum": 0.6, "learning_rate": 0.7},
    "fedadam": {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
    "fedyogi": {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
    "fedadagrad": {"learning_rate": 0.02, "beta1": 0.3, "tau": 0.01},
}


@cache
def compiled(name, chunk=1, numbers=()):
    algorithm = small.algorithm(name, Mapper(CLIENTS, chunk), numbers=dict(numbers) or NUMBERS.get(name))
    return algorithm, jax.jit(algorithm.round)


def play(name, cohorts, chunk=1, **numbers):
    """The state after a round with each cohort."""
    algorithm, step = compiled(name, chunk, tuple(numbers.items()))
    state = algorithm.init(small.adapter())
    metrics: Any = None
    for cohort in cohorts:
        state, metrics = step(state, small.LM, RoundBatch(small.corpus(), cohort, RATE))
    return state, metrics


QUICK = ("fedavg",)
every_algorithm = pytest.mark.parametrize(
    "name", [*QUICK, *(small.slow(name) for name in ALGORITHMS if name not in QUICK)]
)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("fedavg", {}),
        small.slow("scaffold", {}),
        small.slow("fedprox", {"mu": 0.0}),
        small.slow("fedavgm", {"momentum": 0.9, "learning_rate": 1.0}),
    ],
)
def test_one_client_is_centralised_training(name, numbers):
    state, _ = play(name, [small.cohort([3])], **numbers)
    batches = take(small.corpus(), small.cohort([3]).rows[0])
    alone, _ = jax.jit(train, static_argnames="trainer")(small.LM, small.adapter(), batches, RATE, trainer=small.SGD)
    small.assert_trees_close(state.adapter, alone)
    assert small.distance(state.adapter, small.adapter()) > 1e-4


@every_algorithm
@pytest.mark.parametrize("chunk", [small.slow(2), 4, small.slow(5)])
def test_chunked_and_vmapped_equal_looped(name, chunk):
    """Chunks of 1 are a loop; 5 is the whole cohort under one vmap; 2 and 4 do not divide it, so clients are padded."""
    cohorts = [small.cohort([0, 2, 3, 4, 5]), small.cohort([5, 1, 0, 2, 4], seed=1)]
    looped, metrics = play(name, cohorts)
    chunked, same = play(name, cohorts, chunk)
    small.assert_trees_close(looped, chunked)
    assert float(metrics["train_loss"]) == pytest.approx(float(same["train_loss"]), rel=1e-5)
    assert int(same["clients"]) == 5


@every_algorithm
def test_permuting_clients_changes_nothing(name):
    small.assert_trees_close(play(name, [small.cohort([0, 2, 4])])[0], play(name, [small.cohort([4, 0, 2])])[0])


@every_algorithm
def test_weight_zero_is_absent(name):
    with_ghost = play(name, [small.cohort([0, 2, 4], weight=[1.0, 0.0, 5.0])])[0]
    small.assert_trees_close(with_ghost, play(name, [small.cohort([0, 4])])[0])


@every_algorithm
def test_all_weights_zero_changes_nothing(name):
    """In a later round, too, when a server has momentum."""
    there, nobody = small.cohort([0, 2]), small.cohort([0, 2], weight=[0.0, 0.0])
    before, _ = play(name, [there])
    state, metrics = play(name, [there, nobody])
    small.assert_trees_close(state, before, atol=0)
    assert int(metrics["clients"]) == 0 and np.isnan(float(metrics["train_loss"])), "no loss, not one of 0"
    assert small.distance(state.adapter, small.adapter()) > 1e-4


@every_algorithm
def test_identical_clients_are_that_client(name):
    one = small.cohort([3])
    rows = jnp.repeat(one.rows, 3, axis=0)
    three = one._replace(client=jnp.array([3, 4, 5]), rows=rows, weight=jnp.array([1.0, 2.0, 7.0]))
    small.assert_trees_close(play(name, [three])[0].adapter, play(name, [one])[0].adapter)


def test_scaffold_with_zero_control_variates_is_fedavg():
    """The first round; the second one differs, or the control variates would do nothing."""
    first, second = small.cohort([0, 2, 4]), small.cohort([0, 1, 5], seed=1)
    small.assert_trees_close(play("scaffold", [first])[0].adapter, play("fedavg", [first])[0].adapter)
    both = [play(name, [first, second])[0].adapter for name in ("scaffold", "fedavg")]
    assert small.distance(*both) > 1e-4


ROUNDS = [small.cohort([0, 2, 4]), small.cohort([2, 4, 5], seed=1)]


def test_fedprox_of_no_strength_is_fedavg():
    nothing, something = (play("fedprox", ROUNDS, mu=mu)[0].adapter for mu in (0.0, 2.0))
    expected = play("fedavg", ROUNDS)[0].adapter
    small.assert_trees_close(nothing, expected)
    assert small.distance(something, expected) > 1e-4


@pytest.mark.parametrize("server", ["fedavgm", small.slow("sgd")])
def test_a_server_that_takes_the_mean_as_it_is_is_fedavg(server):
    expected = play("fedavg", ROUNDS)[0].adapter
    if server == "fedavgm":
        state, _ = play("fedavgm", ROUNDS, momentum=0.0, learning_rate=1.0)
    else:
        algorithm = fedopt(small.SGD, weighted_mean(), Mapper(CLIENTS), optax.sgd, learning_rate=1.0)
        step = jax.jit(algorithm.round)
        state = algorithm.init(small.adapter())
        for cohort in ROUNDS:
            state, _ = step(state, small.LM, RoundBatch(small.corpus(), cohort, RATE))
    small.assert_trees_close(state.adapter, expected, atol=0)


# ---- published formulas, in NumPy on one flat vector of float64; the loss's gradient alone is asked of jax


@cache
def flat_problem():
    """(x, gradient(y, batch)) of the small decoder."""
    flat, unflatten = jax.flatten_util.ravel_pytree(small.adapter())

    @jax.jit
    def gradient(y, rows):
        def loss(adapter):
            return sft(small.LM, adapter, take(small.corpus(), rows)).mean()

        return jax.flatten_util.ravel_pytree(jax.grad(loss)(unflatten(y)))[0]

    return np.asarray(flat, np.float64), lambda y, rows: np.asarray(gradient(jnp.float32(y), rows), np.float64)


def local(x, steps, add):
    """K steps of SGD from x, whose direction is the gradient plus `add(y)`."""
    _, gradient = flat_problem()
    y = x.copy()
    for rows in steps:
        y = y - float(RATE) * (gradient(y, rows) + add(y))
    return y


def twin(name, cohorts, *, mu=0.0, momentum=0.0, learning_rate=1.0, beta1=0.0, beta2=0.0, tau=1.0):
    """x after a round with each cohort, as the papers write it."""
    x, _ = flat_problem()
    control = {i: np.zeros_like(x) for i in range(CLIENTS)}
    c, m, v = np.zeros_like(x), np.zeros_like(x), np.full_like(x, tau**2)
    for cohort in cohorts:
        deltas, weights, change = [], np.asarray(cohort.weight, np.float64), np.zeros_like(x)
        for i, steps in zip(cohort.client.tolist(), cohort.rows, strict=True):
            if name == "scaffold":
                y = local(x, steps, lambda y, drift=c - control[i]: drift)
                fresh = control[i] - c + (x - y) / (len(steps) * float(RATE))
                change = change + fresh - control[i]
                control[i] = fresh
            else:
                y = local(x, steps, lambda y, x=x: mu * (y - x))
            deltas.append(y - x)
        c = c + change / CLIENTS
        delta = np.average(deltas, axis=0, weights=weights)
        if name in ("fedavg", "scaffold", "fedprox"):
            x = x + delta
        elif name == "fedavgm":
            v = delta + momentum * (v if cohort is not cohorts[0] else 0)
            x = x + learning_rate * v
        else:
            m = beta1 * m + (1 - beta1) * delta
            if name == "fedadam":
                v = beta2 * v + (1 - beta2) * delta**2
            elif name == "fedyogi":
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            elif name == "fedadagrad":
                v = v + delta**2
            x = x + learning_rate * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize(
    "name", [name if name in ("scaffold", "fedprox", "fedyogi") else small.slow(name) for name in ALGORITHMS]
)
def test_every_algorithm_follows_its_published_formula(name):
    state, _ = play(name, ROUNDS)
    got, _ = jax.flatten_util.ravel_pytree(state.adapter)
    expected = twin(name, ROUNDS, **NUMBERS.get(name, {}))
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=1e-5)
    assert np.abs(expected - flat_problem()[0]).max() > 1e-4


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_optimizer_is_its_formula_on_random_trees(name):
    """Four steps of large and small deltas: Yogi's sign is seen both ways."""
    rng = np.random.default_rng(3)
    numbers = NUMBERS[name]
    x = {"a": rng.normal(size=(3, 2)), "b": {"c": rng.normal(size=4)}}
    server = SERVERS[name](**numbers)
    got = jax.tree.map(jnp.float32, x)
    state = server.init(got)
    m = jax.tree.map(np.zeros_like, x)
    v = jax.tree.map(lambda leaf: np.full_like(leaf, numbers.get("tau", 0.0) ** 2), x)
    rate, beta1, beta2 = numbers["learning_rate"], numbers.get("beta1", 0.0), numbers.get("beta2", 0.0)
    for scale in (1.0, 0.1, 2.0, 1e-3):
        delta = jax.tree.map(lambda leaf, scale=scale: scale * rng.normal(size=leaf.shape), x)
        step, state = server.update(jax.tree.map(lambda d: jnp.float32(-d), delta), state, got)
        got = trees.add(got, step)
        if name == "fedavgm":
            v = jax.tree.map(lambda v, d: numbers["momentum"] * v + d, v, delta)
            x = jax.tree.map(lambda x, v: x + rate * v, x, v)
            continue
        second = {
            "fedadam": lambda v, d: beta2 * v + (1 - beta2) * d * d,
            "fedyogi": lambda v, d: np.where(v > d * d, v - (1 - beta2) * d * d, v + (1 - beta2) * d * d),
            "fedadagrad": lambda v, d: v + d * d,
        }[name]
        m = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, m, delta)
        v = jax.tree.map(second, v, delta)
        x = jax.tree.map(lambda x, m, v: x + rate * m / (np.sqrt(v) + numbers["tau"]), x, m, v)
    small.assert_trees_close(got, x)


def test_fedadam_by_hand():
    """One coordinate, one step: m = 0.1 * 2; v = 0.99 * 0.25 + 0.01 * 4 = 0.2875; x = 3 m / (0.536190 + 0.5)."""
    server = SERVERS["fedadam"](learning_rate=3.0, beta1=0.9, beta2=0.99, tau=0.5)
    step, _ = server.update(jnp.float32(-2.0), server.init(jnp.float32(0.0)))
    assert float(jnp.asarray(step)) == pytest.approx(0.579044, abs=1e-5)


def test_scaffold_follows_its_formulas():
    """c_i+ = c_i - c - delta_i / (K lr) of those who took part, c += sum of changes / clients, in two rounds."""
    states = [play("scaffold", ROUNDS[:count])[0] for count in (1, 2)]
    delta = trees.sub(states[0].adapter, small.adapter())
    first = states[0].memory
    small.assert_trees_close(jax.tree.map(lambda c: c.sum(axis=0) / CLIENTS, first.clients), first.server)
    weighted = jax.tree.map(lambda c: (1 * c[0] + 3 * c[2] + 5 * c[4]) / 9, first.clients)
    small.assert_trees_close(weighted, trees.scale(-1 / (3 * RATE), delta), atol=1e-5)
    for absent in (1, 3, 5):
        assert all(not jnp.any(leaf[absent]) for leaf in jax.tree.leaves(first.clients))
    second = states[1].memory
    small.assert_trees_close(jax.tree.map(lambda c: c.sum(axis=0) / CLIENTS, second.clients), second.server, atol=1e-5)
    for before, after in zip(jax.tree.leaves(first.clients), jax.tree.leaves(second.clients), strict=True):
        np.testing.assert_array_equal(before[0], after[0])


# ---- absence, wire, compilations


@every_algorithm
def test_a_diverging_client_is_left_out(name):
    """One client's data lead to NaN (through a token whose embedding is NaN): the others' round is unharmed."""
    model = Decoder(replace(small.CONFIG, tie_word_embeddings=False), small.MODEL.lora)
    base, bad = init_base(model.config, jax.random.key(0)), small.VOCAB - 1
    base["embed_tokens"] = base["embed_tokens"].at[bad].set(jnp.nan)
    clean = jnp.where(small.corpus().tokens == bad, 1, small.corpus().tokens)
    corpus = small.corpus()._replace(tokens=clean.at[7, 1].set(bad))
    cohort = small.cohort([0, 1, 2])
    cohort = cohort._replace(rows=jnp.where(cohort.rows == 7, 8, cohort.rows).at[1, 1, 0].set(7))
    algorithm = small.algorithm(name, Mapper(CLIENTS))
    start, step = algorithm.init(small.adapter()), jax.jit(algorithm.round)
    state, metrics = step(start, LM(model, base), RoundBatch(corpus, cohort, RATE))
    assert int(metrics["diverged"]) == 1 and int(metrics["clients"]) == 2
    absent = cohort._replace(weight=cohort.weight.at[1].set(0.0))
    small.assert_trees_close(state, step(start, LM(model, base), RoundBatch(corpus, absent, RATE))[0])
    assert bool(trees.all_finite(state.adapter)) and small.distance(state.adapter, small.adapter()) > 1e-5


@every_algorithm
def test_learning_rate_cohort_and_numbers_compile_once(name):
    """The algorithm's numbers, too: algorithms that differ in them alone are equal, and none of them is forgotten."""
    section = ALGORITHMS[name].section
    step = jax.jit(lambda algorithm, *rest: algorithm.round(*rest), static_argnums=0)
    ends = []
    for i, rate in enumerate((1e-2, 1e-3, 0.5)):
        numbers = {key: 0.9 * value + 0.01 * i for key, value in NUMBERS.get(name, {}).items()} if section else {}
        algorithm = small.algorithm(name, Mapper(CLIENTS, 2), numbers=numbers)
        batch = RoundBatch(small.corpus(), small.cohort([i, 3], seed=i), jnp.float32(rate))
        ends.append(step(algorithm, algorithm.init(small.adapter()), small.LM, batch))
    assert small.compilations(step) == 1


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in SERVERS for key in NUMBERS[name]])
def test_every_number_of_a_server_is_read(name, key):
    """Half of it gives another second step."""
    steps = []
    for numbers in (NUMBERS[name], NUMBERS[name] | {key: 0.5 * NUMBERS[name][key]}):
        server = SERVERS[name](**numbers)
        state, step = server.init(jnp.float32(0.0)), None
        for delta in (1.0, 0.5):
            step, state = server.update(jnp.float32(-delta), state)
        steps.append(float(jnp.asarray(step)))
    assert abs(steps[0] - steps[1]) > 1e-6


def test_the_wire_carries_only_what_is_listed():
    batches = take(small.corpus(), small.cohort([1]).rows[0])
    update = local_update(small.SGD, small.LM, small.adapter(), Task(batches, jnp.float32(3), RATE))
    assert ClientUpdate._fields == ("delta", "weight", "metrics")
    assert jax.tree.structure(update.delta) == jax.tree.structure(small.adapter())
    assert set(update.metrics) == {"loss_total", "loss_weight", "diverged"}
    assert all(value.shape == () for value in update.metrics.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_constructors_agree_on_their_arguments(name):
    """local, aggregator, mapper; then the keys of the section of that name, and nothing else."""
    row = ALGORITHMS[name]
    parameters = list(inspect.signature(row.constructor).parameters)
    assert parameters[:3] == ["local", "aggregator", "mapper"]
    keys = set(getattr(ExperimentConfig(), row.section).__class__.model_fields) if row.section else set()
    if name in SERVERS:
        assert set(inspect.signature(SERVERS[name]).parameters) == keys
    else:
        assert set(parameters[3:]) == keys


# ---- every row of every table, by a config


def literals(key: str) -> set[str]:
    return set(FederatedConfig.model_json_schema()["properties"][key]["enum"])


TABLES: dict[str, Any] = {
    "algorithm": ALGORITHMS, "aggregator": AGGREGATORS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES,
}  # fmt: skip
SWIFT = {"fedprox"}


@pytest.mark.parametrize("key", TABLES)
def test_a_config_may_name_every_row(key):
    assert literals(key) == set(TABLES[key])


@pytest.mark.parametrize(
    ("key", "name"),
    [(key, name) if name in SWIFT else small.slow(key, name) for key, table in TABLES.items() for name in table],
)
def test_every_row_goes_through_a_round(key, name):
    """The whole path of a config: two rounds by the schedule, of decayed weights, with the section's numbers."""
    given = {"clients": 4, "cohort": 3, "rounds": 2, "weight_decay": 0.1, "learning_rate": 0.01, key: name}
    config = ExperimentConfig.model_validate({"federated": given})
    algorithm = make_algorithm(config.federated, dict(config), make_mesh())
    state = algorithm.init(small.adapter())
    for t in range(2):
        rate = jnp.float32(learning_rate(config.federated, t))
        before = state
        batch = RoundBatch(small.corpus(), small.cohort([0, 1, 3], seed=t), rate)
        state, metrics = jax.jit(algorithm.round)(state, small.LM, batch)
        assert bool(trees.all_finite(state.adapter)) and int(metrics["clients"]) == 3
        assert small.distance(state.adapter, before.adapter) > 1e-6
        assert float(metrics["delta_norm"]) > 1e-5


def test_the_default_config_trains_as_everything_else_does():
    """The guard and constitutional AI take `PLAIN`; so do clients, unless a config says otherwise."""
    config, mesh = ExperimentConfig(), small.mesh(1)
    algorithm = make_algorithm(config.federated, dict(config), mesh)
    mapper = Mapper(config.federated.clients, 1, laid_out(mesh, False))
    same = ALGORITHMS["fedavg"].constructor(PLAIN, weighted_mean(), mapper)
    assert Trainer() == PLAIN
    assert algorithm == same


@pytest.mark.parametrize(
    ("cohort", "batch_size", "fsdp", "per_chunk", "expected"),
    [
        (16, 16, 1, 1, (8, False)),  # two chunks of eight: every device has a client
        (5, 16, 1, 1, (1, True)),  # three devices would be idle: two rows of each client's steps on each
        (5, 16, 1, 2, (2, True)),
        (5, 12, 1, 1, (8, False)),  # eight devices divide no step of twelve rows
        (5, 16, 8, 1, (1, False)),  # one place for clients: it divides every cohort
        (5, 16, 4, 1, (1, True)),
        (7, 16, 8, 5, (4, False)),  # two chunks of four, not of five, whose last would have three places empty
        (2, 16, 8, 5, (2, False)),  # no more places than clients
        (16, 16, 8, 5, (4, False)),
        (20, 16, 4, 12, (10, False)),  # two places for clients: twelve are six each, ten clients each are two of five
    ],
)
def test_devices_that_would_be_idle_share_the_rows_of_clients_in_turn(cohort, batch_size, fsdp, per_chunk, expected):
    federated = FederatedConfig(clients=20, cohort=cohort, batch_size=batch_size, clients_per_chunk=per_chunk)
    mesh = AbstractMesh((8 // fsdp, fsdp, 1), AXES)
    assert (chunk_of_clients(federated, mesh), in_turn(federated, mesh)) == expected


@pytest.mark.parametrize(("chunk", "shape"), ((1, "3,3"), (2, "2,3,3")))
def test_a_client_by_itself_is_not_mapped(chunk, shape):
    """With an axis of size 1 in front of all arrays, XLA's CPU backend sums rows far more slowly."""
    mapped = Mapper(4, chunk)
    rows = jnp.arange(60.0).reshape(4, 3, 5)
    traced = jax.make_jaxpr(lambda rows: mapped(lambda x: x @ x.T, rows))(rows)
    assert re.findall(r":f32\[([\d,]+)\] = dot_general", str(traced)) == [shape]
    again = jax.make_jaxpr(lambda rows: mapped.spread(lambda x: x @ x.T, rows))(rows)
    assert re.findall(r":f32\[([\d,]+)\] = dot_general", str(again)) == [shape]
    np.testing.assert_allclose(mapped(lambda x: x @ x.T, rows), rows @ rows.swapaxes(1, 2), rtol=1e-6)


def test_nor_is_one_whose_delta_is_added_up():
    def sent(x):
        return ClientUpdate({"x": x @ x.T}, jnp.float32(1.0), {})

    rows = jnp.ones((HELD_TOGETHER + 1, 3, 5))
    traced = jax.make_jaxpr(lambda rows: Mapper(len(rows), adds_up=True).updates(sent, rows).delta["x"])(rows)
    assert traced.out_avals[0].shape == (1, 3, 3)
    assert re.findall(r":f32\[([\d,]+)\] = dot_general", str(traced)) == ["3,3"]
