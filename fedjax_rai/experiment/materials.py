"""Every text that an experiment uses, from the tiny world or from the user's files."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedjax_rai import rng
from fedjax_rai.config.schema import TINY
from fedjax_rai.config.views import Readable
from fedjax_rai.data import tiny_world
from fedjax_rai.data.sources import Pair, RedPrompt, read_square, recipe, split_by_question
from fedjax_rai.data.summary import Reading
from fedjax_rai.evals.suite import EvalSet, Sources, load_sets

TINY_RED, TINY_ACCEPTABLE = 1800, 4200  # the proportions of SQuARe20K
RED_PROMPTS = 2000  # questions that the server draws from for constitutional AI
# SQuARe's questions are shared out, so that nobody's pairs hold another's question.
SHARES = {"clients": 0.55, "guard": 0.2, "cai": 0.1, "eval": 0.15}


class Materials(NamedTuple):
    """Who holds what: pairs are the clients', red and benign prompts the server's; the rest is for evaluation."""

    pairs: Sequence[Pair]
    guard_pairs: Sequence[Pair]
    red_prompts: Sequence[RedPrompt]
    probe_prompts: Sequence[str]
    benign_prompts: Sequence[str]
    evaluations: Mapping[str, EvalSet]
    """By the evaluation's name. A set that the data cannot provide is empty, and its result is not measured."""
    shares: Mapping[str, Sequence[Pair]] = {}
    """All pairs of each of `SHARES`, of which the others are taken; none where the tiny world makes them."""
    read: Mapping[str, Reading] = {}
    """What was read, by its path or name; nothing where the tiny world makes the pairs."""

    @property
    def evaluated(self) -> set[str]:
        """Every question that the evaluation or the probe asks."""
        asked = [prompt for given in self.evaluations.values() for prompt in given.prompts]
        return {*asked, *self.probe_prompts}


def gather(config: Readable) -> Materials:
    """Read or make everything. Raises InputError for files that are not what they should be."""
    return _tiny(config) if config.data.train == TINY else _square(config)


def _evaluations(config: Readable, held_out: Sequence[Pair]) -> dict[str, EvalSet]:
    return load_sets(Sources(config.eval, config.data, config.seed, held_out))


def _tiny(config: Readable) -> Materials:
    split, seed = config.data.split, config.seed
    red = TINY_RED if config.data.red is None else config.data.red
    acceptable = TINY_ACCEPTABLE if config.data.acceptable is None else config.data.acceptable
    red_prompts, probe_prompts = held_out(tiny_world.red_prompts(RED_PROMPTS, split, seed), config.cai.probe)
    return Materials(
        pairs=tiny_world.square_like(red, acceptable, split, seed),
        guard_pairs=tiny_world.guard_pairs(config.guard.pairs, split, seed),
        red_prompts=red_prompts,
        probe_prompts=probe_prompts,
        benign_prompts=tiny_world.benign_prompts(config.cai.replay, split, seed),
        evaluations=_evaluations(config, []),
    )


def _square(config: Readable) -> Materials:
    """The server's prompts are questions of its own share; choices are held-out questions answered both ways.

    SQuARe asks nothing harmless: what is replayed are questions that have acceptable answers only.
    """
    pairs = read_square(config.data.train, config.data.language)
    read = Reading(len(pairs), len(pairs), 0, len(pairs) - len({*pairs}), 0, "square")
    parts = split_by_question(pairs, SHARES, config.seed)
    asked = {h: {p.query: p.category for p in parts["cai"] if p.harmful == h} for h in (True, False)}
    red_prompts, probe_prompts = held_out([RedPrompt(*item) for item in asked[True].items()], config.cai.probe)
    return Materials(
        pairs=recipe(parts["clients"], config.data.red, config.data.acceptable, config.seed),
        guard_pairs=balanced(parts["guard"], config.guard.pairs, config.seed),
        red_prompts=red_prompts,
        probe_prompts=probe_prompts,
        benign_prompts=[query for query in asked[False] if query not in asked[True]][: config.cai.replay],
        evaluations=_evaluations(config, parts["eval"]),
        shares=parts,
        read={config.data.train: read},
    )


def held_out(asked: Sequence[RedPrompt], probe: int) -> tuple[list[RedPrompt], list[str]]:
    """(prompts for constitutional AI, for the probe): the last `probe` distinct questions, which nobody else asks."""
    distinct = list(dict.fromkeys(prompt.query for prompt in asked))
    kept = max(len(distinct) - probe, 0)
    others = {*distinct[:kept]}
    return [prompt for prompt in asked if prompt.query in others], distinct[kept:]


def balanced(pairs: Sequence[Pair], n: int, seed: int) -> list[Pair]:
    """At most n pairs, half unsafe as far as they go, in a random order."""
    g = rng.host(seed, "guard pairs")
    sides = [[p for p in pairs if p.harmful == harmful] for harmful in (True, False)]
    each = min(n // 2, *map(len, sides))
    drawn = [side[i] for side in sides for i in g.permutation(len(side))[:each]]
    return [drawn[i] for i in g.permutation(len(drawn))]
