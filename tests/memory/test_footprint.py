"""The memory plan against what XLA reports of the real programs."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fedjax_rai.cai.align import Pool, align, begin
from fedjax_rai.cai.options import Numbers, Options, make_objective, make_sampling
from fedjax_rai.cai.programs import OnlineSource, generate_rollout, pool_of_rollout
from fedjax_rai.cai.revise import Requests, Rollout, RolloutBatch
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.examples import Examples, Prompts, bucket
from fedjax_rai.errors import InputError
from fedjax_rai.evals.choice import _answer_logps
from fedjax_rai.evals.drift import _answer_divergences
from fedjax_rai.experiment.round import federated_round
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.memory import footprint
from fedjax_rai.memory.advice import check_lengths
from fedjax_rai.memory.plan import COMPUTED, Lengths, Sizes, plan
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.safety.form import two_verdicts
from fedjax_rai.safety.guard import first_token_score
from fedjax_rai.train import queue
from fedjax_rai.train.generate import Answers, Decoding, Sampling, generate
from fedjax_rai.train.step import PLAIN
from tests import small
from tests.processes import succeed

NUMBER, COUNT, ENDS = (
    jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((), "float32"), ((), "int32"), ((2,), "int32"))
)
KEY = jax.eval_shape(lambda: jax.random.key(0))
LINES = "scoring, the guard's lines"
SHAPE = {"dtype": "float32", "layers": 4, "hidden": 256, "mlp": 704, "vocab": 4096}


def decoder(**changes: Any) -> DecoderConfig:
    own = SHAPE | changes
    layers, hidden, mlp, vocab = (own.pop(name) for name in ("layers", "hidden", "mlp", "vocab"))
    kinds = (LayerKind(plain_rope(hidden // 8)),)
    return DecoderConfig(vocab, hidden, mlp, layers, 8, 4, hidden // 8, kinds, tie_word_embeddings=True, **own)


def ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def bools(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.bool_)


def corpus(rows: int, length: int) -> Any:
    return Examples(ints(rows, length), bools(rows, length), ints(rows, length))


def prompts(rows: int, length: int) -> Any:
    return Prompts(ints(rows, length), bools(rows, length))


def answers(*shape: int) -> Any:
    return Answers(ints(*shape), bools(*shape), bools(*shape[:-1]))


def keys(rows: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))


def sizes(shape: DecoderConfig, rank: int = 8, devices: int = 1, pairs: int = 0, **lengths: int) -> Sizes:
    """`pairs`: of a prepared set."""
    absent = dict.fromkeys(("guard_request", "guard_lines", "opening", "few_shot", "prepared", "probe", "drift"), 0)
    texts = Lengths(**(dict.fromkeys(Lengths._fields, 16) | absent | lengths))
    return Sizes(Decoder(shape, Lora(shape.targets, rank, 16.0)), None, True, texts, 64, 64, pairs, devices, True)


def config_of(shape: DecoderConfig, rank: int = 8, **sections: Any) -> ExperimentConfig:
    how = {name: getattr(shape, name) for name in COMPUTED}
    own = {"model": how, "lora": {"rank": rank}, "data": {"max_length": 4096}, "guard": {"steps": 0}}
    return ExperimentConfig.model_validate(own | sections)


def training(shape, *, clients=1, cohort=1, b=4, l=256, rank=8, **federated: Any) -> tuple[int, Any]:  # noqa: E741
    own = {"clients": 8, "cohort": cohort, "rounds": 1, "batch_size": b, "clients_per_chunk": clients}
    config, known = config_of(shape, rank, federated=own | federated), sizes(shape, rank, train=l)
    lm = LM(known.model, footprint.loaded(shape))
    made: Any = make_algorithm(config.federated, dict(config), small.mesh(1))
    state = jax.eval_shape(made.init, abstract_adapter(shape, known.model.lora))
    who = Cohort(ints(cohort), ints(cohort, 2, b), jax.ShapeDtypeStruct((cohort,), jnp.float32))  # pyright: ignore
    lowered = federated_round.lower(made, state, lm, RoundBatch(corpus(64, l), who, NUMBER))  # pyright: ignore
    return plan(config, known).need("local training"), lowered


def options(config: ExperimentConfig) -> Options:
    cai = config.cai
    return Options(
        end_ids=(1, 2), max_new=cai.max_new_tokens, chunk=cai.prompts_per_chunk or cai.prompts,
        batch_size=cai.batch_size, critic_is_policy=cai.critic == "policy", train_on_revisions=True,
        reference_is_base=False, objective=make_objective(cai), mesh=small.mesh(1),
        trainer=PLAIN._replace(micro_batch=cai.micro_batch),
    )  # fmt: skip


def batch(config: ExperimentConfig, prompt: int, critic_prompt: int | None) -> RolloutBatch:
    rows = config.cai.prompts
    before = None if critic_prompt is None else prompts(rows, critic_prompt)
    return RolloutBatch(ints(rows), prompts(rows, prompt), before, ints(rows, config.cai.revisions), keys(rows))


def talking(shape, *, l=64, opening=0, **cai: Any) -> tuple[int, Any]:  # noqa: E741
    config = config_of(shape, cai={"prompts": 64} | cai)
    known = sizes(shape, red=l, opening=opening, few_shot=opening, critique=48, revision=32)
    in_one_cache = config.cai.critic == "policy" and not opening
    given: Any = batch(config, l, None if in_one_cache else opening or l), Requests(prompts(5, 48), prompts(5, 32))
    first: Any = LM(known.model, footprint.loaded(shape)), options(config), abstract_adapter(shape, known.model.lora)
    lowered = generate_rollout.lower(*first, *given, make_sampling(config.cai))
    return plan(config, known).need("CAI, generating"), lowered


def conversing(shape, *, l=64, opening=0, **cai: Any) -> tuple[int, int]:  # noqa: E741
    """The queue that criticises and revises a shard of a prepared set, at its longest texts or as its ring grows."""
    config = config_of(shape, cai={"prompts": 64, "prompts_per_chunk": 16} | cai)
    known = sizes(shape, red=l, opening=opening, few_shot=opening, critique=48, revision=32)._replace(preparing=True)
    lm: Any = LM(known.model, footprint.loaded(shape))
    adapter: Any = abstract_adapter(shape, known.model.lora)
    rows, new, further = config.cai.prompts_per_chunk or 0, config.cai.max_new_tokens, 2 * config.cai.revisions - 1
    length = bucket((opening or l) + new + 48)
    slots = queue.slots_of(length, 48, further, new)
    decoding = Decoding(make_sampling(config.cai), ENDS, new)  # pyright: ignore

    def ring(slots: int) -> Any:
        return jax.eval_shape(lambda lm: queue.begin(lm, rows, slots, decoding, further), lm)

    follow_ups = queue.FollowUps(prompts(10, 48), ints(rows, further))
    waiting: Any = queue.Queue(prompts(rows, length), keys(rows), ints(rows), COUNT, bools(), follow_ups)  # pyright: ignore
    serving = held(queue.serve.lower(lm, adapter, ring(slots), waiting, decoding))
    need = plan(config, known).need("CAI, generating")
    if config.cai.prompts > rows:
        grown = footprint.nbytes((lm.base, adapter, ring(slots - 64).state.cache, ring(slots).state.cache))
        return need, max(serving, grown)
    responding = Decoding(make_sampling(config.cai), ENDS, new)  # pyright: ignore
    return need, max(serving, held(generate.lower(lm, adapter, prompts(rows, l), keys(rows), responding)))


def collecting(shape, *, l=64, **cai: Any) -> tuple[int, Any]:  # noqa: E741
    """The same conversations as a pool, and the reference's view of it."""
    config = config_of(shape, cai={"method": "dpo", "replay": 8} | cai)
    known = sizes(shape, red=l, critique=48, revision=32, replay=l)
    rows, new, times = config.cai.prompts, config.cai.max_new_tokens, config.cai.revisions
    generated = answers(rows, new), answers(rows, times, new), answers(rows, times, new)
    rollout = Rollout(ints(rows), ints(rows, times), *generated)
    source = OnlineSource(batch(config, l, None), Requests(prompts(5, 48), prompts(5, 32)), corpus(8, l + new))
    first: Any = LM(known.model, footprint.loaded(shape)), options(config), abstract_adapter(shape, known.model.lora)
    return plan(config, known).need("CAI, reference"), pool_of_rollout.lower(*first, source, rollout)


def aligning(shape, *, l=64, prepared=0, **cai: Any) -> tuple[int, Any]:  # noqa: E741
    """Training on conversations whose prompts have `l` tokens, or on so many prepared pairs of `l` tokens."""
    config = config_of(shape, cai={"prompts": 64, "replay": 8, "data": "x" if prepared else "online"} | cai)
    known, how = sizes(shape, pairs=prepared, replay=l, **{"prepared" if prepared else "red": l}), options(config)
    pairs, length = config.cai.prompts, l + config.cai.max_new_tokens
    logps = jax.ShapeDtypeStruct((pairs,), jnp.float32)
    reference: Any = (logps, logps) if how.objective.preference else None
    pool = Pool(corpus(pairs + 8, length), corpus(pairs, length), bools(pairs), bools(pairs), reference)
    progress = jax.eval_shape(begin, abstract_adapter(shape, known.model.lora))
    numbers: Any = Numbers(COUNT, NUMBER, NUMBER, NUMBER, {})  # pyright: ignore
    given: Any = LM(known.model, footprint.loaded(shape)), how, progress, pool, numbers, KEY
    return plan(config, known).need("CAI, training"), align.lower(*given)


def evaluating(shape, phase: str, *, b=16, l=64, new=64) -> tuple[int, Any]:  # noqa: E741
    asked = {"asked": l, "choice": l, "drift": l}
    if phase.startswith("scoring"):
        asked = {"train": l, "asked": 0, "red": 0}
    if phase == LINES:
        asked |= {"guard_request": new, "guard_lines": new}
    known = sizes(shape, **asked)
    need = plan(config_of(shape, eval={"batch_size": b, "max_new_tokens": new}), known).need(phase)
    model: Any = known.model
    given: Any = LM(model, footprint.loaded(shape)), abstract_adapter(shape, model.lora)
    if phase == "scoring":
        return need, first_token_score.lower(*given, *prompts(b, l), two_verdicts(1, 2))
    if phase == "evaluation, choices":
        return need, _answer_logps.lower(*given, corpus(b, l))
    if phase == "evaluation, drift":
        return need, _answer_divergences.lower(*given, corpus(b, bucket(l + new)))
    decoding = Decoding(Sampling(NUMBER), ENDS, new)  # pyright: ignore
    return need, generate.lower(*given, prompts(b, l), keys(b), decoding)


def held(lowered: Any) -> int:
    """What the compiled program holds at once."""
    own = lowered.compile().memory_analysis()
    return own.argument_size_in_bytes + own.output_size_in_bytes + own.temp_size_in_bytes - own.alias_size_in_bytes


def check(need: int, lowered: Any) -> None:
    """The plan is neither far below nor far above what the compiled program holds at once."""
    near(need, held(lowered))


def near(need: int, found: int) -> None:
    assert 0.88 < need / found < 1.35, f"planned {need / 2**20:.1f} MiB, XLA's {found / 2**20:.1f}"


TRAINED: list[tuple[dict, dict]] = [
    ({"remat": "full", "quantize": "int8"}, {"clients": 3, "cohort": 3, "l": 128}),
    ({}, {}),
    ({"remat": "full"}, {}),
    ({"remat": "full", "layers": 12}, {}),
    ({"layers": 8}, {"b": 8}),
    ({"attention": "chunked"}, {"b": 1, "l": 1024}),
    ({}, {"b": 1, "l": 1024}),
    ({}, {"b": 16, "micro_batch": 4}),
    ({"mlp": 1408}, {"b": 32, "l": 32}),
    ({"mlp": 1408, "remat": "full"}, {"b": 32, "l": 32}),
    ({"vocab": 16384}, {}),
    ({"vocab": 65536, "layers": 2}, {"b": 16}),  # 16 * 255 tokens: eight slices of 32 positions, the last one of 31
    ({"vocab": 65536, "layers": 2, "dtype": "bfloat16", "remat": "full"}, {"b": 8, "clients": 2, "cohort": 2}),
    ({"quantize": "nf4", "layers": 2, "hidden": 512, "mlp": 2048, "vocab": 512}, {"b": 1, "l": 32}),
    ({"dtype": "bfloat16"}, {}),
    ({"dtype": "bfloat16", "vocab": 16384, "remat": "full"}, {"clients": 2, "cohort": 2}),
    ({"vocab": 512}, {"b": 1, "l": 32, "rank": 64, "cohort": 8}),
    ({"vocab": 512}, {"b": 1, "l": 32, "rank": 64, "cohort": 8, "clients": 2}),  # deltas are added up
    ({"vocab": 512}, {"b": 1, "l": 32, "rank": 64, "cohort": 4, "clients": 2, "algorithm": "scaffold"}),
]
TALKED: list[tuple[dict, dict]] = [
    ({}, {}),
    ({}, {"revisions": 2}),
    ({}, {"revisions": 4, "prompts": 63, "prompts_per_chunk": 16}),
    ({}, {"critic": "base"}),
    ({}, {"critic": "base", "l": 16, "revisions": 2}),
    ({}, {"l": 256}),
    ({}, {"opening": 256}),
    ({"attention": "chunked"}, {"opening": 512, "revisions": 2}),
    ({"attention": "chunked"}, {"max_new_tokens": 256}),
    ({"vocab": 65536}, {"l": 16, "max_new_tokens": 16}),
    ({"vocab": 65536}, {"l": 16, "max_new_tokens": 16, "top_p": 0.9}),
    ({"dtype": "bfloat16"}, {"prompts": 32}),
    ({"answering": "merged"}, {"prompts": 8, "max_new_tokens": 16}),
    ({"answering": "merged", "mlp": 2816}, {"prompts": 8, "max_new_tokens": 16}),
]
CONVERSED: list[tuple[dict, dict]] = [
    ({}, {}),
    ({}, {"prompts_per_chunk": 32, "max_new_tokens": 256}),
    ({}, {"opening": 512, "revisions": 2}),
    ({"attention": "chunked"}, {"opening": 512, "revisions": 2}),
    ({"vocab": 65536}, {"l": 16, "max_new_tokens": 16, "top_p": 0.9}),
    ({"dtype": "bfloat16", "layers": 8}, {"max_new_tokens": 256}),
    ({}, {"prompts": 16}),  # a row each, so that all responses are answered at once
    ({}, {"prompts": 16, "l": 512, "max_new_tokens": 16}),
]
COLLECTED: list[tuple[dict, dict]] = [
    ({}, {"batch_size": 16}),
    ({}, {"batch_size": 4, "l": 512}),
    ({"vocab": 65536, "layers": 2}, {"batch_size": 16, "l": 128}),
    ({}, {"batch_size": 64, "prompts": 16}),
    ({"vocab": 512}, {"batch_size": 1, "prompts": 4096, "revisions": 2}),
]
ALIGNED: list[tuple[dict, dict]] = [
    ({}, {"batch_size": 32, "l": 256}),
    ({}, {"batch_size": 4}),
    ({}, {"batch_size": 4, "method": "dpo"}),
    ({}, {"batch_size": 16, "l": 256, "method": "sft+dpo"}),
    ({"remat": "full"}, {"batch_size": 8, "l": 256, "method": "dpo"}),
    ({}, {"batch_size": 16, "micro_batch": 4, "method": "sft+dpo"}),
    ({"dtype": "bfloat16"}, {"batch_size": 8, "method": "dpo"}),
    ({"vocab": 65536, "layers": 2}, {"batch_size": 8, "method": "dpo"}),
    ({"vocab": 512}, {"batch_size": 1, "prepared": 20000, "prompts": 20000, "method": "dpo"}),
]
EVALUATED: list[tuple[dict, str, dict]] = [
    ({"quantize": "int8"}, "evaluation, answering", {"b": 64, "new": 256}),
    ({}, "evaluation, answering", {"b": 64, "l": 128}),
    ({}, "evaluation, answering", {"b": 64, "l": 256}),
    ({"vocab": 8192}, "evaluation, choices", {"l": 256}),
    ({"vocab": 65536}, "evaluation, choices", {"l": 256}),
    ({"attention": "chunked"}, "evaluation, choices", {"b": 4, "l": 1024}),
    ({"vocab": 8192}, "evaluation, drift", {"l": 192}),
    ({"vocab": 32768}, "evaluation, drift", {}),
    ({}, LINES, {"b": 64, "l": 256, "new": 32}),
    ({"mlp": 2816}, "scoring", {"b": 32}),
    ({}, "scoring", {"l": 256}),
]


@pytest.mark.parametrize(
    ("shape", "how"), [*TRAINED[:1], *(pytest.param(*own, marks=pytest.mark.slow) for own in TRAINED[1:])]
)
def test_local_training_needs_what_is_planned(shape, how):
    check(*training(decoder(**shape), **how))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "how"), TALKED)
def test_conversations_need_what_is_planned(shape, how):
    check(*talking(decoder(**shape), **how))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "how"), CONVERSED)
def test_a_set_of_conversations_needs_what_is_planned(shape, how):
    near(*conversing(decoder(**shape), **how))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "how"), COLLECTED)
def test_a_reference_needs_what_is_planned(shape, how):
    check(*collecting(decoder(**shape), **how))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "how"), ALIGNED)
def test_training_on_revisions_needs_what_is_planned(shape, how):
    check(*aligning(decoder(**shape), **how))


@pytest.mark.parametrize(
    ("shape", "phase", "how"), [*EVALUATED[:1], *(pytest.param(*own, marks=pytest.mark.slow) for own in EVALUATED[1:])]
)
def test_evaluation_needs_what_is_planned(shape, phase, how):
    check(*evaluating(decoder(**shape), phase, **how))


@pytest.mark.parametrize(("optimizer", "copies"), [("adam", 3), ("adamw", 3), ("sgd", 1)])
def test_a_local_optimizer_is_counted_by_what_it_keeps(optimizer, copies):
    """The gradient, and Adam's two moments and its count of steps (4 bytes)."""
    shape = decoder()
    known = sizes(shape, train=32)
    adapter = footprint.nbytes(abstract_adapter(shape, known.model.lora))
    federated = {"optimizer": optimizer, "cohort": 1, "clients_per_chunk": 1}
    found = plan(config_of(shape, federated=federated), known).phases["local training"]["optimizer and gradient"]
    assert found == copies * adapter + (4 if copies == 3 else 0)


def test_a_set_is_refused_where_its_ring_is_longer_than_the_model_takes(monkeypatch):
    """64 tokens, an answer of 6, then twice a request and an answer: 48 and 16 in a run, 48 both times on the ring."""
    known = sizes(decoder(), red=64, critique=48, revision=16, train=8, asked=0, replay=0, choice=0)
    config = config_of(decoder(), cai={"max_new_tokens": 6})
    monkeypatch.setattr(DecoderConfig, "longest", 64 + 6 + 48 + 6 + 16 + 6)
    check_lengths(config, known._replace(guarded=False))
    with pytest.raises(InputError, match=f"cai.max_new_tokens = 6: gives sequences of {64 + 6 + 2 * (48 + 6)} tokens"):
        check_lengths(config, known._replace(guarded=False, preparing=True))


@pytest.mark.slow
def test_a_split_base_needs_what_is_planned():
    succeed("planned_memory", "small", devices=2)
