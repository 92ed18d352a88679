"""The memory plan of a whole arm, and what a run does with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes as lengths
from fedjax_rai.experiment.phase import Phase
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.memory.footprint import nbytes
from fedjax_rai.memory.plan import plan
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.runs import prepare
from fedjax_rai.runs.run import run
from tests.memory.test_footprint import config_of, decoder, sizes
from tests.tiny_runs import vary


def test_the_base_is_counted_as_it_lies(config):
    setting = Setting(config)
    assert plan(config, lengths.sizes(setting)).held["base"] == nbytes(setting.models.base)


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


def changed(config: ExperimentConfig, **sections: dict[str, Any]) -> ExperimentConfig:
    fields = config.model_dump()
    for section, values in sections.items():
        fields[section] |= values
    return ExperimentConfig.model_validate(fields)


def test_phases_are_those_that_an_arm_has(config):
    def phases(**changes: dict[str, Any]) -> set[str]:
        return set(plan(changed(config, **changes), known).phases)

    known = lengths.sizes(Setting(config))
    assert "local training" in phases() and "local training" not in phases(federated={"rounds": 0})
    cai = {"answering replay", "CAI, generating", "CAI, training"}
    assert phases() - phases(cai={"enabled": False}) == cai
    assert phases() - phases(cai={"iterations": 0}) == phases() - phases(cai={"every": 3}) == cai
    assert phases(cai={"method": "dpo"}) - phases() == {"CAI, reference"}
    known = lengths.sizes(Setting(changed(config, cai={"probe": 3})))
    assert phases() - phases(federated={"rounds": 0}) == {"local training", "probe"} | cai


def test_the_probe_and_what_is_judged_count_beside_a_smaller_evaluation():
    shape = decoder()
    config = config_of(shape, eval={"max_new_tokens": 8, "batch_size": 4})
    short, long = (plan(config, sizes(shape, probe=probe, asked=16)) for probe in (16, 512))
    assert short.phases["probe"] == short.phases["evaluation, answering"] == long.phases["evaluation, answering"]
    assert long.need("probe") > short.need("probe") and long.need("scoring") > short.need("scoring")
    # no longer than a guard reads
    least, pairs = changed(config, data={"max_length": 16}), sizes(shape, asked=0, red=0)
    assert plan(least, sizes(shape, probe=512)).phases["scoring"] == plan(least, pairs).phases["scoring"]


def test_a_chunk_of_conversations_lies_over_the_clients_axis():
    shape = decoder()

    def made(devices: int, **cai: Any) -> dict[str, dict[str, int]]:
        config = config_of(shape, cai={"prompts": 64} | cai)
        return plan(config, sizes(shape, devices=devices, red=64, critique=48, revision=32)).phases

    whole = made(1)["CAI, generating"]
    for part in (made(8)["CAI, generating"], made(1, prompts_per_chunk=8)["CAI, generating"]):
        assert all(8 * part[name] == whole[name] for name in ("KV cache", "activations"))
    for rows in (1, 8):  # a row at least on each device
        assert made(8, prompts_per_chunk=rows) == made(8, prompts_per_chunk=8)
    assert made(1, prompts_per_chunk=100) == made(1)


def test_training_takes_chosen_and_rejected_at_once_and_spreads_them_where_they_divide():
    shape = decoder()

    def activations(method: str, rows: int, devices: int = 1) -> int:
        config = config_of(shape, cai={"method": method, "batch_size": rows})
        return plan(config, sizes(shape, devices=devices)).phases["CAI, training"]["activations"]

    assert activations("dpo", 4) == activations("sft+dpo", 4) == activations("sft", 8)
    assert activations("dpo", 4, devices=8) == activations("sft", 1)
    assert activations("sft", 4, devices=8) == activations("sft", 4)


def test_a_critic_of_its_own_has_a_cache_beside_the_policys():
    shape = decoder()

    def cache(revisions: int, opening: int = 0, **cai: Any) -> int:
        config = config_of(shape, cai={"revisions": revisions, "max_new_tokens": 32} | cai)
        known = sizes(shape, red=64, opening=opening, critique=48, revision=32)
        return plan(config, known).phases["CAI, generating"]["KV cache"]

    token = (cache(2) - cache(1)) // (48 + 32 + 2 * 32)
    assert cache(3) == token * (64 + 3 * (48 + 32 + 2 * 32) + 32)
    assert cache(3, critic="base") - cache(3) == token * (64 + 32)
    assert cache(3, opening=256) - cache(3) == token * (256 - 64 + 64 + 32)


def test_a_prepared_set_stays_on_the_device_and_nothing_is_generated(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(f'{{"prompt": "q{i}", "chosen": "a", "rejected": "bcd"}}' for i in range(5)))
    own = changed(config, cai={"data": str(path)})
    setting = Setting(own)
    known = lengths.sizes(setting)
    assert (known.red, known.prepared, known.lengths.red) == (0, 5, 0)
    assert known.lengths.prepared == setting.revising.prepared[0].tokens.shape[1] > 0
    made, online = plan(own, known), plan(config, lengths.sizes(Setting(config)))
    assert "CAI, generating" not in made.phases and "prepared set" not in online.held
    pool = Phase(setting).collect(setting.fresh_adapter("any"), 0).pool
    assert made.held["prepared set"] == nbytes(setting.revising.prepared[:2]) > 0
    assert made.phases["CAI, training"]["revisions"] == nbytes((pool.answers, pool.rejected)) > 0


FEW_SHOT = """principles:
  - {name: n, critique: is that safe, revision: say it again}
few_shot: [{user: who are you}, {assistant: an assistant}]
"""


@pytest.mark.parametrize("few_shot", [False, True])
def test_a_smaller_max_length_is_planned_as_its_own_setting_is(config, tmp_path, few_shot):
    if few_shot:
        (tmp_path / "few.yaml").write_text(FEW_SHOT)
        config = changed(config, cai={"constitution": str(tmp_path / "few.yaml")})
    other = changed(config, data={"max_length": 16})
    settings = [Setting(config), Setting(other)]
    known, own = (lengths.sizes(setting) for setting in settings)
    assert plan(other, known) == plan(other, own) != plan(config, known)
    assert known.lengths.opening == (settings[0].revising.openings.tokens.shape[1] if few_shot else 0)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_the_base_is_read(config, monkeypatch):
    setting = Setting(config)
    monkeypatch.setattr(advice, "device_limit", lambda: 2**20)
    with pytest.raises(InputError, match=r"GiB a device needed(.|\n)*eval.batch_size = 8 -> 2"):
        run(config, setting)
    assert "base" not in vars(setting) and not Path(str(config.output)).exists()


@pytest.mark.slow
def test_a_set_that_does_not_fit_is_refused_with_what_helps(config, tmp_path, monkeypatch, capsys):
    """Its plan is of conversations alone: neither of training nor of what a run holds besides."""
    prepare.prepare(config, tmp_path / "fits", 4)
    assert "most of it in CAI, generating" in capsys.readouterr().err
    monkeypatch.setattr(advice, "device_limit", lambda: 2**20)
    with pytest.raises(InputError) as refused:
        prepare.prepare(config, tmp_path / "set", 4)
    text = str(refused.value)
    assert "nothing was started" in text and "cai.prompts_per_chunk = 4 -> 2" in text, "one on each device"
    assert not any(other in text for other in ("training", "guard", "evaluation", "federated"))
    assert not (tmp_path / "set").exists()
    setting, scaffold = Setting(config), vary(config, federated={"algorithm": "scaffold"})
    held = plan(scaffold, lengths.preparing(setting)).held
    assert held["adapters"] == nbytes(setting.fresh_adapter("adapter")), "the policy's, and no state of a round"


def test_the_longest_conversation_of_all_revisions_is_held_against_the_models_limit():
    shape = decoder()
    rope = shape.kinds[0].rope
    limited = replace(shape, kinds=(replace(shape.kinds[0], rope=replace(rope, limit=1024)),))  # pyright: ignore
    one = {"red": 64, "critique": 48, "revision": 32}

    def check(revisions: int = 1, new: int = 64, guard: DecoderConfig | None = None, **lengths: int) -> None:
        known = sizes(limited, **(one | lengths))._replace(guard=guard)
        advice.check_lengths(config_of(limited, cai={"revisions": revisions, "max_new_tokens": new}), known)

    check(4)  # 64 + 4 * 208 + 64 = 960
    for text, wrong in {
        "cai.revisions = 5: gives sequences of 1168 tokens; this model takes 1024": {"revisions": 5},
        "cai.revisions = 4: gives sequences of 1152": {"revisions": 4, "opening": 256},
        "cai.max_new_tokens = 512: gives": {"new": 512},
        "cai.max_new_tokens = 64: gives sequences of 1064": {"replay": 1000},
        "eval.max_new_tokens = 64: gives": {"probe": 1000},
        "data.max_length = 4096: gives sequences of 1040": {"prepared": 1040},
        "the guard takes 1024": {"guard_request": 1024, "guard": limited},
    }.items():
        with pytest.raises(InputError, match=text):
            check(**wrong)
    check(guard_request=1024, guard=shape)  # a guard of its own reads that much


def test_a_small_plan_is_one_line_and_a_large_one_a_table():
    shape = decoder()
    made = plan(config_of(shape), sizes(shape, train=256))
    need = made.need(made.peak)
    assert len(advice.table(made, 3 * need)) == 1
    lines = advice.table(made, need + 1)
    assert len(lines) == 2 + len(made.held) + len(made.phases[made.peak])
    assert all(any(name in line for line in lines) for name in ("base", "adapters", made.peak, "CAI, generating"))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "merged": {"model": {"dtype": "float32", "answering": "merged"}},
    "others": {
        "federated": {"algorithm": "scaffold", "clients_per_chunk": 4, "cohort": 4},
        "cai": {"method": "dpo", "probe": 4},
        "guard": {"steps": 2},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_key_that_is_named_makes_its_part_smaller(case):
    """Of every part of every phase, as if it were the largest; what depends on the base alone has none."""
    shape = decoder()
    config = config_of(shape, **CASES[case])
    known = sizes(shape, train=256, prepared=0, probe=16 if case == "others" else 0)
    made = plan(config, known)
    parts = [advice.Part(None, name) for name in made.held]
    for phase, of_phase in made.phases.items():
        parts += [advice.Part(phase, name) for name in of_phase]
    without = set()
    for part in parts:
        found = advice.lowered_by(config, known, part)
        if found is None:
            without.add(part.name)
            continue
        smaller = plan(advice._trial(config, *found, known.devices), known)
        assert part.size(smaller) < part.size(made), part
        assert smaller.need(part.phase or made.peak) < made.need(part.phase or made.peak), part
    assert without <= {"kernels in use", "conversations"}


LARGEST: dict[str, tuple[dict[str, Any], str]] = {
    "KV cache (evaluation, answering)": (
        {"eval": {"batch_size": 512, "max_new_tokens": 512}},
        "eval.batch_size = 512 -> 256",
    ),
    "KV cache (CAI, generating)": (
        {"cai": {"prompts": 512, "max_new_tokens": 512}},
        "cai.prompts_per_chunk = null -> 256",
    ),
    "activations (local training)": (
        {"federated": {"clients_per_chunk": 5, "batch_size": 64}},
        "federated.clients_per_chunk = 5 -> 1",
    ),
    "activations (scoring)": ({"eval": {"batch_size": 4096, "max_new_tokens": 1}}, "eval.batch_size = 4096 -> 2048"),
}


@pytest.mark.parametrize("part", LARGEST)
def test_the_largest_part_is_named_with_its_key(part):
    sections, change = LARGEST[part]
    shape = decoder()
    config = config_of(shape, **sections)
    known = sizes(shape, red=16, train=64)._replace(guarded="scoring" in part)
    line = advice.largest(config, known)
    assert line.startswith(f"  largest: {part}, ") and line.endswith(f" GiB; lowered by {change}"), line
    need = plan(config, known).need(plan(config, known).peak)
    assert advice.described(config, known, 3 * need)[1:] == [line], "of a plan that is small besides"
    assert line in advice.refusal(config, known, need // 2).splitlines()


def test_a_large_base_is_lowered_by_how_it_is_stored():
    """Where bfloat16 is widened in any case, float32 saves the copy; else a quantised base does."""
    shape = decoder(hidden=1024, mlp=2048, dtype="bfloat16")
    evaluated: dict[str, Any] = {"federated": {"rounds": 0}, "cai": {"enabled": False}, "eval": {"batch_size": 1}}
    config, known = config_of(shape, **evaluated), sizes(shape, train=16)
    widened = advice.largest(config, known)
    assert "largest: base in float32, " in widened
    assert widened.endswith("lowered by model.dtype = bfloat16 -> float32")
    narrow = known._replace(widens=False)
    stored = advice.largest(config, narrow)
    assert "largest: base, " in stored and stored.endswith("lowered by model.quantize = none -> int8")
    split = advice.largest(config, narrow._replace(devices=2))
    assert split.endswith("lowered by mesh.fsdp = 1 -> 2"), "which changes no number"


def test_what_lies_on_the_device_already_is_not_missing_from_its_limit():
    before = advice.device_limit()
    held = jnp.ones(2**27, jnp.float32).block_until_ready()
    after = advice.device_limit()
    assert before and after and abs(after - before) < held.nbytes / 2


@pytest.mark.parametrize(("batch", "micro_batch", "proposed"), [(12, None, 6), (12, 3, 6), (12, 4, 12), (16, 4, 8)])
def test_a_smaller_batch_is_one_that_the_config_takes(batch, micro_batch, proposed):
    """Half of the batch, where the micro-batch still divides it; else the batch as it is, which is no remedy."""
    config = ExperimentConfig.model_validate({"federated": {"batch_size": batch, "micro_batch": micro_batch}})
    assert advice._lower(config)["federated.batch_size"] == proposed
