"""What the arms of one experiment share: model, base, encoded data, guard and its scores, evaluation.

Computed when first asked for, once: an arm more costs its own training only.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import mesh as meshes
from fedjax_rai import rng
from fedjax_rai.cai.constitution import load_constitution
from fedjax_rai.cai.revise import Requests, encode_requests, examples
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.data.examples import BUCKET, Examples, Prompts, encode_chats, encode_questions, pad_left
from fedjax_rai.data.partition import iid
from fedjax_rai.errors import InputError
from fedjax_rai.model.decoder import TARGETS, Decoder, abstract_params
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.model.weights import load_base, read_config
from fedjax_rai.run import log
from fedjax_rai.run.materials import Materials, gather
from fedjax_rai.safety import guard as guards
from fedjax_rai.text.prompts import answered, question, request
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer, resolve
from fedjax_rai.train.generate import generate

CONSTITUTION = Path(__file__).parent.parent / "assets" / "constitution.yaml"


class Setting:
    """`config` decides all that is here.

    Arms may differ from it in `federated.rounds`, `filter`, and `cai.enabled`, `.iterations`, `.target`, `.critic`,
    `.learning_rate`, `.temperature` and `.batch_size`.
    """

    def __init__(self, config: ExperimentConfig):
        self.config = config
        self.root = jax.random.key(config.seed)
        self.materials: Materials = gather(config)
        self.tokenizer: Tokenizer = load_tokenizer(config.model.path)
        self.parts = iid(len(self.materials.pairs), config.federated.clients, config.seed)

    def check(self, config: ExperimentConfig) -> None:
        """Read all that an arm of that config will use, so that what is wrong is said before anything is written."""
        used = [self.base, self.tokenizer.verdict_ids, request(self.tokenizer, "q")]
        if config.cai.enabled:
            used += [self.requests, self.red_prompts]
        if config.filter.enabled and not self.materials.guard_pairs:
            raise InputError(f"data.train = {config.data.train}: the filter's guard needs pairs of both kinds")

    @cached_property
    def mesh(self):
        return meshes.make_mesh()

    @cached_property
    def model(self) -> Decoder:
        lora, own = self.config.lora, self.config.model
        shape = read_config(resolve(own.path), own.dtype, own.remat)
        targets = tuple(target for target in TARGETS if target in lora.targets)
        return Decoder(shape, targets, lora.rank, lora.alpha / lora.rank)

    @cached_property
    def base(self):
        shardings = meshes.base_shardings(self.mesh, abstract_params(self.model)["params"])
        return load_base(resolve(self.config.model.path), self.model.config, shardings)

    def fresh_adapter(self, name: str):
        return jax.device_put(init_adapter(self.model, rng.stream(self.root, name)), meshes.replicated(self.mesh))

    @cached_property
    def corpus(self) -> Examples:
        """Every client's examples, one row each, in the order of `materials.pairs`; on the device."""
        return self._encoded[0]

    @property
    def truncated(self) -> int:
        """How many of the clients' examples were cut to `data.max_length` tokens."""
        return int(self._encoded[1].sum())

    @cached_property
    def _encoded(self) -> tuple[Examples, np.ndarray]:
        chats = [answered(pair.query, pair.response) for pair in self.materials.pairs]
        examples, cut = encode_chats(self.tokenizer, chats, self.config.data.max_length)
        return jax.device_put(examples, meshes.replicated(self.mesh)), cut

    @cached_property
    def guard(self) -> guards.Guard:
        """The base with an adapter fitted on labelled pairs."""
        own, config = self.config.guard, self.config
        pairs = guards.flip_labels(self.materials.guard_pairs, own.label_noise, rng.host(config.seed, "guard noise"))
        examples, cut = guards.training_examples(self.tokenizer, pairs, config.data.max_length)
        log.say(f"fitting the guard on {len(pairs)} pairs" + (f", {cut.sum()} of them cut" if cut.any() else ""))
        g = rng.host(config.seed, "guard batches")
        rows = cycle(np.arange(len(pairs)), own.steps * own.batch_size, g).reshape(own.steps, own.batch_size)
        adapter = guards.fit(
            self.model, self.base, self.fresh_adapter("guard"), examples, rows, np.float32(own.learning_rate)
        )
        return self.untuned_guard._replace(adapter=adapter)

    @cached_property
    def untuned_guard(self) -> guards.Guard:
        config = self.config
        return guards.Guard(self.model, self.base, None, self.tokenizer, config.data.max_length, config.eval.batch_size)

    @cached_property
    def scores(self) -> np.ndarray:
        """p(unsafe) of every client's pairs."""
        log.say(f"scoring {len(self.materials.pairs)} pairs")
        return guards.score(self.guard, [(p.query, p.response) for p in self.materials.pairs])

    @cached_property
    def guard_quality(self) -> dict[str, dict[str, float]]:
        """Of the guard on the clients' pairs, whose truth this simulation knows; as fitted and as released."""
        pairs = self.materials.pairs
        released = guards.score(self.untuned_guard, [(p.query, p.response) for p in pairs])
        truth, threshold = [p.harmful for p in pairs], self.config.guard.threshold
        return {
            "fitted": guards.quality(self.scores, truth, threshold),
            "released": guards.quality(released, truth, threshold),
        }

    @cached_property
    def constitution(self):
        path = self.config.cai.constitution
        return load_constitution(CONSTITUTION if path == "default" else Path(path))

    @cached_property
    def requests(self) -> Requests:
        return encode_requests(self.tokenizer, self.constitution)

    @cached_property
    def red_prompts(self) -> Prompts:
        """The server's red prompts, all padded to the longest, so that every round has the same shapes."""
        if not self.materials.red_prompts:
            raise InputError(f"data.train = {self.config.data.train}: no red questions left for cai.prompts")
        return self._questions(self.materials.red_prompts)

    @cached_property
    def replay(self) -> Examples:
        """Benign prompts with the base's own greedy answers, to hold utility during constitutional AI."""
        if not self.materials.benign_prompts:
            nothing = jnp.zeros((0, BUCKET))
            return Examples(nothing.astype(jnp.int32), nothing.astype(bool), nothing.astype(bool))
        prompts = self._questions(self.materials.benign_prompts)
        keys = jax.random.split(rng.stream(self.root, "replay"), len(prompts.tokens))
        end, new = self.tokenizer.end_id, self.config.cai.max_new_tokens
        answers = jax.jit(generate, static_argnames=("model", "max_new"))(
            self.model, self.base, None, prompts.tokens, prompts.valid, keys, np.float32(0), end, max_new=new
        )
        return examples(prompts, answers)

    def _questions(self, queries: Sequence[str]) -> Prompts:
        asked = [question(query) for query in queries]
        encoded = encode_questions(self.tokenizer, asked, self.config.data.max_length)
        return Prompts(*map(jnp.asarray, pad_left(encoded, self.tokenizer.pad_id)))


def cycle(rows: np.ndarray, n: int, g: np.random.Generator) -> np.ndarray:
    """n entries of `rows`: a fresh permutation each time they are used up."""
    times = -(-n // max(len(rows), 1))
    return np.concatenate([rows[:0], *(g.permutation(rows) for _ in range(times))])[:n]
