"""The memory plan against what XLA reports for programs of a split base.

    planned_memory.py small
    planned_memory.py 8b 32 1x1 2x1 8x1 1x8 2x4    # layers, and meshes as fsdp x tensor

Nothing is allocated: programs are lowered for shapes that know where they lie. `small` holds the plan to XLA's numbers
on two devices, split in each of three ways. `8b` lowers the paper's config at the width of Llama-3.1-8B, with so many
of its 32 layers, on eight devices, and prints what both say; in float32, as XLA's CPU programs compute bfloat16 so.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax.sharding import Mesh

from fedjax_rai.cai.align import Pool, align, begin
from fedjax_rai.cai.options import Numbers, Options, make_objective, make_sampling
from fedjax_rai.cai.programs import generate_rollout
from fedjax_rai.cai.revise import Requests, RolloutBatch
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.examples import Examples, Prompts, bucket
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.memory import footprint
from fedjax_rai.memory.layout import with_mesh
from fedjax_rai.memory.plan import Lengths, Sizes, first_text, plan, ring_slots
from fedjax_rai.mesh import AXES, base_shardings, replicated
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.decoder import LM, Decoder, abstract_base
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.train import queue
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.step import PLAIN

LENGTHS = Lengths(train=256, red=64, critique=48, revision=32, replay=64, asked=64)
SMALL = DecoderConfig(4096, 256, 704, 4, 8, 4, 32, (LayerKind(plain_rope(32)),), tie_word_embeddings=True)
LLAMA = DecoderConfig(128256, 4096, 14336, 32, 32, 8, 128, (LayerKind(plain_rope(128)),), remat="full")
PAPER = Lengths(train=512, guard_request=64, red=256, critique=128, revision=128, replay=256, asked=64)
CONFIG = Path(__file__).parents[2] / "configs" / "paper" / "llama31_8b_square20k.yaml"


class Shapes:
    """Shapes of all that programs take, each where it lies on the mesh."""

    def __init__(self, config: ExperimentConfig, known: Sizes, devices: Sequence[Any] | None = None):
        """On the first of jax's devices, or on others, which may be absent ones."""
        among = np.array((devices or jax.devices())[: known.devices])
        self.mesh = Mesh(among.reshape(-1, config.mesh.fsdp, config.mesh.tensor), AXES)
        self.config = config
        self.lengths = known.lengths
        self.pairs = known.pairs
        architecture = replace(known.model.config, parts=config.mesh.tensor)
        self.model = Decoder(architecture, known.model.lora)
        shardings = base_shardings(self.mesh, abstract_base(architecture))
        self.lm = LM(self.model, jax.tree.map(placed, footprint.loaded(architecture), shardings))
        self.adapter = self.whole(abstract_adapter(architecture, known.model.lora))

    def whole(self, tree: Any) -> Any:
        return jax.tree.map(lambda shape: placed(shape, replicated(self.mesh)), tree)

    def array(self, dtype: Any, *shape: int) -> Any:
        return self.whole(jax.ShapeDtypeStruct(shape, dtype))

    def examples(self, rows: int, length: int) -> Any:
        shape = (rows, length)
        return Examples(*(self.array(dtype, *shape) for dtype in (jnp.int32, jnp.bool_, jnp.int32)))

    def prompts(self, rows: int, length: int) -> Any:
        return Prompts(self.array(jnp.int32, rows, length), self.array(jnp.bool_, rows, length))

    def key(self) -> Any:
        return self.whole(jax.eval_shape(lambda: jax.random.key(0)))

    def keys(self, *shape: int) -> Any:
        return self.whole(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape)))


def placed(shape: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def local_training(shapes: Shapes) -> Any:
    federated = shapes.config.federated
    algorithm = make_algorithm(federated, dict(shapes.config), shapes.mesh)
    state = shapes.whole(jax.eval_shape(algorithm.init, shapes.adapter))
    cohort, steps = federated.cohort, federated.local_steps
    rows = shapes.array(jnp.int32, cohort, steps, federated.batch_size)
    clients = Cohort(shapes.array(jnp.int32, cohort), rows, shapes.array(jnp.float32, cohort))
    batch = RoundBatch(shapes.examples(shapes.pairs, shapes.lengths.train), clients, shapes.array(jnp.float32))
    return federated_round.lower(algorithm, state, shapes.lm, batch)


def options(shapes: Shapes) -> Options:
    cai = shapes.config.cai
    return Options(
        end_ids=(1, 2), max_new=cai.max_new_tokens, chunk=cai.prompts_per_chunk or cai.prompts,
        batch_size=cai.batch_size, critic_is_policy=cai.critic == "policy", train_on_revisions=True,
        reference_is_base=False, objective=make_objective(cai), mesh=shapes.mesh,
        trainer=PLAIN._replace(micro_batch=cai.micro_batch),
    )  # fmt: skip


def generating(shapes: Shapes) -> Any:
    cai, lengths = shapes.config.cai, shapes.lengths
    rows = cai.prompts
    principles = shapes.array(jnp.int32, rows, cai.revisions)
    prompts = shapes.prompts(rows, lengths.red)
    batch = RolloutBatch(shapes.array(jnp.int32, rows), prompts, None, principles, shapes.keys(rows))
    requests = Requests(shapes.prompts(5, lengths.critique), shapes.prompts(5, lengths.revision))
    sampling = make_sampling(cai)
    return generate_rollout.lower(shapes.lm, options(shapes), shapes.adapter, batch, requests, sampling)


def training(shapes: Shapes) -> Any:
    cai = shapes.config.cai
    how, pairs = options(shapes), cai.prompts
    length = max(shapes.lengths.red, shapes.lengths.replay) + cai.max_new_tokens
    logps = shapes.array(jnp.float32, pairs)
    flags = shapes.array(jnp.bool_, pairs)
    reference = (logps, logps) if how.objective.preference else None
    pool = Pool(shapes.examples(pairs + cai.replay, length), shapes.examples(pairs, length), flags, flags, reference)
    progress = shapes.whole(jax.eval_shape(begin, shapes.adapter))
    number = shapes.array(jnp.float32)
    numbers = Numbers(shapes.array(jnp.int32), number, number, number, {})
    return align.lower(shapes.lm, how, progress, pool, numbers, shapes.key())


def answering(shapes: Shapes) -> Any:
    evaluation = shapes.config.eval
    rows = evaluation.batch_size
    decoding = Decoding(Sampling(shapes.array(jnp.float32)), shapes.array(jnp.int32, 2), evaluation.max_new_tokens)
    prompts = shapes.prompts(rows, shapes.lengths.asked)
    return generate.lower(shapes.lm, shapes.adapter, prompts, shapes.keys(rows), decoding)


def conversing(shapes: Shapes) -> Any:
    """The queue that criticises and revises a prepared set's conversations, at its longest texts."""
    cai, lengths = shapes.config.cai, shapes.lengths
    rows, new, further = cai.prompts_per_chunk or cai.prompts, cai.max_new_tokens, 2 * cai.revisions - 1
    length = bucket(first_text(shapes.config, lengths))
    decoding = Decoding(make_sampling(cai), shapes.array(jnp.int32, 2), new)
    slots = ring_slots(shapes.config, lengths, length)
    under_way = jax.eval_shape(lambda lm: queue.begin(lm, rows, slots, decoding, further), shapes.lm)
    request = max(lengths.critique, lengths.revision)
    follow_ups = queue.FollowUps(shapes.prompts(10, request), shapes.array(jnp.int32, rows, further))
    count, last = shapes.array(jnp.int32), shapes.array(jnp.bool_)
    waiting = queue.Queue(
        shapes.prompts(rows, length), shapes.keys(rows), shapes.array(jnp.int32, rows), count, last, follow_ups
    )
    return queue.serve.lower(shapes.lm, shapes.adapter, under_way, waiting, decoding)


PROGRAMS = {
    "local training": local_training,
    "CAI, generating": generating,
    "CAI, training": training,
    "evaluation, answering": answering,
}
# (fsdp, tensor) of two devices -> what is compared; a compilation each
SPLIT = {
    (1, 1): ("local training",),
    (2, 1): ("local training", "CAI, training", "evaluation, answering"),
    (1, 2): ("local training", "evaluation, answering"),
}


class Held(NamedTuple):
    """Bytes of a device, by XLA's account."""

    reserved: int  # for a program as a whole: what it is given, gives, and needs in between
    peak: int  # at any one time


def held(lowered: Any) -> Held:
    found = lowered.compile().memory_analysis()
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Held(given + found.temp_size_in_bytes, found.peak_memory_in_bytes)


def compared(
    config: ExperimentConfig, known: Sizes, phases: tuple[str, ...], devices: Sequence[Any] | None = None
) -> dict[str, tuple[int, int]]:
    """Bytes a device of each phase: planned, and XLA's."""
    made, shapes = plan(config, known), Shapes(config, known, devices)
    found = {}
    for phase in phases:
        began = time.perf_counter()
        planned, real = made.need(phase), held(PROGRAMS[phase](shapes))
        found[phase] = planned, real.reserved
        print(
            f"{config.mesh.fsdp} {config.mesh.tensor} {phase}: planned {planned / 2**30:.3f} GiB, XLA's "
            f"{real.reserved / 2**30:.3f}, {planned / real.reserved:.2f} times; {real.peak / 2**30:.3f} at the peak, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
    return found


def small() -> None:
    """Between 0.88 and 1.35 times XLA's numbers, as on one device, whichever way the base is split."""
    lora = Lora(SMALL.targets, 8, 16.0)
    known = Sizes(Decoder(SMALL, lora), None, True, LENGTHS, 64, 64, 0, 2, True)
    sections = {
        "model": {"dtype": "float32"},
        "lora": {"rank": 8},
        "data": {"max_length": 4096},
        "guard": {"steps": 0},
        "federated": {"clients": 8, "cohort": 2, "rounds": 1, "batch_size": 8, "local_steps": 2},
        "cai": {"prompts": 64, "replay": 8, "batch_size": 8, "max_new_tokens": 64, "method": "sft+dpo"},
        "eval": {"batch_size": 32, "max_new_tokens": 64},
    }
    config = ExperimentConfig.model_validate(sections)
    wrong = []
    for (fsdp, tensor), phases in SPLIT.items():
        for phase, (planned, real) in compared(with_mesh(config, fsdp, tensor), known, phases).items():
            if not 0.88 < planned / real < 1.35:
                wrong.append((fsdp, tensor, phase, planned / real))
    assert not wrong, wrong
    config = with_mesh(config, 2, 1)
    cai = config.cai.model_copy(update={"prompts_per_chunk": 16})
    a_set, known = config.model_copy(update={"cai": cai}), known._replace(preparing=True)
    planned = plan(a_set, known).need("CAI, generating")
    real = held(conversing(Shapes(a_set, known))).reserved
    print(f"a set: planned {planned / 2**20:.1f} MiB, XLA's {real / 2**20:.1f}")
    assert 0.88 < planned / real < 1.6, planned / real


def at_8b(layers: int, meshes: list[str], dtype: str = "float32", devices: Sequence[Any] | None = None) -> None:
    """The paper's config, on eight devices or on those given."""
    given = yaml.safe_load(CONFIG.read_text())
    given["model"]["dtype"] = dtype
    config = ExperimentConfig.model_validate(given)
    shape = replace(LLAMA, num_hidden_layers=layers, dtype=dtype)
    lora = Lora(shape.targets, config.lora.rank, config.lora.alpha)
    known = Sizes(Decoder(shape, lora), None, True, PAPER, 20000, 6000, 0, len(devices or range(8)), False)
    for mesh in meshes:
        fsdp, tensor = map(int, mesh.split("x"))
        compared(with_mesh(config, fsdp, tensor), known, tuple(PROGRAMS), devices)


if __name__ == "__main__":
    if sys.argv[1] == "small":
        small()
    else:
        at_8b(int(sys.argv[2]), sys.argv[3:])
