"""What the arms of one experiment share: model, base, encoded data, guard and its scores, evaluation.

Computed when first asked for, once: an arm more costs its own training only.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import mesh as meshes
from fedjax_rai import rng, terminal
from fedjax_rai.cai.constitution import Constitution, load_constitution
from fedjax_rai.cai.revise import Requests, encode_requests, examples
from fedjax_rai.config.files import ONLINE, constitution_path
from fedjax_rai.config.schema import (
    TINY,
    CaiConfig,
    ExperimentConfig,
    FederatedConfig,
    FilterConfig,
    GuardConfig,
    ModelConfig,
)
from fedjax_rai.data.examples import BUCKET, Examples, Prompts, encode_chats, encode_questions, pad_left
from fedjax_rai.data.order import cycle
from fedjax_rai.data.partition import iid
from fedjax_rai.data.sources import read_preferences
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.materials import Materials, gather
from fedjax_rai.experiment.models import check_attention
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder, abstract_base
from fedjax_rai.model.families import read_config
from fedjax_rai.model.lora import Lora, init_adapter, lora_shape
from fedjax_rai.model.weights import load_base
from fedjax_rai.safety import guard as guards
from fedjax_rai.text.hub import commit, resolve
from fedjax_rai.text.prompts import Turn, answered, prompt, question
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer
from fedjax_rai.train.generate import Decoding, Sampling, generate

# Keys that nothing in a setting depends on.
FREE: dict[str, set[str]] = {
    "federated": set(FederatedConfig.model_fields) - {"clients"},
    "filter": set(FilterConfig.model_fields),
    "cai": set(CaiConfig.model_fields) - {"probe", "data", "replay", "max_new_tokens", "constitution"},
}


def fixed(config: ExperimentConfig) -> dict[str, Any]:
    """What a setting depends on: configs that agree in it may share one."""
    return config.model_dump(exclude={"output": True} | FREE)  # pyright: ignore[reportArgumentType]


class Prepared(NamedTuple):
    """A prepared set on the device, its examples all of one length; and on the host, what its pairs are good for."""

    chosen: Examples
    rejected: Examples
    usable: np.ndarray  # the chosen answer may be learnt
    causes: dict[str, np.ndarray]  # why a pair is not to be preferred


class Setting:
    """`config` decides all that is here.

    Arms may differ from it in the keys that `FREE` names: they share their setting. `previous` gives its base, if that
    is the same and was read: nothing takes longer.
    """

    def __init__(self, config: ExperimentConfig, previous: "Setting | None" = None):
        self.config = config
        if previous and (previous.config.model, previous.config.mesh) == (config.model, config.mesh):
            vars(self).update({"base": previous.base} if "base" in vars(previous) else {})
        self.root = jax.random.key(config.seed)
        self.materials: Materials = gather(config)
        self.tokenizer: Tokenizer = load_tokenizer(config.model.path, config.model.revision)
        self.parts = iid(len(self.materials.pairs), config.federated.clients, config.seed)

    def check(self, config: ExperimentConfig) -> None:
        """Read all that an arm of that config will use, so that what is wrong is said before anything is written."""
        used = [self.model, self.corpus, self.base, self.tokenizer.closing]
        if config.cai.enabled:
            used += [self.prepared] if config.cai.data != ONLINE else [self.requests, self.red_prompts, self.openings]
        if config.cai.enabled and config.cai.data == ONLINE:
            self.name_unknown_categories()
        if config.cai.probe:
            self._check_probe(config)
        if self.guarded:
            used += [guards.guard_form(self.untuned_guard.tokenizer)]
        elif config.filter.enabled:
            raise InputError(f"data.train = {config.data.train}: the filter's guard needs pairs of both kinds")

    def name_unknown_categories(self) -> None:
        """A constitution may be meant for more than one set of questions, so this is no error."""
        known = sorted({prompt.category for prompt in self.materials.red_prompts})
        named = {category for principle in self.constitution.principles for category in principle.categories}
        if unknown := sorted(named - {*known}):
            terminal.say(f"the constitution names {', '.join(unknown)}; red prompts are of {', '.join(known)} only")

    def _check_probe(self, config: ExperimentConfig) -> None:
        if len(self.materials.probe_prompts) < config.cai.probe:
            raise InputError(
                f"cai.probe = {config.cai.probe}: there are only {len(self.materials.probe_prompts)} prompts"
            )
        if not self.guarded:
            raise InputError(f"cai.probe = {config.cai.probe}: needs a guard; data.train has no pairs of both kinds")

    @cached_property
    def mesh(self):
        return meshes.make_mesh(self.config.mesh.fsdp, self.config.mesh.tensor)

    @cached_property
    def model(self) -> Decoder:
        shape = self._shape(self._folder)
        check_attention(shape)
        return Decoder(shape, lora_shape(self.config.lora, shape))

    @cached_property
    def base(self):
        return self._load(self.config.model, self.model.config)

    @property
    def lm(self) -> LM:
        """Model and base, as every program takes them."""
        return LM(self.model, self.base)

    @property
    def _folder(self) -> Path:
        return resolve(self.config.model.path, self.config.model.revision)

    @property
    def _guard_folder(self) -> Path | None:
        own = self.config.guard
        return None if own.path is None else resolve(own.path, own.revision)

    def _shape(self, folder: Path) -> DecoderConfig:
        own = self.config.model
        return read_config(folder, dtype=own.dtype, attention=own.attention, quantize=own.quantize, remat=own.remat)

    def _load(self, own: ModelConfig | GuardConfig, shape: DecoderConfig):
        folder = resolve(own.path or TINY, own.revision, weights=True)
        return load_base(folder, shape, meshes.base_shardings(self.mesh, abstract_base(shape)))

    @property
    def commits(self) -> dict[str, str]:
        """Which commit each model from the hub is of."""
        folders = {"model_commit": self._folder, "guard_commit": self._guard_folder}
        return {name: own for name, folder in folders.items() if folder and (own := commit(folder))}

    @property
    def shapes(self) -> tuple[DecoderConfig, Lora]:
        """Of the base and of every adapter."""
        return self.model.config, self.model.lora

    def fresh_adapter(self, name: str):
        return jax.device_put(init_adapter(*self.shapes, rng.stream(self.root, name)), meshes.replicated(self.mesh))

    @cached_property
    def corpus(self) -> Examples:
        """Every client's examples, one row each, in the order of `materials.pairs`; on the device."""
        return self._encoded[0]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every example of the corpus, on the host."""
        return np.asarray(self.corpus.valid.sum(axis=1))

    @property
    def truncated(self) -> int:
        """How many of the clients' examples were cut to `data.max_length` tokens."""
        return int(self._encoded[1].sum())

    @cached_property
    def _encoded(self) -> tuple[Examples, np.ndarray]:
        chats = [answered(pair.query, pair.response) for pair in self.materials.pairs]
        examples, cut = encode_chats(self.tokenizer, chats, self.config.data.max_length)
        self._check_ids(examples.tokens)
        return jax.device_put(examples, meshes.replicated(self.mesh)), cut

    @cached_property
    def guard(self) -> guards.Guard:
        """The base with an adapter fitted on labelled pairs; with a `guard.path` that model as it is."""
        own, config = self.config.guard, self.config
        if own.path is not None:
            return self.untuned_guard
        pairs = guards.flip_labels(self.materials.guard_pairs, own.label_noise, rng.host(config.seed, "guard noise"))
        examples, cut = guards.training_examples(self.tokenizer, pairs, config.data.max_length)
        self._check_ids(examples.tokens)
        terminal.say(f"fitting the guard on {len(pairs)} pairs" + (f", {cut.sum()} of them cut" if cut.any() else ""))
        g = rng.host(config.seed, "guard batches")
        rows = cycle(np.arange(len(pairs)), own.steps * own.batch_size, g).reshape(own.steps, own.batch_size)
        adapter = guards.fit(self.lm, self.fresh_adapter("guard"), examples, rows, np.float32(own.learning_rate))
        return self.untuned_guard._replace(adapter=adapter)

    @property
    def guarded(self) -> bool:
        """Whether there can be a guard: a released one, or pairs to fit one on."""
        return self.config.guard.path is not None or bool(self.materials.guard_pairs)

    @cached_property
    def guard_model(self) -> Decoder:
        """The experiment's own, or a released one."""
        return self.model if (folder := self._guard_folder) is None else Decoder(self._shape(folder))

    @cached_property
    def guard_tokenizer(self) -> Tokenizer:
        own = self.config.guard
        return self.tokenizer if own.path is None else load_tokenizer(own.path, own.revision)

    @cached_property
    def untuned_guard(self) -> guards.Guard:
        config = self.config
        if (folder := self._guard_folder) is not None:
            model, sizes = self.guard_model, (config.data.max_length, config.eval.batch_size)
            base = self.base if folder == self._folder else self._load(config.guard, model.config)  # never twice
            return guards.released_guard(LM(model, base), self.guard_tokenizer, *sizes)
        return guards.Guard(self.lm, None, self.tokenizer, config.data.max_length, config.eval.batch_size)

    @cached_property
    def scores(self) -> np.ndarray:
        """p(unsafe) of every client's pairs."""
        terminal.say(f"scoring {len(self.materials.pairs)} pairs")
        return guards.score(self.guard, [(p.query, p.response) for p in self.materials.pairs])

    @cached_property
    def guard_quality(self) -> dict[str, dict[str, float] | None]:
        """Of the guard on the clients' pairs, whose truth the simulation knows; as fitted (or None) and as released."""
        pairs = self.materials.pairs
        truth, threshold = [p.harmful for p in pairs], self.config.guard.threshold
        used = guards.quality(self.scores, truth, threshold)
        if self.config.guard.path is not None:
            return {"fitted": None, "released": used}
        released = guards.score(self.untuned_guard, [(p.query, p.response) for p in pairs])
        return {"fitted": used, "released": guards.quality(released, truth, threshold)}

    @cached_property
    def constitution(self) -> Constitution:
        return load_constitution(constitution_path(self.config))

    @cached_property
    def requests(self) -> Requests:
        requests = encode_requests(self.tokenizer, self.constitution.principles)
        self._check_ids(requests.critique.tokens, requests.revision.tokens)
        return requests

    @cached_property
    def red_prompts(self) -> Prompts:
        """The server's red prompts, all padded to the longest, so that every round has the same shapes."""
        if not self.materials.red_prompts:
            raise InputError(f"data.train = {self.config.data.train}: no red questions left for cai.prompts")
        return self._questions([prompt.query for prompt in self.materials.red_prompts])

    @cached_property
    def openings(self) -> Prompts:
        """The same behind the constitution's few-shot turns: what a critic reads."""
        few = self.constitution.few_shot
        return (
            self._questions([prompt.query for prompt in self.materials.red_prompts], few) if few else self.red_prompts
        )

    @cached_property
    def prepared(self) -> Prepared:
        """The set in `cai.data`."""
        pairs, own = read_preferences(Path(self.config.cai.data)), self.config
        chats = [answered(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
        both, cut = encode_chats(self.tokenizer, chats, own.data.max_length)
        self._check_ids(both.tokens)
        chosen, rejected = (Examples(*(jnp.asarray(column[i::2]) for column in both)) for i in (0, 1))
        # the set may be of another seed, whose questions were shared out otherwise
        held_out = np.array([pair.prompt in self.materials.evaluated for pair in pairs])
        causes = {
            "held_out": held_out,
            "cut_off": cut[0::2] | cut[1::2],
            "equal": np.array([pair.chosen == pair.rejected for pair in pairs]),
        }
        return Prepared(chosen, rejected, ~held_out & ~cut[0::2], causes)

    @cached_property
    def replay(self) -> Examples:
        """Benign prompts with the base's own greedy answers, to hold utility during constitutional AI."""
        if not self.materials.benign_prompts:
            nothing = jnp.zeros((0, BUCKET))
            return Examples(nothing.astype(jnp.int32), nothing.astype(bool), nothing.astype(jnp.int32))
        prompts = self._questions(self.materials.benign_prompts)
        keys = jax.random.split(rng.stream(self.root, "replay"), len(prompts.tokens))
        ends, new = np.array(self.tokenizer.end_ids, np.int32), self.config.cai.max_new_tokens
        answers = generate(self.lm, None, prompts, keys, Decoding(Sampling(np.float32(0)), ends, new))
        return examples(prompts, answers)

    def _questions(self, queries: Sequence[str], before: Sequence[Turn] = ()) -> Prompts:
        """Questions behind the turns `before`, which come on top of `data.max_length`."""
        room = len(self.tokenizer.encode(prompt(self.tokenizer, before))) if before else 0
        asked = [[*before, *question(query)] for query in queries]
        encoded = encode_questions(self.tokenizer, asked, self.config.data.max_length + room)
        padded = pad_left(encoded, self.tokenizer.pad_id)
        self._check_ids(padded.tokens)
        return Prompts(*map(jnp.asarray, padded))

    def _check_ids(self, *tokens: np.ndarray | jax.Array) -> None:
        for ids in tokens:
            self.tokenizer.check_ids(ids, self.model.config.vocab_size, "model.path")
