"""What a refusal for want of memory offers: first what changes no number of the experiment."""

from pathlib import Path

import pytest
import yaml

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import Sizes, plan
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from tests.memory.test_advice import changed
from tests.memory.test_footprint import config_of, decoder, sizes

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_remedy_does_what_it_says_and_only_what_helps_is_named():
    shape = decoder()
    config = config_of(shape, federated={"clients_per_chunk": 4, "batch_size": 8, "cohort": 4}, eval={"batch_size": 4})
    known = sizes(shape, train=256)
    made = plan(config, known)
    limit = made.need("local training") // 2
    found = advice.remedies(config, known, limit)
    assert found[0].key == "federated.clients_per_chunk"
    assert not {own.key for own in found} & {"cai.prompts", "eval.batch_size", "guard.batch_size"}
    for own in found:
        other = plan(advice._with(config, own.key, own.new), known)
        assert made.need(own.phase) - other.need(own.phase) == own.saves > 0
    text = advice.refusal(config, known, limit)
    shown = [f"{own.key} = {'null' if own.old is None else own.old} -> {own.new}" for own in found]
    assert all(line in text for line in shown) and "local training: activations" in text


KEEPS = {
    "mesh.tensor", "mesh.fsdp", "model.remat", "model.attention", "model.answering", "federated.clients_per_chunk",
    "cai.prompts_per_chunk", "eval.batch_size", "federated.micro_batch", "guard.micro_batch", "cai.micro_batch",
}  # fmt: skip
"""How an experiment is computed; all other keys that a refusal names say what it is."""


def check_order(config: ExperimentConfig, known: Sizes, limit: int) -> tuple[list[str], list[str]]:
    """The keys that are offered: those that change no number first, each group by what it saves; and the lines."""
    found = advice.remedies(config, known, limit)
    offered = [remedy.key for remedy in found]
    keeping = [key for key in offered if key in KEEPS]
    assert offered[: len(keeping)] == keeping and len(set(offered)) == len(offered)
    for group in (found[: len(keeping)], found[len(keeping) :]):
        saved = [remedy.saves for remedy in group]
        assert saved == sorted(saved, reverse=True)
    lines = advice.refusal(config, known, limit).splitlines()
    places = [next(i for i, line in enumerate(lines) if line.startswith(f"  {key} = ")) for key in offered]
    assert places == sorted(places)
    if len(keeping) < len(offered):
        heading = next(i for i, line in enumerate(lines) if "CHANGES THE EXPERIMENT" in line)
        assert all((place < heading) == (key in KEEPS) for place, key in zip(places, offered, strict=True))
    return offered, lines


@pytest.mark.slow
def test_what_changes_no_number_is_offered_first():
    """On eight devices a mesh as wide as they are; of two meshes only the first counts in what all of it gives."""
    shape = decoder(hidden=512, mlp=2048)
    config = config_of(shape, federated={"batch_size": 16}, cai={"enabled": False})
    known = sizes(shape, devices=8, train=256)
    made = plan(config, known)
    offered, lines = check_order(config, known, made.need("local training") // 3)
    assert "mesh.tensor" in offered[:2] and "model.remat" in offered and "federated.batch_size" in offered
    assert any(line.startswith("  mesh.tensor = 1 -> 8") for line in lines)
    assert sum("data.packing = true may help" in line for line in lines) == 1
    others = changed(config, data={"packing": True}), changed(config, lora={"dropout": 0.1})
    for other in others:
        assert "packing" not in advice.refusal(other, known, made.need("local training") // 3)


@pytest.mark.slow
def test_an_axis_of_the_mesh_gives_way_to_the_other():
    """With tensor over all devices, fsdp over all of them is another mesh, not 64 devices."""
    shape = decoder(hidden=512, mlp=2048)
    federated, cai = {"batch_size": 16}, {"enabled": False}
    config = config_of(shape, mesh={"tensor": 8}, federated=federated, cai=cai)
    known = sizes(shape, devices=8, train=256)
    limit = plan(config, known).need("local training") // 3
    assert "  mesh.fsdp = 1 -> 8, mesh.tensor = 8 -> 1 " in advice.refusal(config, known, limit)
    other = config_of(shape, mesh={"fsdp": 8}, federated=federated, cai=cai)
    (found,) = [remedy for remedy in advice.remedies(config, known, limit) if remedy.key == "mesh.fsdp"]
    needs = [plan(each, known).need(found.phase) for each in (config, other)]
    assert found.saves == needs[0] - needs[1]


@pytest.mark.slow
def test_the_papers_config_fits_a_chip_of_16_gib_by_what_changes_no_number():
    """Llama-3.1-8B's shape (its config.json), pairs of up to 512 tokens, eight devices with 15.5 GiB each."""
    given = yaml.safe_load((ROOT / "configs/paper/llama31_8b_square20k.yaml").read_text())
    config = ExperimentConfig.model_validate(given | {"mesh": {}})
    kinds = (LayerKind(plain_rope(128)),)
    shape = DecoderConfig(128256, 4096, 14336, 32, 32, 8, 128, kinds, tie_word_embeddings=False)
    lengths = {"train": 512, "guard_request": 64, "red": 256, "critique": 128, "revision": 128, "asked": 64}
    texts = lengths | {"replay": 256, "choice": 0}
    known = sizes(shape, rank=32, devices=8, **texts)._replace(pairs=20000, red=6000, widens=False)
    limit = int(15.5 * 2**30)
    offered, lines = check_order(config, known, limit)
    assert "mesh.tensor" in offered[:2] and offered[0] in KEEPS
    assert any(line.startswith("  mesh.tensor = 1 -> 2 ") for line in lines), "the fewest parts that fit"
    assert any(line.startswith("  mesh.fsdp = 1 -> 2 ") for line in lines)
    for axis in ("tensor", "fsdp"):
        needs = []
        for parts in (1, 2, 4, 8):
            split = plan(changed(config, mesh={axis: parts}), known)
            needs.append(split.need(split.peak))
        assert needs[0] > limit and max(needs[1:]) < limit


@pytest.mark.slow
def test_a_smaller_cache_is_offered_as_what_changes_answers():
    """A byte a channel and four a head, in place of four a channel."""
    shape = decoder()
    answering = {"batch_size": 64, "max_new_tokens": 1024}
    config = config_of(shape, eval=answering, cai={"enabled": False})
    known = sizes(shape, asked=64)._replace(guarded=False)
    made = plan(config, known)
    phase = "evaluation, answering"
    assert shape.dtype == "float32" and made.peak == phase
    offered, _ = check_order(config, known, made.need(phase) - 1)
    assert "model.kv_cache" in offered
    smaller = plan(changed(config, model={"kv_cache": "int8"}), known).phases[phase]["KV cache"]
    head = shape.head_dim
    assert smaller * 4 * head == made.phases[phase]["KV cache"] * (head + 4)


@pytest.mark.slow
def test_smaller_chunks_come_before_all_that_changes_results():
    """The largest half of the conversations that fits, or one on each device; no smaller number of prompts."""
    shape = decoder()
    config = config_of(shape, cai={"prompts": 64, "replay": 0, "max_new_tokens": 512})
    known = sizes(shape, red=256, replay=0)

    def chosen(limit: int, own: ExperimentConfig = config, known: Sizes = known) -> list[tuple[int | None, int]]:
        found = advice.remedies(own, known, limit)
        assert "cai.prompts" not in {remedy.key for remedy in found}
        return [(remedy.old, remedy.new) for remedy in found if remedy.key == "cai.prompts_per_chunk"]

    def with_chunk(rows: int) -> int:
        return plan(changed(config, cai={"prompts_per_chunk": rows}), known).need("CAI, generating")

    for rows in (32, 8):
        assert chosen(with_chunk(rows)) == [(None, rows)]
    assert chosen(0) == [(None, 1)]
    for devices in (8, 24):
        assert chosen(0, known=known._replace(devices=devices)) == [(None, devices)]
    assert chosen(with_chunk(1), changed(config, cai={"prompts_per_chunk": 1})) == []
    assert "cai.prompts_per_chunk = null -> 8" in advice.refusal(config, known, with_chunk(8))


@pytest.mark.slow
def test_smaller_parts_of_a_step_are_among_the_first_remedies():
    """The largest divisor of the batch that fits, of training that is too large; none where dropout would change."""
    shape = decoder()
    config = config_of(shape, federated={"batch_size": 12}, cai={"enabled": False}, eval={"batch_size": 1})
    known = sizes(shape, train=256)

    def with_parts(rows: int) -> int:
        return plan(changed(config, federated={"micro_batch": rows}), known).need("local training")

    needs = [with_parts(rows) for rows in (12, 6, 4, 3, 2, 1)]
    assert needs == sorted(needs, reverse=True) and needs[-1] < needs[0] / 3
    offered, lines = check_order(config, known, with_parts(4))
    assert any(line.startswith("  federated.micro_batch = null -> 4 ") for line in lines)
    assert not {"guard.micro_batch", "cai.micro_batch"} & set(offered)
    dropping = changed(config, lora={"dropout": 0.1})
    assert "federated.micro_batch" not in {remedy.key for remedy in advice.remedies(dropping, known, with_parts(4))}
    assert plan(config, known).peak == "local training"
    assert "lowered by federated.micro_batch = null -> 6" in advice.largest(config, known)


@pytest.mark.slow
def test_to_compute_layers_again_they_are_no_longer_unrolled():
    """The two keys cannot be had together, so both stand in the line that offers one of them."""
    shape = decoder()
    config = config_of(shape, model={"dtype": "float32", "unroll": "full"}, cai={"enabled": False})
    known = sizes(shape, train=256)
    limit = plan(config, known).need("local training") - 1
    (remedy,) = [own for own in advice.remedies(config, known, limit) if own.key == "model.remat"]
    trial = advice._trial(config, "model.remat", remedy.new, known.devices)
    assert (trial.model.remat, trial.model.unroll) == ("full", "none")
    assert "model.remat = none -> full, model.unroll = full -> none" in advice.refusal(config, known, limit)


@pytest.mark.slow
def test_the_adapter_beside_the_base_is_offered_where_merged_it_does_not_fit():
    """Saved are the kernels of 4 layers, by hand: q|k|v 256 x 512, o 256 x 256, gate|up 256 x 1408, down 704 x 256."""
    shape = decoder()
    config = config_of(shape, model={"dtype": "float32", "answering": "merged"}, cai={"enabled": False})
    known = sizes(shape, asked=64)._replace(guarded=False)
    made, phase = plan(config, known), "evaluation, answering"
    kernels = 4 * 4 * (256 * 512 + 256 * 256 + 256 * 1408 + 704 * 256)
    assert made.phases[phase]["merged kernels"] == kernels
    apart = plan(changed(config, model={"answering": "apart"}), known)
    assert made.need(phase) - apart.need(phase) == kernels
    for other in set(made.phases) - {phase}:
        assert made.need(other) == apart.need(other), other
    offered, lines = check_order(config, known, made.need(phase) - 1)
    assert any("model.answering = merged -> apart" in line for line in lines)
    trial = advice._trial(config, "model.quantize", "int8", known.devices)
    assert (trial.model.quantize, trial.model.answering) == ("int8", "apart"), "few bits take no adapter"
