"""Every stage on eight devices: a device computes an eighth, and where clients alone are split no activation travels.

What is sent are sums (all-reduces), and of other things no more than the tokens of a batch; of a base in eight parts no
more than a kernel of one layer at once. A quarter of one device's temporary memory is enough, where a device has no
whole client of its own.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Adapter
from fedjax_rai.cai.align import align, begin, make_pool
from fedjax_rai.cai.options import METHODS, Numbers
from fedjax_rai.cai.programs import generate_rollout, pool_with_reference
from fedjax_rai.cai.revise import Requests, RolloutBatch
from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.evals import choice, drift
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.mesh import AXES, base_shardings, make_mesh, replicated
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, init_base
from fedjax_rai.model.lora import Lora, init_adapter
from fedjax_rai.safety import guard
from fedjax_rai.safety.form import two_verdicts
from fedjax_rai.train import queue
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.losses import sigmoid
from fedjax_rai.train.step import start
from tests.cai.common import options

SENT = re.compile(r"= (\(?[a-z0-9]+\[.*?) (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"[a-z0-9]+\[([0-9,]+)\]")
ROWS, LENGTH, STEPS = 16, 128, 2
QUEUED = 8 * 8  # rows of a queue
MOST = 1.15  # eighths of what one device computes: optimizers, too, are computed by each
CONFIG = DecoderConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=2304,  # wider than a batch has tokens
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
    kinds=(LayerKind(plain_rope(8)),),
    tie_word_embeddings=True,
)
LORA = Lora(CONFIG.targets, rank=2, alpha=2.0)
LARGEST_KERNEL = 64 * 2 * 2304  # gate and up
NUMBERS = Numbers(jnp.int32(2), jnp.float32(0.1), jnp.float32(0.3), jnp.float32(0.1), {})


class Placed(NamedTuple):
    """The model on a mesh, and texts."""

    mesh: Any
    lm: LM
    adapter: Adapter
    texts: Examples

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.texts.tokens, self.texts.valid)


def placed(mesh: Any) -> Placed:
    base = jax.device_put(init_base(CONFIG, jax.random.key(0)), base_shardings(mesh, abstract_base(CONFIG)))
    adapter = init_adapter(CONFIG, LORA, jax.random.key(1))
    tokens = np.random.default_rng(0).integers(1, 256, (ROWS, LENGTH)).astype(np.int32)
    texts = Examples(*map(jnp.asarray, (tokens, tokens > 128, np.ones_like(tokens))))
    adapter, texts = jax.device_put((adapter, texts), replicated(mesh))
    return Placed(mesh, LM(Decoder(CONFIG, LORA), base), adapter, texts)


def a_round(on: Placed, cohort: int, micro_batch: int | None = None) -> Any:
    federated = FederatedConfig(clients=16, cohort=cohort, batch_size=ROWS, micro_batch=micro_batch)
    algorithm = make_algorithm(federated, {}, on.mesh)
    rows = np.zeros((cohort, STEPS, ROWS), np.int32)
    clients = Cohort(jnp.arange(cohort), jnp.asarray(rows), jnp.ones(cohort))
    batch = jax.device_put(RoundBatch(on.texts, clients, jnp.float32(0.1)), replicated(on.mesh))
    state = jax.device_put(algorithm.init(on.adapter), replicated(on.mesh))
    return jax.jit(algorithm.round).lower(state, on.lm, batch)


def stages(on: Placed) -> Iterator[tuple[str, Any]]:
    """(name, lowered program) of all that computes with the model."""
    lm, adapter, texts, prompts = on.lm, on.adapter, on.texts, on.prompts
    rows = np.arange(STEPS * ROWS, dtype=np.int32).reshape(STEPS, ROWS) % ROWS
    how = options(mesh=on.mesh, batch_size=ROWS, objective=METHODS["sft+dpo"](sigmoid), end_ids=(0,), max_new=4)
    pool = make_pool(texts, texts, texts, jnp.ones(ROWS, bool), jnp.ones(ROWS, bool))
    scored = pool._replace(reference_logps=(jnp.zeros(ROWS), jnp.zeros(ROWS)))
    keys = jax.random.split(jax.random.key(2), ROWS)
    decoding = Decoding(Sampling(jnp.float32(0)), jnp.array([0]), 4)
    data = guard.FitData(texts, jnp.asarray(rows), jnp.float32(0.1))
    yield "a round of eight", a_round(on, 8)
    yield "a round of sixteen", a_round(on, 16)
    yield "a round of five", a_round(on, 5)
    yield "a round of five by parts", a_round(on, 5, micro_batch=8)
    yield "guard, fitting", guard.fit_steps.lower(lm, start(adapter), data, np.int32(0), np.int32(STEPS))
    yield "guard, scoring", guard.first_token_score.lower(lm, adapter, *prompts, two_verdicts(1, 2))
    yield "answers", generate.lower(lm, adapter, prompts, keys, decoding)
    yield "conversations", conversations(on, "apart")
    yield "conversations, the adapter merged", conversations(on, "merged")
    yield "a queue", a_queue(on)
    yield "a queue of conversations", a_queue(on, further=1)
    yield "choices", choice._answer_logps.lower(lm, adapter, texts)
    yield "drift", drift._answer_divergences.lower(lm, adapter, texts)
    yield "reference", pool_with_reference.lower(lm, how, adapter, pool)
    yield "training on revisions", align.lower(lm, how, begin(adapter), scored, NUMBERS, jax.random.key(3))


def conversations(on: Placed, answering: str) -> Any:
    """Respond, critique, revise: a row a conversation."""
    how = options(mesh=on.mesh, chunk=ROWS, end_ids=(0,), max_new=4)
    request = Prompts(jnp.ones((3, 16), jnp.int32), jnp.ones((3, 16), bool))
    keys = jax.random.split(jax.random.key(2), ROWS)
    batch = RolloutBatch(jnp.arange(ROWS), on.prompts, None, jnp.zeros((ROWS, 1), jnp.int32), keys)
    lm = LM(Decoder(replace(CONFIG, answering=answering), LORA), on.lm.base)
    sampling = Sampling(jnp.float32(1))
    return generate_rollout.lower(lm, how, on.adapter, batch, Requests(request, request), sampling)


def a_queue(on: Placed, further: int = 0) -> Any:
    """An eighth of the rows is refilled at once, and all devices take part in that."""
    request = Prompts(jnp.ones((3, 16), jnp.int32), jnp.ones((3, 16), bool))
    follow_ups = queue.FollowUps(request, np.zeros((QUEUED, further), np.int32)) if further else None
    prompts = Prompts(*(jnp.resize(leaf, (QUEUED, LENGTH)) for leaf in on.prompts))
    keys = jax.random.split(jax.random.key(2), QUEUED)
    decoding = Decoding(Sampling(jnp.float32(0)), jnp.array([0]), 4)
    numbers = np.arange(QUEUED, dtype=np.int32)
    waiting = queue.Queue(prompts, keys, numbers, np.int32(QUEUED), np.bool_(True), follow_ups)
    rows = queue.begin(on.lm, QUEUED, queue.slots_of(LENGTH, 16, further, 4), decoding, further)
    return queue.serve.lower(on.lm, on.adapter, rows, waiting, decoding)


def compiled(mesh: Any) -> dict[str, Any]:
    return {name: lowered.compile() for name, lowered in stages(placed(mesh))}


def most_sent(program: Any) -> int:
    """The most numbers that a device gets at once, all-reduces left out."""
    found = [0]
    for result, _ in SENT.findall(program.as_text()):
        found.append(sum(prod(map(int, sizes.split(","))) for sizes in SHAPE.findall(result)))
    return max(found)


def check(fsdp: int) -> None:
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    alone, several = compiled(one), compiled(make_mesh(fsdp=fsdp))
    # A device's clients follow one another in a loop, whose body XLA counts once: eight turns of it alone.
    turns = {"a round of eight": 8, "a round of sixteen": 8} if fsdp == 1 else {}
    wrong = []
    for name, program in several.items():
        flops, whole = (of.cost_analysis()["flops"] for of in (program, alone[name]))
        share = 8 * flops / (whole * turns.get(name, 1))
        sent = most_sent(program)
        held, held_alone = (of.memory_analysis().temp_size_in_bytes for of in (program, alone[name]))
        print(
            f"fsdp {fsdp}, {name}: {share:.2f} eighths of the FLOPs, at most {sent} numbers sent, "
            f"{held / held_alone:.2f} of the temporary memory"
        )
        if name not in turns and held > held_alone / 4:
            wrong.append(f"{name}: {held} bytes of {held_alone}")
        if not 0.9 <= share <= MOST:
            wrong.append(name)
        if fsdp == 1 and name in turns and sent:  # no delta, though two chunks of eight follow one another
            wrong.append(f"{name}: {sent} sent besides sums")
        if sent > LARGEST_KERNEL:
            wrong.append(f"{name}: {sent} sent, more than a kernel of one layer has")
        if fsdp == 1 and sent > 2 * ROWS * LENGTH:  # an answer and a rejected one; activations are 64 times that
            wrong.append(f"{name}: {sent} sent")
    assert not wrong, wrong


if __name__ == "__main__":
    assert jax.device_count() == 8
    check(int(sys.argv[1]))
