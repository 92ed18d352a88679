"""An adapter that is written is what is read, by us and by PEFT; what we do not compute is refused by name."""

import json
import runpy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import Examples
from fedjax_rai.errors import InputError
from fedjax_rai.model import families, lora, peft, weights
from fedjax_rai.model.architecture import module_name
from fedjax_rai.model.decoder import LM, Decoder, forward, unembed
from fedjax_rai.model.lora import Lora
from fedjax_rai.train import step
from tests.model.common import (
    FIXTURES,
    MODELS,
    assert_trees_equal,
    edit_json,
    edit_tensors,
    logits,
    random_adapter,
    read_tensors,
)
from tests.model.test_weights import CONFIG

TARGETS = CONFIG.targets
LORA = Lora(TARGETS, rank=2, alpha=3.0)
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SHAPES = {
    "plain": LORA,
    "two targets": replace(LORA, targets=("q_proj", "v_proj")),
    "one target": replace(LORA, targets=("down_proj",)),
    "rslora": replace(LORA, rslora=True, rank=3),
    "one layer": replace(LORA, layers=(1,)),
    "patterns": replace(LORA, rank_pattern=(("layers.0.*q_proj", 4), ("v_proj", 1)), alpha_pattern=(("mlp.*", 5.0),)),
}


@pytest.mark.parametrize("own", SHAPES.values(), ids=SHAPES)
def test_an_adapter_round_trips(own, tmp_path):
    adapter = random_adapter(CONFIG, own)
    peft.save_adapter(tmp_path, CONFIG, own, adapter, "meta-llama/Llama-3.1-8B")
    got, read = peft.load_adapter(tmp_path, CONFIG)
    assert got == own
    assert_trees_equal(read, adapter)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (raw["r"], raw["lora_alpha"], raw["base_model_name_or_path"]) == (own.rank, 3, "meta-llama/Llama-3.1-8B")
    numbers = sum(tensor.size for tensor in read_tensors(tmp_path / "adapter_model.safetensors").values())
    assert lora.size(CONFIG, own) == numbers


def test_an_adapter_file_holds_a_and_b_as_peft_does(tmp_path):
    adapter = random_adapter(CONFIG, LORA)
    peft.save_adapter(tmp_path, CONFIG, LORA, adapter, "base")
    tensors = read_tensors(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(tensors[Q_A], adapter["layers"]["q_proj"]["a"][0].T)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], adapter["layers"]["up_proj"]["b"][1].T)


def test_modules_that_a_pattern_leaves_out_are_not_adapted(tmp_path):
    """`target_modules` may be a regular expression or whole names: then the file says which modules there are."""
    own = replace(LORA, targets=("q_proj",))
    adapter = random_adapter(CONFIG, own)
    peft.save_adapter(tmp_path, CONFIG, own, adapter, "base")
    edit_tensors(tmp_path / peft.WEIGHTS, lambda t: [t.pop(n) for n in list(t) if "layers.1." in n])
    with pytest.raises(InputError, match=r"missing: .*layers\.1\..*lora_A"):
        peft.load_adapter(tmp_path, CONFIG)
    edit_json(tmp_path / peft.CONFIG, target_modules=r".*layers\.0.*q_proj")
    got, read = peft.load_adapter(tmp_path, CONFIG)
    assert got.ranks("q_proj", 2) == (2, 0) and lora.size(CONFIG, got) == lora.size(CONFIG, own) // 2
    np.testing.assert_array_equal(read["layers"]["q_proj"]["a"][1], 0)
    peft.save_adapter(tmp_path / "again", CONFIG, got, read, "base")
    assert json.loads((tmp_path / "again" / peft.CONFIG).read_text())["target_modules"] == [module_name(0, "q_proj")]
    assert_trees_equal(peft.load_adapter(tmp_path / "again", CONFIG)[1], read)


def test_excluded_modules_are_not_adapted(tmp_path):
    own = replace(LORA, targets=("q_proj",))
    peft.save_adapter(tmp_path, CONFIG, own, random_adapter(CONFIG, own), "base", "a1b2")
    assert json.loads((tmp_path / peft.CONFIG).read_text())["revision"] == "a1b2"
    edit_tensors(tmp_path / peft.WEIGHTS, lambda t: [t.pop(n) for n in list(t) if "layers.0." in n])
    edit_json(tmp_path / peft.CONFIG, exclude_modules=["layers.0.self_attn.q_proj"])
    assert peft.load_adapter(tmp_path, CONFIG)[0].ranks("q_proj", 2) == (0, 2)


@pytest.mark.slow
def test_what_a_layer_has_no_rank_for_stays_zero():
    """Its gradient is zero, so that training leaves the shape as it is."""
    own = SHAPES["patterns"]
    config = families.read_config(MODELS[0])
    base, model = weights.load_base(MODELS[0], config), Decoder(config, own)
    fresh = lora.init_adapter(config, own, jax.random.key(0))
    tokens = jnp.arange(8)[None]

    def loss(adapter):
        hidden = jax.tree.leaves(logits_of(model, base, adapter, tokens))[0]
        return jnp.sum(hidden**2)

    gradient = jax.jit(jax.grad(loss))(jax.tree.map(lambda x, y: x + y, fresh, random_adapter(config, own)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    for target in own.targets:
        for part in "ab":
            for layer, rank in enumerate(own.ranks(target, config.num_hidden_layers)):
                for tree in (fresh, gradient):
                    leaf = np.asarray(tree["layers"][target][part][layer])
                    np.testing.assert_array_equal(leaf[:, rank:] if part == "a" else leaf[rank:], 0)


def logits_of(model, base, adapter, tokens):
    lm = LM(model, base)
    return unembed(lm, forward(lm, adapter, tokens, jnp.ones(tokens.shape, bool)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only: LORA"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"bias": "all"}, "bias 'all' is not supported, only: none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 0}, "r is 0, must be a whole number > 0"),
        ({"lora_alpha": None}, "lora_alpha is None, must be"),
        ({"r": -4, "use_dora": True}, "use_dora True is not supported; r is -4"),
        ({"lora_bias": True}, "lora_bias True"),
    ],
)
def test_an_adapter_that_we_do_not_compute_is_refused_by_name(changes, message, tmp_path):
    peft.save_adapter(tmp_path, CONFIG, LORA, random_adapter(CONFIG, LORA), "base")
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        peft.load_adapter(tmp_path, CONFIG)
    assert str(tmp_path / "adapter_config.json") in str(caught.value)


def test_an_adapter_of_other_shapes_is_refused(tmp_path):
    peft.save_adapter(tmp_path, CONFIG, LORA, random_adapter(CONFIG, LORA), "base")
    path = tmp_path / "adapter_model.safetensors"
    edit_tensors(path, lambda own: own.update({Q_A: own[Q_A].T, "lm_head.lora_A.weight": own[Q_A]}))
    with pytest.raises(InputError) as caught:
        peft.load_adapter(tmp_path, CONFIG)
    header, *lines = str(caught.value).split("\n  ")
    assert header == f"{path}: tensors do not fit the model"
    assert lines == ["surplus: lm_head.lora_A.weight", f"shape of {Q_A}: (8, 2), expected (2, 8)"]
    edit_tensors(path, lambda own: [own.pop(Q_A), own.pop("lm_head.lora_A.weight")])
    with pytest.raises(InputError, match=f"missing: {Q_A}"):
        peft.load_adapter(tmp_path, CONFIG)
    path.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is not there"):
        peft.load_adapter(tmp_path, CONFIG)


def test_an_adapter_goes_with_its_own_targets_only():
    config = families.read_config(MODELS[0])
    narrow = Decoder(config, replace(LORA, targets=("q_proj",)))
    with pytest.raises(ValueError, match="for a model whose targets are"):
        logits(narrow, weights.load_base(MODELS[0], config), random_adapter(config, LORA), np.arange(8)[None])


def test_the_adapters_of_a_cohort_are_not_written_as_one(tmp_path):
    adapter = random_adapter(CONFIG, LORA)
    with pytest.raises(ValueError, match="the model's are"):
        peft.save_adapter(tmp_path, CONFIG, LORA, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), adapter), "base")
    assert not list(tmp_path.iterdir())


# ---- with PEFT


@pytest.fixture
def torch_and_peft(monkeypatch):
    torch = pytest.importorskip("torch", reason="the parity extra (torch, peft) is not installed")
    return torch, pytest.importorskip("peft", reason="the parity extra (torch, peft) is not installed")


def peft_config(library: Any, draw: np.random.Generator, config, layers: int) -> Any:
    """A random LoraConfig of what we read: ranks, alphas, rslora, targets, layers, patterns."""
    targets = [t for t in config.targets if draw.integers(2)] or [config.targets[0]]
    rank_pattern = {targets[0]: 5} if draw.integers(2) else {}
    subset = [layers - 1] if draw.integers(2) else None
    where = layers - 1 if subset else 0  # PEFT warns of a pattern that matches nothing
    alpha_pattern = {rf"layers\.{where}\..*{targets[-1]}": 7} if draw.integers(2) else {}
    return library.LoraConfig(
        r=int(draw.integers(1, 5)), lora_alpha=int(draw.integers(1, 9)), use_rslora=bool(draw.integers(2)),
        target_modules=targets, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern, task_type="CAUSAL_LM",
        layers_to_transform=subset, init_lora_weights=False,
    )  # fmt: skip


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT uses what transformers is about to rename
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_an_adapter_goes_to_peft_and_back(family, seed, torch_and_peft, tmp_path):
    """PEFT's random adapter in ours, ours in PEFT, merged export in transformers: the same logits each time."""
    torch, library = torch_and_peft
    from transformers import AutoModelForCausalLM

    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    plain = make["build"](family, make["random_config"](family, seed + 50), seed)
    plain.save_pretrained(tmp_path / "base")
    config = families.read_config(tmp_path / "base")
    base = weights.load_base(tmp_path / "base", config)
    draw = np.random.default_rng([seed, len(family)])
    tokens = draw.integers(0, config.vocab_size, (2, 40))

    @torch.no_grad()
    def theirs(own):
        return own(torch.tensor(tokens)).logits.numpy()

    def again():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")

    unadapted = theirs(again())
    wrapped = library.get_peft_model(plain, peft_config(library, draw, config, config.num_hidden_layers))
    expected = theirs(wrapped)
    assert np.abs(unadapted - expected).max() > 1e-2
    wrapped.save_pretrained(tmp_path / "theirs")
    own, adapter = peft.load_adapter(tmp_path / "theirs", config)
    np.testing.assert_allclose(logits(Decoder(config, own), base, adapter, tokens), expected, atol=1e-4, rtol=0)

    peft.save_adapter(tmp_path / "ours", config, own, adapter, str(tmp_path / "base"))
    np.testing.assert_allclose(
        theirs(library.PeftModel.from_pretrained(again(), tmp_path / "ours")), expected, atol=1e-4, rtol=0
    )
    weights.save_merged(tmp_path / "merged", tmp_path / "base", config, own, adapter, "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    np.testing.assert_allclose(theirs(merged), expected, atol=1e-4, rtol=0)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_training_follows_pefts(family, torch_and_peft, tmp_path):
    """Ten steps from one adapter on the same ragged batches: every loss within 1e-3 of PEFT's with torch's Adam."""
    torch, library = torch_and_peft
    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    plain = make["build"](family, make["random_config"](family, 77), 77)
    plain.save_pretrained(tmp_path / "base")
    config = families.read_config(tmp_path / "base")
    own = Lora(config.targets, 3, 6.0, rank_pattern=((config.targets[0], 2),))
    start = random_adapter(config, own)
    peft.save_adapter(tmp_path / "start", config, own, start, "base")
    draw, steps, batch, length, rate = np.random.default_rng(0), 10, 4, 24, 3e-3
    lengths = draw.integers(8, length + 1, (steps, batch, 1))
    valid = np.arange(length) < lengths
    trained = valid & (np.arange(length) >= draw.integers(1, 6, (steps, batch, 1)))
    tokens = np.where(valid, draw.integers(0, config.vocab_size, (steps, batch, length)), 0)

    theirs = library.PeftModel.from_pretrained(plain, tmp_path / "start", is_trainable=True)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer, expected = torch.optim.Adam(parameters, lr=rate), []
    for i in range(steps):
        labels = torch.tensor(np.where(trained[i], tokens[i], -100))
        out = theirs(torch.tensor(tokens[i]), attention_mask=torch.tensor(valid[i].astype(int)), labels=labels)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        expected.append(out.loss.item())

    lm = LM(Decoder(config, own), weights.load_base(tmp_path / "base", config))
    state, got = step.start(start), []
    batches = Examples(*(jnp.asarray(column) for column in (tokens, trained, valid.astype(np.int32))))
    for i in range(steps):
        one = jax.tree.map(lambda column, i=i: column[i], batches)
        state, terms = _update(lm, state, one, np.float32(rate))
        got.append(float(terms.mean()))
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)
    assert max(expected) - min(expected) > 0.05
    final = {name: p.detach().numpy() for name, p in theirs.named_parameters() if p.requires_grad}
    peft.save_adapter(tmp_path / "end", config, own, state.adapter, "base")
    for name, tensor in read_tensors(tmp_path / "end" / peft.WEIGHTS).items():
        np.testing.assert_allclose(tensor, final[name.replace(".weight", ".default.weight")], atol=2e-3, rtol=0)


_update = jax.jit(step.update)
