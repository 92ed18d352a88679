"""An adapter that is written is what is read, by us and by PEFT; what is not plain LoRA is refused by name."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from fedjax_rai.errors import InputError
from fedjax_rai.model import decoder, lora, weights
from fedjax_rai.model.decoder import TARGETS, Decoder, DecoderConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIG = DecoderConfig(
    vocab_size=19,
    hidden_size=8,
    intermediate_size=10,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
)
MODEL = Decoder(CONFIG, TARGETS, lora_rank=2, lora_scale=1.5)
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def random_like(tree, seed: int = 0):
    """No two numbers alike, so that nothing may be swapped unseen; norms around one."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def assert_trees_equal(got, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def logits(model, base, adapter, tokens):
    hidden = decoder.forward(model, base, adapter, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    return decoder.unembed(model, base, hidden)


def edit_tensors(path: Path, change) -> None:
    tensors = read_tensors(path)
    change(tensors)
    weights.save_safetensors(path, tensors)


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj"), ("down_proj",)])
def test_an_adapter_round_trips(targets, tmp_path):
    model = MODEL.copy(lora_targets=targets)
    adapter = random_like(lora.init_adapter(model, jax.random.key(0)))
    weights.save_adapter(tmp_path, model, adapter, "meta-llama/Llama-3.1-8B")
    assert_trees_equal(weights.load_adapter(tmp_path, model), adapter)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (raw["r"], raw["lora_alpha"], raw["base_model_name_or_path"]) == (2, 3, "meta-llama/Llama-3.1-8B")


def test_an_adapter_file_holds_a_and_b_as_peft_does(tmp_path):
    adapter = random_like(lora.init_adapter(MODEL, jax.random.key(0)))
    weights.save_adapter(tmp_path, MODEL, adapter, "base")
    tensors = read_tensors(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(tensors[Q_A], adapter["layers"]["q_proj"]["a"][0].T)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], adapter["layers"]["up_proj"]["b"][1].T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only: LORA"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"bias": "all"}, "bias 'all' is not supported, only: none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 4}, "r is 4, the model's rank is 2"),
        ({"lora_alpha": 16}, r"lora_alpha is 16, the model's \(lora_scale \* rank\) is 3"),
        ({"r": 4, "use_dora": True}, "use_dora True is not supported; r is 4"),
    ],
)
def test_an_adapter_that_we_do_not_compute_is_refused_by_name(changes, message, tmp_path):
    weights.save_adapter(tmp_path, MODEL, lora.init_adapter(MODEL, jax.random.key(0)), "base")
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        weights.load_adapter(tmp_path, MODEL)
    assert str(tmp_path / "adapter_config.json") in str(caught.value)


def test_an_adapter_of_other_targets_or_shapes_is_refused(tmp_path):
    weights.save_adapter(tmp_path, MODEL, lora.init_adapter(MODEL, jax.random.key(0)), "base")
    narrow = MODEL.copy(lora_targets=("q_proj",))
    with pytest.raises(InputError, match="targets are down_proj, .*, v_proj, the model's are q_proj"):
        weights.load_adapter(tmp_path, narrow)
    path = tmp_path / "adapter_model.safetensors"
    edit_tensors(path, lambda own: own.update({Q_A: own[Q_A].T}))
    with pytest.raises(InputError, match=r"shape of .*\.q_proj\.lora_A\.weight: \(8, 2\), expected \(2, 8\)"):
        weights.load_adapter(tmp_path, MODEL)
    edit_tensors(path, lambda own: own.pop(Q_A))
    with pytest.raises(InputError, match=f"missing: {Q_A}"):
        weights.load_adapter(tmp_path, MODEL)
    path.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is not there"):
        weights.load_adapter(tmp_path, MODEL)


def test_the_adapters_of_a_cohort_are_not_written_as_one(tmp_path):
    adapter = lora.init_adapter(MODEL, jax.random.key(0))
    with pytest.raises(ValueError, match="the model's are"):
        weights.save_adapter(tmp_path, MODEL, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), adapter), "base")
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT uses what transformers is about to rename
@pytest.mark.parametrize("seed", range(2))
def test_an_adapter_goes_to_peft_and_back(seed, tmp_path):
    """Ours in PEFT, merged export in transformers, PEFT's own file in ours: the same logits each time."""
    torch = pytest.importorskip("torch", reason="the parity extra (torch, peft) is not installed")
    peft = pytest.importorskip("peft", reason="the parity extra (torch, peft) is not installed")
    from transformers import AutoModelForCausalLM

    make = runpy.run_path(str(FIXTURES / "make_llama.py"))
    make["build"](make["random_config"](seed), seed).save_pretrained(tmp_path / "base")
    config = weights.read_config(tmp_path / "base")
    model = Decoder(config, TARGETS if seed else ("q_proj", "v_proj"), lora_rank=3, lora_scale=2.0)
    base = weights.load_base(tmp_path / "base", config)
    adapter = random_like(lora.init_adapter(model, jax.random.key(seed)))
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 40))
    ours = logits(model, base, adapter, tokens)

    @torch.no_grad()
    def theirs(own):
        return own(torch.tensor(tokens)).logits.numpy()

    weights.save_adapter(tmp_path / "ours", model, adapter, str(tmp_path / "base"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert np.abs(theirs(plain) - ours).max() > 1e-2
    wrapped = peft.PeftModel.from_pretrained(plain, tmp_path / "ours")
    np.testing.assert_allclose(theirs(wrapped), ours, atol=1e-4, rtol=0)

    wrapped.save_pretrained(tmp_path / "theirs")
    assert_trees_equal(weights.load_adapter(tmp_path / "theirs", model), adapter)

    weights.save_base(tmp_path / "merged", config, lora.merge(model, base, adapter), "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(theirs(merged), ours, atol=1e-4, rtol=0)
