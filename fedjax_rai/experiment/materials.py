"""Every text that an experiment uses, from the tiny world or from the user's files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from fedjax_rai import rng, terminal
from fedjax_rai.config.schema import TINY
from fedjax_rai.config.views import Readable
from fedjax_rai.data import tiny_world
from fedjax_rai.data.sources import Pair, RedPrompt, Source, notes, read_pairs, recipe, split_by_question
from fedjax_rai.data.summary import Reading, reading
from fedjax_rai.evals.suite import EvalSet, Sources, load_sets
from fedjax_rai.text.compare import same

Asked = TypeVar("Asked", Pair, RedPrompt)
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
        """Every question that the evaluation or the probe asks, in the form by which texts are compared (`same`)."""
        asked = [prompt for given in self.evaluations.values() for prompt in given.prompts]
        return {same(prompt) for prompt in (*asked, *self.probe_prompts)}


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
    data = config.data
    read = read_pairs(Source(data.train, data.name, data.train_split, data.revision, data.columns, data.language))
    for note in notes(read, data.train):
        terminal.say(note)
    pairs = read.pairs
    parts = split_by_question(pairs, SHARES, config.seed)
    red, acceptable = (distinct(pair for pair in parts["cai"] if pair.harmful == harmful) for harmful in (True, False))
    red_prompts, probe_prompts = held_out([RedPrompt(p.query, p.category) for p in red.values()], config.cai.probe)
    return Materials(
        pairs=recipe(parts["clients"], config.data.red, config.data.acceptable, config.seed),
        guard_pairs=balanced(parts["guard"], config.guard.pairs, config.seed),
        red_prompts=red_prompts,
        probe_prompts=probe_prompts,
        benign_prompts=[p.query for form, p in acceptable.items() if form not in red][: config.cai.replay],
        evaluations=_evaluations(config, parts["eval"]),
        shares=parts,
        read={config.data.train: reading(read)},
    )


def held_out(asked: Sequence[RedPrompt], probe: int) -> tuple[list[RedPrompt], list[str]]:
    """(prompts for constitutional AI, for the probe): the last `probe` distinct questions, which nobody else asks."""
    spellings = distinct(asked)
    kept = max(len(spellings) - probe, 0)
    asked_otherwise = {*list(spellings)[:kept]}
    probed = [prompt.query for prompt in list(spellings.values())[kept:]]
    return [prompt for prompt in asked if same(prompt.query) in asked_otherwise], probed


def distinct(asked: Iterable[Asked]) -> dict[str, Asked]:
    """Questions that differ to a reader, in their order: by the form that is compared, the last with that form."""
    return {same(item.query): item for item in asked}


def balanced(pairs: Sequence[Pair], n: int, seed: int) -> list[Pair]:
    """At most n pairs, half unsafe as far as they go, in a random order."""
    g = rng.host(seed, "guard pairs")
    sides = [[p for p in pairs if p.harmful == harmful] for harmful in (True, False)]
    each = min(n // 2, *map(len, sides))
    drawn = [side[i] for side in sides for i in g.permutation(len(side))[:each]]
    return [drawn[i] for i in g.permutation(len(drawn))]
