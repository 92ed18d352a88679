"""A guard model of its own: read from its folder, asked in its own form, fitted on nothing."""

import dataclasses
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.config.schema import ExperimentConfig, GuardConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import guarding, models
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.decoder import Decoder, forward, init_base, unembed
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.weights import save_base
from fedjax_rai.runs import files, report
from fedjax_rai.runs import folder as folders
from fedjax_rai.runs.rows import GuardQuality, Quality, Rate
from fedjax_rai.safety.guard import score
from fedjax_rai.studies import table
from fedjax_rai.text.prompts import answered
from tests.chat_models import FAMILIES, LLAMA_GUARD, huggingface, ids_of
from tests.tiny_runs import SUMMARY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama over the tokenizer of a guard."""
    folder = tmp_path_factory.mktemp("hub") / "guard"
    hf = huggingface(FAMILIES["llama3"], template=LLAMA_GUARD)
    hf.save_pretrained(folder)
    raw = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(hf), "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    base = jax.tree.map(lambda x: 3 * x, init_base(decoder_config(raw, "here"), jax.random.key(0)))
    save_base(folder, raw, base, "float32")
    return folder


@pytest.fixture
def guarded(config, folder) -> ExperimentConfig:
    fields = config.model_dump()
    fields["guard"] |= {"path": str(folder), "self_test": False}  # it is random
    fields["data"] |= {"max_length": 256}
    return ExperimentConfig.model_validate(fields)


@pytest.mark.slow
def test_a_released_guard_is_asked_in_its_own_form_and_not_fitted(guarded, folder):
    own = Setting(guarded)
    guard = own.guarding.untuned
    assert own.guarding.guard is guard
    assert guard.adapter is None and guard.tokenizer.name == str(folder)
    pairs = [(pair.query, pair.response) for pair in own.texts.materials.pairs[:3]] + [("", "")]
    words = [guard.tokenizer.hf.convert_tokens_to_ids(word) for word in ("s", "uns")]
    for pair, value in zip(pairs, score(guard, pairs), strict=True):
        ids = ids_of(guard.tokenizer.hf, answered(*pair), generate=True) + guard.tokenizer.encode("\n\n")
        tokens = jnp.array([ids])
        hidden = forward(guard.lm, None, tokens, jnp.ones_like(tokens, bool))
        logits = np.asarray(unembed(guard.lm, hidden[:, -1]))[0, words]
        assert value == pytest.approx(1 / (1 + np.exp(logits[0] - logits[1])), abs=1e-5)
    assert len(set(own.guarding.scores.tolist())) > 10
    quality = own.guarding.quality
    assert quality["fitted"] is None and set(quality["released"] or {}) == {"accuracy", "precision", "recall", "hmean"}
    own.check()


def test_the_limit_of_a_pairs_length_leaves_room_for_the_guards_own_request(guarded):
    guard, limit = Setting(guarded).guarding.untuned, guarded.data.max_length
    assert guard.max_length == len(ids_of(guard.tokenizer.hf, answered("", ""), generate=True)) + limit


def test_ids_that_a_model_has_no_row_for_are_refused_by_their_config_key(guarded):
    own = Setting(guarded)
    narrow = Decoder(dataclasses.replace(own.guarding.untuned.lm.model.config, vocab_size=300))
    small = own.guarding.untuned._replace(lm=dataclasses.replace(own.guarding.untuned.lm, model=narrow))
    with pytest.raises(InputError, match=r"has id \d+, .* a vocab_size of 300; guard.path must be"):
        score(small, [("q", "r")])
    for used in ("texts.corpus", "texts.red_prompts", "revising.requests", "replay.examples", "guarding.guard"):
        fresh = Setting(guarded.model_copy(update={"guard": GuardConfig(pairs=8, steps=2, batch_size=4)}))
        fresh.models.architecture = dataclasses.replace(own.models.architecture, vocab_size=300)
        fresh.models.base = own.models.base
        with pytest.raises(InputError, match="a vocab_size of 300; model.path must be"):
            attrgetter(used)(fresh)


def test_a_guard_of_its_own_needs_no_pairs(guarded):
    filtering = guarded.filter.model_copy(update={"enabled": True})
    own = Setting(guarded.model_copy(update={"filter": filtering}))
    own.texts.materials = own.texts.materials._replace(guard_pairs=())
    assert own.guarding.possible
    own.check()


def test_what_is_reported_of_a_guard_that_was_not_fitted(tmp_path):
    quality = Quality(accuracy=70.1, precision=90.6, recall=0.5, hmean=1.0)
    rates = {"harmless": Rate(50.0, 40.0, 60.0, 4)}
    summary = SUMMARY._replace(rates=rates, guard=GuardQuality(fitted=None, released=quality))
    files.write_json(tmp_path / folders.SUMMARY, summary)
    assert "guard on the clients' pairs: accuracy 70.1, precision 90.6" in report.report(tmp_path)
    table.write(tmp_path, ExperimentConfig(), ["fl"], {("fl", 0): files.plain(summary)})
    assert "guard, seed 0: accuracy 70.1" in (tmp_path / "table.md").read_text()


def test_models_from_the_hub_are_recorded_by_their_commit(guarded, folder, tmp_path, monkeypatch):
    snapshot = folder.parent / "snapshots" / "0a1b2c"
    snapshot.parent.mkdir()
    snapshot.symlink_to(folder)
    asked = []

    def resolve(path, revision=None, weights=False):
        asked.append((path, revision))
        return snapshot

    monkeypatch.setattr(models, "resolve", resolve)
    monkeypatch.setattr(guarding, "resolve", resolve)
    hub = {"path": "owner/name", "revision": "v1"}
    fields = guarded.model_dump() | {"guard": guarded.guard.model_dump() | hub}
    own = Setting(ExperimentConfig.model_validate(fields))
    assert own.commits == {"model_commit": "0a1b2c", "guard_commit": "0a1b2c"}
    assert asked == [("tiny", None), ("owner/name", "v1")]
    for _ in range(2):
        folders.note_versions(tmp_path / "versions.json", own.commits)
    folders.note_versions(tmp_path / "versions.json", {})
    first, second = files.read_json(tmp_path / "versions.json")
    assert first["guard_commit"] == "0a1b2c" and first == second | own.commits and "model_commit" not in second
