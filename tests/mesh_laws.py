"""Laws of the mesh: several devices compute what one does, by all-reduces alone where clients are all that is split.

Tests hold them on two devices, in their own process; `programs/on_eight_devices.py` on eight.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_rai.aliases import PyTree
from fedjax_rai.cai.align import align, begin
from fedjax_rai.cai.options import METHODS, Numbers
from fedjax_rai.cai.programs import OnlineSource, generate_rollout, pool_of_rollout
from fedjax_rai.cai.revise import RolloutBatch
from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper, laid_out, stacks
from fedjax_rai.mesh import base_shardings, over_rows, replicated, split_rows
from fedjax_rai.model.decoder import LM, abstract_base
from fedjax_rai.safety.form import VerdictIds
from fedjax_rai.safety.guard import first_token_score
from fedjax_rai.train import losses
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.losses import answer_logps, sigmoid
from tests import small
from tests.cai.common import REQUESTS, SPEAKER, on_device, options

RATE = 3e-2
BY_CLIENTS = partial(laid_out, in_turn=False)
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


class Watch:
    """`layout` of a mesh, which notes where what it is put on lies, in the stage that is named last."""

    def __init__(self, layout: Callable[[Mesh], Callable[[PyTree], PyTree]]) -> None:
        self.layout = layout
        self.stage = ""
        self.places: dict[str, list[Any]] = {}

    def __call__(self, mesh: Mesh) -> Any:
        constrain = self.layout(mesh)

        def noted(tree: PyTree) -> PyTree:
            tree = constrain(tree)
            for leaf in jax.tree.leaves(tree):
                if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    jax.debug.inspect_array_sharding(leaf, callback=self.places.setdefault(self.stage, []).append)
            return tree

        return noted

    def check(self, *stages: str) -> None:
        """That all was laid out over the clients in these stages, and nothing in others."""
        jax.effects_barrier()
        assert set(self.places) == set(stages), self.places
        for name, places in self.places.items():
            assert places, name
            assert {place.spec[0] for place in places} == {"clients"}, (name, places)  # the only axis here


def check_equal(
    found: dict[str, PyTree], expected: dict[str, PyTree], exact: tuple[str, ...] = (), atol: float = 1e-6
) -> None:
    """Trees by name; those named `exact` in every bit, the others to within rounding."""
    assert found.keys() == expected.keys()
    for name, tree in expected.items():
        assert jax.tree.structure(found[name]) == jax.tree.structure(tree)
        for one, other in zip(jax.tree.leaves(found[name]), jax.tree.leaves(tree), strict=True):
            if name in exact:
                np.testing.assert_array_equal(one, other, err_msg=name)
            else:
                np.testing.assert_allclose(one, other, err_msg=name, atol=atol, rtol=1e-5)


def placed_base(mesh: Mesh) -> LM:
    """The small decoder, its base where it lies on that mesh."""
    base = jax.device_put(small.BASE, base_shardings(mesh, abstract_base(small.CONFIG)))
    if mesh.shape["fsdp"] > 1:
        assert base["embed_tokens"].sharding.spec == P("tensor", "fsdp"), base["embed_tokens"].sharding
    return LM(small.MODEL, base)


def begin_rounds(mesh: Mesh, name: str, clients: Sequence[int], chunk: int, watch: Watch) -> tuple[Any, ...]:
    """(round, state, lm, batch): of the small fake, all on that mesh, so many clients at once."""
    lm = placed_base(mesh)
    algorithm = small.algorithm(name, Mapper(8, chunk, watch(mesh), stacks(mesh)))
    batch = RoundBatch(small.corpus(), small.cohort([*clients]), jnp.float32(RATE))
    adapter, batch = jax.device_put((small.adapter(), batch), replicated(mesh))
    state = algorithm.init(adapter)
    for stack in jax.tree.leaves(algorithm.spread(state)):
        assert mesh.size == 1 or stack.addressable_shards[0].data.size == stack.size // mesh.size
    return jax.jit(algorithm.round), state, lm, batch


def rounds(mesh: Mesh, name: str) -> dict[str, PyTree]:
    """What two rounds leave of seven clients of eight, as many at once as the mesh has places for."""
    across, watch = mesh.shape["clients"], Watch(BY_CLIENTS)
    program, state, lm, batch = begin_rounds(mesh, name, [0, 1, 2, 3, 4, 5, 7], across, watch)
    metrics: Any = None
    for _ in range(2):
        state, metrics = program(state, lm, batch)
    if across > 1:
        watch.check("")
    assert small.distance(state.adapter, small.adapter()) > 1e-3
    # Control variates are deltas divided by local steps times learning rate, and so is their rounding.
    memory = jax.tree.map(lambda control: 3 * RATE * control, state.memory)
    return {"adapter": state.adapter, "memory": memory, "loss": metrics["train_loss"]}


def check_rounds(devices: int, name: str, fsdp: int = 1) -> None:
    """Rounds are those on one device."""
    check_equal(rounds(small.mesh(devices, fsdp), name), rounds(small.mesh(1), name))


def check_rounds_in_turn(devices: int, fsdp: int = 1) -> None:
    """A round of clients that follow one another, whose batches the devices share, is that on one device."""
    found = []
    for mesh in (small.mesh(devices, fsdp), small.mesh(1)):
        program, *arguments = begin_rounds(mesh, "fedavg", [0, 4, 7], 1, Watch(partial(laid_out, in_turn=True)))
        state, metrics = program(*arguments)
        found.append({"adapter": state.adapter, "loss": metrics["train_loss"]})
    assert small.distance(found[0]["adapter"], small.adapter()) > 1e-3
    check_equal(*found)


def check_stacks(devices: int) -> None:
    """Of further clients' control variates a device gets, and gives back, no more than its part; none while it trains.

    So many clients are trained that all have a place: adapters are sent in parts, or one at a time.
    """
    mesh = small.mesh(devices)
    lm, adapter = placed_base(mesh), jax.device_put(small.adapter(), replicated(mesh))
    cohort = small.cohort([*range(devices)])
    batch = jax.device_put(RoundBatch(small.corpus(), cohort, jnp.float32(RATE)), replicated(mesh))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(adapter))
    found = []
    for clients in (16, 64):
        algorithm = small.algorithm("scaffold", Mapper(clients, devices, laid_out(mesh, False), stacks(mesh)))
        program = jax.jit(algorithm.round).lower(algorithm.init(adapter), lm, batch).compile()
        state, _ = program.output_shardings
        assert all(lie.is_fully_replicated for lie in jax.tree.leaves((state.adapter, state.memory.server)))
        found.append(program.memory_analysis())
    few, many = found
    for part in ("argument_size_in_bytes", "output_size_in_bytes"):
        assert getattr(many, part) - getattr(few, part) == 48 * size // devices
    assert many.temp_size_in_bytes < few.temp_size_in_bytes + size


def check_collectives(devices: int) -> None:
    """All clients at once, and nothing else split: what devices send each other are sums."""
    program, *arguments = begin_rounds(small.mesh(devices), "fedavg", range(8), 8, Watch(BY_CLIENTS))
    text = program.lower(*arguments).compile().as_text()
    assert set(COLLECTIVE.findall(text)) == {"all-reduce"}, COLLECTIVE.findall(text)


def check_scoring(devices: int, fsdp: int = 1) -> None:
    """p(unsafe) of the next token, and log p of answers."""
    prompts = Prompts(*map(jnp.asarray, pad_left([[3, 1, 4, 1, 5], [9, 2], [6], [5, 3, 5]], 0)))
    verdicts = VerdictIds(np.array([7, 2, 11, 5, 3]), np.array([0, 0, 1, 1, 2]), np.array(False))
    logps = jax.jit(answer_logps)
    found = []
    for mesh in (small.mesh(devices, fsdp), small.mesh(1)):
        lm = placed_base(mesh)
        adapter = jax.device_put(small.adapter(), replicated(mesh))
        scores = first_token_score(lm, adapter, prompts.tokens, prompts.valid, verdicts)
        found.append({"verdicts": scores, "logps": logps(lm, adapter, small.corpus(6))})
    check_equal(*found)
    scores = found[0]["verdicts"].scores
    assert len(set(np.asarray(scores).tolist())) == 4, scores


def check_slices(devices: int, fsdp: int) -> None:
    """Likelihood and gradient where logits are held for one position of every row at a time."""
    rows = 8
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "SLICE_TOKENS", 1)
        patch.setattr(losses, "SLICE_LOGITS", 1)
        assert losses.positions_at_once(rows, small.LENGTH - 1, small.VOCAB, devices) == 1
        for mesh in (small.mesh(devices, fsdp), small.mesh(1)):
            lm = placed_base(mesh)
            adapter, texts = jax.device_put((small.adapter(), small.corpus(rows)), replicated(mesh))

            def loss(adapter: PyTree, lm: LM = lm, texts: Any = texts) -> Any:
                return losses.sft(lm, adapter, split_rows(texts, lm.base), devices=devices).mean()

            value, gradient = jax.jit(jax.value_and_grad(loss))(adapter)
            found.append({"loss": value, "gradient": gradient})
    check_equal(*found)


def check_generation(devices: int, fsdp: int = 1) -> None:
    """Every token of greedy answers and of sampled ones, and whether they ended."""
    prompts = Prompts(*map(jnp.asarray, pad_left([[3, 1, 4, 1, 5], [9, 2], [6], [5, 3, 5]], 0)))
    keys = jax.random.split(jax.random.key(0), 4)
    found = []
    for mesh in (small.mesh(devices, fsdp), small.mesh(1)):
        lm = placed_base(mesh)
        adapter = jax.device_put(small.adapter(), replicated(mesh))
        answers = {}
        for name, heat in (("greedy", 0.0), ("sampled", 1.0)):
            decoding = Decoding(Sampling(jnp.float32(heat)), jnp.array([0]), 7)
            answers[name] = generate(lm, adapter, prompts, keys, decoding)
        found.append(answers)
    check_equal(*found, exact=("greedy", "sampled"))
    assert (np.asarray(found[0]["greedy"].tokens) != found[0]["sampled"].tokens).any()


def phase(mesh: Mesh, revisions: int) -> dict[str, PyTree]:
    """A phase of constitutional AI, greedy and sampled: what is answered, the pool of it, and training on that."""
    rows = 12  # which the chunk does not divide
    prompts = on_device([[1 + row, 3, 5 * row % 23, 7][: 2 + row % 3] for row in range(rows)])
    principles = jnp.arange(rows * revisions, dtype=jnp.int32).reshape(rows, revisions) % 3
    keys = jax.random.split(jax.random.key(0), rows)
    batch = RolloutBatch(jnp.arange(rows), prompts, None, principles, keys)
    how = options(mesh=mesh, chunk=8, batch_size=8, objective=METHODS["sft+dpo"](sigmoid), trainer=small.SGD)
    lm, adapter, replay = jax.device_put((SPEAKER, small.adapter(), small.corpus(4)), replicated(mesh))
    numbers = Numbers(jnp.int32(4), jnp.float32(RATE), jnp.float32(0.3), jnp.float32(0.3), {})
    watch, found = Watch(over_rows), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedjax_rai.cai.options.over_rows", watch)
        for name, heat in (("greedy", 0.0), ("sampled", 1.0)):
            watch.stage = "generating"
            rollout = generate_rollout(lm, how, adapter, batch, REQUESTS, Sampling(jnp.float32(heat)))
            source = OnlineSource(batch, REQUESTS, replay)
            pool, metrics = pool_of_rollout(lm, how, adapter, source, rollout)
            watch.stage = "training"
            end = align(lm, how, begin(adapter, small.SGD), pool, numbers, jax.random.key(1))
            assert small.distance(end.state.adapter, adapter) > 1e-3
            texts = pool._replace(reference_logps=None)
            found |= {f"answers {name}": rollout, f"answers in the pool {name}": texts}
            found |= {f"reference {name}": pool.reference_logps, f"metrics {name}": metrics, f"end {name}": end}
    if mesh.shape["clients"] > 1:
        watch.check("generating", "training")
    return found


def check_phase(devices: int, revisions: int) -> None:
    """Every token that is generated, the pool that it gives, and the adapters trained on it."""
    several, one = phase(small.mesh(devices), revisions), phase(small.mesh(1), revisions)
    exact = tuple(name for name in one if name.startswith("answers"))
    check_equal(several, one, exact, atol=1e-5)
    greedy, sampled = (one[f"answers {name}"] for name in ("greedy", "sampled"))
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(greedy), jax.tree.leaves(sampled), strict=True))
