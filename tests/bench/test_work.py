"""Our side of a measurement and torch's: what they are compiled for, count and hold; nothing is timed."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_rai.bench import floors, machine, shapes, torch_peer, trl_peer, work
from fedjax_rai.bench.random_inputs import LORA, random_base
from fedjax_rai.cai import programs
from fedjax_rai.experiment.cost import parameters
from fedjax_rai.mesh import make_mesh
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, forward
from fedjax_rai.model.families import decoder_config, read_config
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.model.weights import load_base
from tests.model.common import FIXTURES

# One layer of width 8: q 8 x 8, k and v 8 x 4 each, o 8 x 8, gate and up 8 x 16 each, down 16 x 8; a vocabulary of 32.
MICRO = shapes._llama(8, 16, 1, 2, 1, vocab_size=32, tie_word_embeddings=True)
HEAD = 32 * 8
KERNELS = 8 * (8 + 4 + 4) + 8 * 8 + 8 * 32 + 16 * 8 + HEAD
ADAPTER = 16 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 2 * (8 + 16) + (16 + 8))  # rank 16
NORMS = 3 * 8
SIZES = {
    "round": {"clients": 2, "steps": 3, "batch": 4, "length": 6},
    "generate": {"rows": 2, "prompt": 4, "new": 5},
    "cai": {"prompts": 4, "chunk": 2, "prompt": 4, "request": 2, "new": 3, "revisions": 1, "iterations": 2, "batch": 2},
    "score": {"pairs": 5, "length": 8, "batch": 2},
}
TOKENS = {
    "round": 2 * 3 * 4 * 6,
    "generate": 2 * 5,
    "cai": 4 * (4 + 2 * 2 + 3 * 3) + 2 * 2 * (4 + 3),
    "score": sum(shapes.ScoreShape(5, 8).lengths),
}


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.MODELS, "micro", MICRO)
    monkeypatch.setitem(shapes.MODELS, "untied", MICRO | {"tie_word_embeddings": False})


def request(name: str, **others: Any) -> dict[str, Any]:
    """What a worker is asked for, of the smallest model."""
    computed = {
        "dtype": "float32",
        "attention": "xla",
        "remat": "none",
        "unroll": "none",
        "quantize": "none",
        "kv_cache": "model",
    }
    config: dict[str, Any] = {"federated": {}, "sections": {}, "cai": {}}
    return config | {
        "work": name,
        "model": "micro",
        "shape": SIZES[name],
        "lora": {"rank": 16, "alpha": 32.0},
        "computed": computed,
        "mesh": {"fsdp": 1, "tensor": 1},
        "micro_batch": 2,
        "devices": None,
        "compile": False,
        **others,
    }


@pytest.mark.parametrize(("model", "head"), [("micro", 0), ("untied", HEAD)])
def test_a_models_sizes_are_those_that_a_pass_reads(model: str, head: int) -> None:
    config = decoder_config(shapes.MODELS[model], model)
    base = jax.eval_shape(partial(random_base, config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == KERNELS + NORMS + head
    subject = work.Subject(LM(Decoder(config, LORA), base), LORA, abstract_adapter(config, LORA), make_mesh())
    found = subject.sizes
    assert found.count == (KERNELS, HEAD, ADAPTER, False)
    # embeddings that are not the unembedding are not read whole
    assert found.weight_bytes == 4 * (KERNELS + NORMS + ADAPTER)
    assert found.head_bytes == 4 * HEAD
    assert found.slot_bytes == 4 * 2 * 4  # keys and values of one head of width 4


def test_shapes_that_are_measured_are_the_models() -> None:
    """By the number of parameters that their cards give, in millions."""
    lora = Lora((), rank=1, alpha=1.0)
    for name, millions in (("135M", 134.5), ("1B", 1236)):
        config = decoder_config(shapes.MODELS[name], name)
        assert parameters(config, lora).kernels == pytest.approx(millions * 1e6, rel=0.002)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_random_base_is_quantised_as_asked_for(kind: str) -> None:
    config = decoder_config(shapes.MODELS["tiny"], "tiny", quantize=kind)
    made = jax.eval_shape(partial(random_base, config), jax.random.key(0))
    expected = nn.unbox(abstract_base(config))
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_a_random_base_is_held_as_one_that_is_loaded(kind: str, dtype: str) -> None:
    """Else a benchmark in bfloat16 would read twice the bytes that a run reads, and convert each kernel every time."""
    folder = FIXTURES / "models" / "plain_untied"
    config = read_config(folder, dtype=dtype, quantize=kind)
    loaded = load_base(folder, config)
    made = jax.eval_shape(partial(random_base, config), jax.random.key(0))
    assert jax.tree.structure(made) == jax.tree.structure(loaded)
    for leaf, other in zip(jax.tree.leaves(made), jax.tree.leaves(loaded), strict=True):
        assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
    assert made["embed_tokens"].dtype == dtype


def test_making_random_weights_holds_little_more_than_the_weights() -> None:
    """Else a benchmark's peak memory were that of its preparation: all of them at once held four times the weights."""
    config = decoder_config(shapes.MODELS["135M"], "135M", dtype="float32")
    memory = jax.jit(partial(random_base, config)).lower(jax.random.key(0)).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.15 * memory.output_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_work_runs_again_without_compiling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "peaks", lambda dtype: {"matmul_flops": 1.0, "copy_bytes": 1.0})
    prepared = work.prepare(request(name))
    prepared.run()
    ready = prepared.ready()
    prepared.run()
    ended = prepared.end()
    assert ready["compilations"] + ready["programs_found"] > 0 and ended["recompilations"] == 0
    assert ready["tokens"] == TOKENS[name] and ended["host_memory"] > 0
    assert all(isinstance(part, floors.Part) and part.flops > 0 for part in ready["floor"])


@pytest.mark.slow
def test_a_merged_adapter_is_multiplied_with_no_more() -> None:
    """Two prompts of 4 tokens, 5 new ones: 8 tokens read, then 4 passes of 2 rows, each twice the adapter's less."""
    shape = SIZES["generate"]
    found = {}
    for adapter in shapes.ADAPTERS:
        subject = work.make_subject(request("generate"))
        made = work.WORKS["generate"](request("generate", shape=shape | {"adapter": adapter}), subject)
        made.run()
        found[adapter] = made.counted()
    apart, merged = (found[adapter].floor for adapter in shapes.ADAPTERS)
    assert [one.flops - other.flops for one, other in zip(apart, merged, strict=True)] == [16 * ADAPTER, 16 * ADAPTER]
    assert [one.bytes - other.bytes for one, other in zip(apart, merged, strict=True)] == [4 * ADAPTER, 16 * ADAPTER]
    assert found["apart"].tokens == found["merged"].tokens


@pytest.mark.slow
def test_a_phase_speaks_by_a_merged_adapter_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `model.answering` has it; and its floor is that of generating without the adapter."""
    seen = []
    rollout = programs.generate_rollout
    monkeypatch.setattr(programs, "generate_rollout", lambda lm, *rest: seen.append(lm) or rollout(lm, *rest))
    found = {}
    for adapter in shapes.ADAPTERS:
        made = work.WORKS["cai"](
            request("cai", shape=SIZES["cai"] | {"adapter": adapter}), work.make_subject(request("cai"))
        )
        made.run()
        found[adapter] = made.counted()
    assert [lm.model.config.answering for lm in seen] == ["apart", "merged"]
    (apart, *others), (merged, *same) = (found[adapter].floor for adapter in shapes.ADAPTERS)
    assert others == same and apart.flops > merged.flops and apart.bytes > merged.bytes
    assert found["apart"].tokens == found["merged"].tokens


@pytest.mark.slow
def test_what_is_merged_is_the_model_with_its_adapter() -> None:
    """Of an adapter that changes what is said, which a fresh one does not."""
    subject = work.make_subject(request("generate"))
    subject = subject._replace(adapter=jax.tree.map(lambda leaf: leaf + 0.1, subject.adapter))
    merged = jax.jit(work.merged)(subject.lm, subject.adapter)
    tokens = jnp.arange(12).reshape(2, 6) % 32
    valid = jnp.ones((2, 6), bool)
    expected = forward(subject.lm, subject.adapter, tokens, valid)
    np.testing.assert_allclose(forward(merged, {"layers": {}}, tokens, valid), expected, atol=1e-5)
    plain = forward(subject.lm, None, tokens, valid)
    assert float(np.abs(plain - expected).max()) > 0.01


@pytest.mark.slow
def test_a_job_is_the_same_in_both_orders_and_counts_the_steps_of_both() -> None:
    """Twenty-one answers in four rows; what a batch of them takes is its longest."""
    subject = work.make_subject(request("generate"))
    found = {}
    for order in shapes.ORDERS:
        shape = {"rows": 4, "prompt": 6, "new": 12, "answers": 21, "order": order}
        made = work.WORKS["generate"](request("generate", shape=shape), subject)
        made.run()
        found[order] = made.counted()
    queue, batches = found["queue"], found["batches"]
    assert queue.tokens == batches.tokens and queue.floor == batches.floor
    assert 21 < queue.tokens < 21 * 12, "of different lengths"
    assert queue.others["steps"] == queue.others["steps_in_queue"] == batches.others["steps_in_queue"]
    assert batches.others["steps"] == batches.others["steps_in_batches"] == queue.others["steps_in_batches"]
    assert -(-queue.tokens // 4) <= queue.others["steps_at_least"] <= queue.others["steps"] < batches.others["steps"]


def test_steps_of_a_job_are_those_of_prompts_by_length() -> None:
    """In two rows: the answer to the shortest prompt first. 3 beside 1, then 2; or 3 beside 1, 2."""
    shape = shapes.DecodingShape(rows=2, prompt=20, new=9, answers=3)
    by_length = np.argsort(shape.prompts, kind="stable")
    lengths = np.zeros(3, int)
    lengths[by_length] = [3, 1, 2]
    assert work.steps(shape, lengths, parts=1) == {
        "steps": 3, "steps_in_queue": 3, "steps_in_batches": 5, "steps_at_least": 3,
    }  # fmt: skip


def test_memory_is_what_was_held_before_the_limits_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [700]
    monkeypatch.setattr(work.measured, "process_peak", lambda: held[-1])
    monkeypatch.setattr(machine, "peaks", lambda dtype: held.append(9000) or {})
    monkeypatch.setattr(work, "make_subject", lambda request: None)
    monkeypatch.setitem(work.WORKS, "score", lambda request, subject: work.Work(list, work.known(1, [])))
    assert work.prepare(request("score")).end()["host_memory"] == 700


def test_columns_lie_as_a_run_lays_them() -> None:
    """In two parts on two devices, each with its share of q|k|v and of gate|up; whole on one."""
    subject = work.make_subject(request("round", mesh={"fsdp": 1, "tensor": 2}))
    assert subject.lm.model.config.parts == 2
    assert work.make_subject(request("round")).lm.model.config.parts == 1


def test_a_machine_with_fewer_devices_is_refused() -> None:
    with pytest.raises(work.InputError, match=r"^--devices 64: jax sees \d \(cpu\)$"):
        work.prepare(request("round", devices=64))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT's own calls
@pytest.mark.parametrize("name", ["round", "generate", "score"])
def test_torch_does_the_same_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    prepared = torch_peer.prepare(request(name))
    monkeypatch.setattr(torch_peer, "train", lambda model, adapter, batches: seen.append(batches.numel()))
    prepared.run()
    assert prepared.ready()["versions"].startswith("torch ") and prepared.end()["host_memory"] > 0
    if name == "round":
        assert sum(seen) == TOKENS["round"]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of TRL's own calls
def test_trl_trains_on_as_many_tokens_and_moves_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where the model is given them, whatever its trainers do besides."""
    seen, models = [], []

    def adapted_model(asked: dict[str, Any]) -> Any:
        model = torch_peer.adapted_model(asked)
        count = lambda module, given, named: seen.append(named["input_ids"].numel())  # noqa: E731
        model.register_forward_pre_hook(count, with_kwargs=True)
        models.append(model)
        return model

    monkeypatch.setattr(trl_peer, "adapted_model", adapted_model)
    prepared = trl_peer.prepare(request("round"))
    before = [parameter.detach().clone() for parameter in torch_peer.trained_parameters(models[0])]
    prepared.run()
    assert sum(seen) == TOKENS["round"]
    after = torch_peer.trained_parameters(models[0])
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    assert prepared.ready()["versions"].startswith("trl ")


@pytest.mark.parity
@pytest.mark.parametrize("adapter", shapes.ADAPTERS)
def test_torch_merges_its_adapter_where_ours_is_merged(adapter: str) -> None:
    answered = []

    def model(name: str) -> Any:
        config = SimpleNamespace(vocab_size=32)
        return SimpleNamespace(config=config, generate=lambda **_: answered.append(name))

    given = model("apart")
    given.merge_and_unload = lambda: model("merged")
    torch_peer._generate(given, request("generate", shape=SIZES["generate"] | {"adapter": adapter}))()
    assert answered == [adapter]


@pytest.mark.parity
def test_padding_is_on_the_left_and_masked() -> None:
    import torch  # pyright: ignore[reportMissingImports]

    tokens, mask = torch_peer.padded_left([torch.tensor([5]), torch.tensor([6, 7, 8])])
    assert tokens.tolist() == [[0, 0, 5], [6, 7, 8]] and mask.tolist() == [[0, 0, 1], [1, 1, 1]]
