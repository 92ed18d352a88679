"""The memory plan: against what XLA reports of the real programs, and what a run does with it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fedjax_rai.cai.revise import Requests
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.errors import InputError
from fedjax_rai.evals.choice import _answer_logps
from fedjax_rai.evals.open_ended import _generate
from fedjax_rai.fed.algorithm import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.mesh import make_mesh
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.run import footprint, memory
from fedjax_rai.run.experiment import run
from fedjax_rai.run.footprint import nbytes
from fedjax_rai.run.memory import Lengths, Sizes, plan
from fedjax_rai.run.round import CaiBatch, CaiOptions, cai_phase, federated_round, make_algorithm
from fedjax_rai.run.setting import Setting
from fedjax_rai.safety.guard import first_token_score
from fedjax_rai.train.generate import Sampling

NUMBER, COUNT, ENDS = (
    jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((), "float32"), ((), "int32"), ((2,), "int32"))
)
KEY = jax.eval_shape(lambda: jax.random.key(0))
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


def sizes(shape: DecoderConfig, rank: int = 8, devices: int = 1, **lengths: int) -> Sizes:
    texts = Lengths(**(dict.fromkeys(Lengths._fields, 16) | {"guard_request": 0} | lengths))
    return Sizes(Decoder(shape, Lora(shape.targets, rank, 16.0)), None, True, texts, 64, devices, True)


def config_of(shape: DecoderConfig, rank: int = 8, **sections: Any) -> ExperimentConfig:
    how = {name: getattr(shape, name) for name in ("dtype", "attention", "quantize", "remat")}
    own = {"model": how, "lora": {"rank": rank}, "data": {"max_length": 4096}, "guard": {"steps": 0}}
    return ExperimentConfig.model_validate(own | sections)


def training(shape, *, clients=1, cohort=1, b=4, l=256, rank=8, algorithm="fedavg") -> tuple[int, Any]:  # noqa: E741
    own = {"clients": 8, "cohort": cohort, "rounds": 1, "batch_size": b, "clients_per_chunk": clients}
    config, known = config_of(shape, rank, federated=own | {"algorithm": algorithm}), sizes(shape, rank, train=l)
    made: Any = make_algorithm(algorithm, known.model, 8, clients, make_mesh())  # pyright: ignore
    state = jax.eval_shape(made.init, abstract_adapter(shape, known.model.lora))
    who = Cohort(ints(cohort), ints(cohort, 2, b), jax.ShapeDtypeStruct((cohort,), jnp.float32))  # pyright: ignore
    lowered = federated_round.lower(made, state, footprint.loaded(shape), RoundBatch(corpus(64, l), who, NUMBER))  # pyright: ignore
    return plan(config, known).need("local training"), lowered


def aligning(shape, *, b=16, l=64, new=64, batch=4, critic="policy") -> tuple[int, Any]:  # noqa: E741
    cai = {"prompts": b, "replay": 8, "batch_size": batch, "max_new_tokens": new, "critic": critic}
    known, requests = sizes(shape, red=l, requests=80, replay=l), Requests(prompts(5, 48), prompts(5, 32))
    made = plan(config_of(shape, cai=cai), known)
    data: Any = CaiBatch(prompts(b, l), requests, ints(b), corpus(8, l + new), COUNT, NUMBER, NUMBER)  # pyright: ignore
    model: Any = known.model
    options = CaiOptions((1, 2), new, batch, critic == "policy", True)
    adapter = abstract_adapter(shape, model.lora)
    lowered = cai_phase.lower(model, options, footprint.loaded(shape), adapter, data, KEY)
    return max(made.need("CAI, generating"), made.need("CAI, training")), lowered


def evaluating(shape, phase: str, *, b=16, l=64, new=64) -> tuple[int, Any]:  # noqa: E741
    known = sizes(shape, asked=l, choice=l, guard=l)
    need = plan(config_of(shape, eval={"batch_size": b, "max_new_tokens": new}), known).need(phase)
    model: Any = known.model
    given = model, footprint.loaded(shape), abstract_adapter(shape, model.lora)
    if phase == "scoring":
        return need, first_token_score.lower(*given, *prompts(b, l), ENDS)
    if phase == "evaluation, choices":
        return need, _answer_logps.lower(*given, corpus(b, l))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))
    return need, _generate.lower(*given, *prompts(b, l), keys, Sampling(NUMBER), ENDS, new)  # pyright: ignore


def check(need: int, lowered: Any) -> None:
    """The plan is neither far below nor far above what the compiled program holds at once."""
    own = lowered.compile().memory_analysis()
    held = own.argument_size_in_bytes + own.output_size_in_bytes + own.temp_size_in_bytes - own.alias_size_in_bytes
    assert 0.88 < need / held < 1.35, f"planned {need / 2**20:.1f} MiB, XLA's {held / 2**20:.1f}"


TRAINED: list[tuple[dict, dict]] = [
    ({"remat": "full", "quantize": "int8"}, {"clients": 3, "cohort": 3, "l": 128}),
    ({}, {}),
    ({"remat": "full"}, {}),
    ({"remat": "full", "layers": 12}, {}),
    ({"layers": 8}, {"b": 8}),
    ({"attention": "chunked"}, {"b": 1, "l": 1024}),
    ({}, {"b": 1, "l": 1024}),
    ({"mlp": 1408}, {"b": 32, "l": 32}),
    ({"mlp": 1408, "remat": "full"}, {"b": 32, "l": 32}),
    ({"vocab": 16384}, {}),
    ({"quantize": "nf4", "layers": 2, "hidden": 512, "mlp": 2048, "vocab": 512}, {"b": 1, "l": 32}),
    ({"dtype": "bfloat16"}, {}),
    ({"dtype": "bfloat16", "vocab": 16384, "remat": "full"}, {"clients": 2, "cohort": 2}),
    ({"vocab": 512}, {"b": 1, "l": 32, "rank": 64, "cohort": 8}),
    ({"vocab": 512}, {"b": 1, "l": 32, "rank": 64, "cohort": 4, "clients": 2, "algorithm": "scaffold"}),
]
ALIGNED: list[tuple[dict, dict]] = [
    ({}, {"b": 64}),
    ({}, {"b": 64, "critic": "base"}),
    ({}, {"b": 64, "l": 256}),
    ({"attention": "chunked"}, {"b": 64, "new": 256}),
    ({}, {"b": 4, "batch": 32, "l": 256}),
    ({"dtype": "bfloat16"}, {"b": 32}),
]
EVALUATED: list[tuple[dict, str, dict]] = [
    ({"quantize": "int8"}, "evaluation, answering", {"b": 64, "new": 256}),
    ({}, "evaluation, answering", {"b": 64, "l": 128}),
    ({}, "evaluation, answering", {"b": 64, "l": 256}),
    ({"vocab": 8192}, "evaluation, choices", {"l": 256}),
    ({"attention": "chunked"}, "evaluation, choices", {"b": 4, "l": 1024}),
    ({"mlp": 2816}, "scoring", {"b": 32}),
    ({}, "scoring", {"l": 256}),
]


@pytest.mark.parametrize(
    ("shape", "how"), [*TRAINED[:1], *(pytest.param(*own, marks=pytest.mark.slow) for own in TRAINED[1:])]
)
def test_local_training_needs_what_is_planned(shape, how):
    check(*training(decoder(**shape), **how))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "how"), ALIGNED)
def test_constitutional_ai_needs_what_is_planned(shape, how):
    check(*aligning(decoder(**shape), **how))


@pytest.mark.parametrize(
    ("shape", "phase", "how"), [*EVALUATED[:1], *(pytest.param(*own, marks=pytest.mark.slow) for own in EVALUATED[1:])]
)
def test_evaluation_needs_what_is_planned(shape, phase, how):
    check(*evaluating(decoder(**shape), phase, **how))


def test_the_base_is_counted_as_it_lies(config):
    setting = Setting(config)
    assert plan(config, memory.sizes(setting, config)).held["base"] == nbytes(setting.base)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_mesh_splits_the_base_and_spreads_the_clients(quantize):
    shape = decoder(quantize=quantize, mlp=1024)
    fed = {"clients": 16, "cohort": 16, "rounds": 1, "clients_per_chunk": 8}

    def made(devices: int, **mesh: int):
        return plan(config_of(shape, federated=fed, mesh=mesh), sizes(shape, devices=devices, train=64))

    one, spread, split = made(1), made(8), made(8, fsdp=2, tensor=4)
    assert spread.held["base"] == one.held["base"]
    assert spread.phases["local training"]["activations"] * 8 == one.phases["local training"]["activations"]
    assert one.held["base"] / 8 <= split.held["base"] < one.held["base"] / 7  # norms lie everywhere
    assert made(3, fsdp=3).held["base"] == one.held["base"]  # nothing of it can be split evenly


def test_phases_are_those_that_an_arm_has(config):
    known = memory.sizes(Setting(config), config)

    def phases(**changes: dict[str, Any]) -> set[str]:
        sections = config.model_dump()
        for section, values in changes.items():
            sections[section] |= values
        return set(plan(ExperimentConfig.model_validate(sections), known).phases)

    assert "local training" in phases() and "local training" not in phases(federated={"rounds": 0})
    assert phases() - phases(cai={"enabled": False}) == {"answering replay", "CAI, generating", "CAI, training"}


def test_a_smaller_max_length_is_planned_as_its_own_setting_is(config):
    other = config.model_copy(update={"data": config.data.model_copy(update={"max_length": 32})})
    known, own = memory.sizes(Setting(config), config), memory.sizes(Setting(other), other)
    assert plan(other, known) == plan(other, own) != plan(config, known)


def test_what_does_not_fit_is_refused_before_the_base_is_read(config, monkeypatch):
    setting = Setting(config)
    monkeypatch.setattr(memory, "device_limit", lambda: 2**20)
    with pytest.raises(InputError, match=r"GiB a device needed(.|\n)*eval.batch_size = 8 -> 4"):
        run(config, setting)
    assert "base" not in vars(setting) and not Path(str(config.output)).exists()


def test_a_remedy_does_what_it_says_and_only_what_helps_is_named():
    shape = decoder()
    config = config_of(shape, federated={"clients_per_chunk": 4, "batch_size": 8, "cohort": 4})
    known = sizes(shape, train=256)
    made = plan(config, known)
    limit = made.need("local training") // 2
    found = memory.remedies(config, known, limit)
    assert found[0].key == "federated.clients_per_chunk" and found == sorted(found, key=lambda own: -own.saves)
    assert not {own.key for own in found} & {"cai.prompts", "eval.batch_size", "guard.batch_size"}
    for own in found:
        other = plan(memory._with(config, own.key, own.new), known)
        assert made.need(own.phase) - other.need(own.phase) == own.saves > 0
    text = memory.refusal(config, known, limit)
    assert all(f"{own.key} = {own.old} -> {own.new}" in text for own in found) and "local training: activations" in text


def test_a_small_plan_is_one_line_and_a_large_one_a_table():
    shape = decoder()
    made = plan(config_of(shape), sizes(shape, train=256))
    need = made.need(made.peak)
    assert len(memory.table(made, 3 * need)) == 1
    lines = memory.table(made, need + 1)
    assert len(lines) == 2 + len(made.held) + len(made.phases[made.peak])
    assert all(any(name in line for line in lines) for name in ("base", "adapters", made.peak, "CAI, generating"))


def test_what_lies_on_the_device_already_is_not_missing_from_its_limit():
    before = memory.device_limit()
    held = jnp.ones(2**27, jnp.float32).block_until_ready()
    after = memory.device_limit()
    assert before and after and abs(after - before) < held.nbytes / 2
