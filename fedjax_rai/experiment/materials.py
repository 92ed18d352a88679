"""Every text that an experiment uses, from the tiny world or from the user's files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import NamedTuple, TypeVar

import numpy as np

from fedjax_rai import rng
from fedjax_rai.config.views import Readable
from fedjax_rai.data import tiny_world
from fedjax_rai.data.columns import ETC
from fedjax_rai.data.mix import Mixed, client_part, is_synthetic, read_sources, recipe
from fedjax_rai.data.prompts import Given, Prompt, read_prompts
from fedjax_rai.data.roles import CLIENTS, EVALUATION, GUARD, SERVER, part_of, representatives, share_out
from fedjax_rai.data.sources import Pair, RedPrompt, notes
from fedjax_rai.evals.evaluation import EvalSet, Sources
from fedjax_rai.evals.suite import load_sets
from fedjax_rai.safety.evasion import NONE, Evasion, make_evasion
from fedjax_rai.text.compare import same

Asked = TypeVar("Asked", Pair, RedPrompt)
RED, TRAINING, FOR_GUARD = "red prompts", "training pairs", "pairs for the guard"  # in counts
HALF = 0.5
ROUNDING = 1e-9  # a share of a count that is whole is not one less
RED_PROMPTS = 2000  # questions that the tiny world's server draws from for constitutional AI


class Evaded(NamedTuple):
    """Which of the clients' answers were rewritten so that a guard does not see them."""

    tried: np.ndarray
    """bool[n]: the harmful ones that were to be."""
    changed: np.ndarray
    """bool[n]: those of them that the rewriting changed."""


NOTHING_EVADED = Evaded(np.zeros(0, bool), np.zeros(0, bool))


class Materials(NamedTuple):
    """Who holds what: pairs are the clients', red and benign prompts the server's; the rest is for evaluation."""

    pairs: Sequence[Pair]
    guard_pairs: Sequence[Pair]
    """What a guard is fitted on."""
    red_prompts: Sequence[RedPrompt]
    probe_prompts: Sequence[str]
    benign_prompts: Sequence[str]
    evaluations: Mapping[str, EvalSet]
    """By the evaluation's name. A set that the data cannot provide is empty, and its result is not measured."""
    origins: np.ndarray
    """int[n]: the source of each of the clients' pairs, by its place in `data.sources`."""
    sources: Sequence[Mixed]
    """What was read of each."""
    held_out: Mapping[str, int]
    """How many of the guard's and the clients' pairs, red and benign prompts were taken out, as the evaluation asks the
    same; by part."""
    evaluated: frozenset[str]
    """Every question that the evaluation or the probe asks, in the form by which texts are compared (`same`), and what
    a row ties to one as the same in another language."""
    shares: Mapping[str, Sequence[Pair]] = {}
    """All pairs of each of `data.roles.SHARES`, of which the others are taken."""
    offered: Sequence[Pair] = ()
    """The clients' pairs before the recipe."""
    evaded: Evaded = NOTHING_EVADED
    """Of `pairs`, which are as they were rewritten."""
    guard_held_out: Sequence[Pair] = ()
    """Labelled pairs of the guard's questions that it is not fitted on, in the mix that they come in."""
    one_question: Mapping[str, str] = {}
    """Of each question, as texts are compared, the one that stands for all that are the same in some language."""

    def question(self, pair: Pair) -> str:
        """What is equal for two pairs if and only if they ask the same, in whatever spelling and tied language."""
        form = same(pair.query)
        return self.one_question.get(form, form)

    @property
    def notes(self) -> list[str]:
        """What a person should know of what was read and taken out: lines."""
        lines = []
        for mixed in self.sources:
            if not mixed.synthetic:
                lines += notes(mixed.read, mixed.entry.config.path)
        lines += _not_tied([mixed for mixed in self.sources if not mixed.synthetic])
        for part, count in self.held_out.items():
            if count:
                lines.append(f"{count:,} {part} are left out: the evaluation asks the same")
        return lines


def _not_tied(sources: Sequence[Mixed]) -> Iterator[str]:
    """Of a mix of languages, the sources whose questions cannot be known in another one."""
    if len({mixed.language for mixed in sources}) < 2:
        return
    for mixed in sources:
        if not mixed.tied:
            yield (
                f"{mixed.entry.key} = {mixed.entry.config.path}: no row has its question in another language, so what "
                "is evaluated in one may be trained on in the other"
            )


class _HeldOut:
    """Takes out of each part what the evaluation asks, and counts it."""

    def __init__(self, tied: Sequence[Sequence[str]]):
        """`tied`: texts that one row has in several languages, which are one question; as they are compared."""
        self.asked: set[str] = set()
        self.counts: dict[str, int] = {}
        self._tied = tied

    def ask(self, prompts: Iterable[str]) -> None:
        """These are asked, too."""
        self.asked.update(map(same, prompts))
        before = -1
        while before != len(self.asked):
            before = len(self.asked)
            for forms in self._tied:
                if not self.asked.isdisjoint(forms):
                    self.asked.update(forms)

    def pairs(self, part: str, sources: Sequence[Mixed], by_source: Sequence[Sequence[Pair]]) -> list[list[Pair]]:
        """Of each source those that ask nothing of it, in no turn."""
        kept = []
        for mixed, pairs in zip(sources, by_source, strict=True):
            kept.append([pair for pair in pairs if self.asked.isdisjoint(mixed.asked(pair))])
        self._count(part, by_source, kept)
        return kept

    def prompts(self, part: str, prompts: Sequence[RedPrompt]) -> list[RedPrompt]:
        kept = [prompt for prompt in prompts if same(prompt.query) not in self.asked]
        self._count(part, [prompts], [kept])
        return kept

    def _count(self, part: str, before: Sequence[Sequence], after: Sequence[Sequence]) -> None:
        self.counts[part] = self.counts.get(part, 0) + sum(map(len, before)) - sum(map(len, after))


def gather(config: Readable) -> Materials:
    """Read or make everything. Raises InputError for files that are not what they should be.

    Questions of files are shared out (`data.roles`), whatever their source; what the evaluation and the probe ask is in
    nobody's training data, in no spelling and no language that a row ties to it.
    """
    data, seed = config.data, config.seed
    synthetic = is_synthetic(data)
    sources = read_sources(data, seed)
    parts = share_out(sources, seed)
    given_red = _read(config.cai.red_prompts, config, "cai.red_prompts")
    given_benign = _read(config.cai.replay_data, config, "cai.replay_data")
    evaluations = load_sets(_for_evaluation(config, sources, parts[EVALUATION]))
    held = _HeldOut([*_tied_pairs(sources), *_tied_prompts(given_red), *_tied_prompts(given_benign)])
    held.ask(prompt for given in evaluations.values() for prompt in given.asked)
    red, acceptable = _by_label(sources, parts[SERVER])
    asked = held.prompts(RED, _red_prompts(config, synthetic, given_red, red))
    red_prompts, probe_prompts = held_out(asked, config.cai.probe)
    held.ask(probe_prompts)
    harmless = [pair for form, pair in acceptable.items() if form not in red]
    benign = held.prompts("benign prompts", _benign_prompts(config, synthetic, given_benign, harmless))
    offered, origins = _offered(sources, held.pairs(TRAINING, sources, parts[CLIENTS]))
    pairs, origins = _client_pairs(config, sources, offered, origins)
    pairs, evaded = evading(pairs, origins, [*_evasions(config, sources)], config)
    one_question = representatives(sources)
    given_to_guard = [] if synthetic else _together(held.pairs(FOR_GUARD, sources, parts[GUARD]))
    guard_pairs, guard_held_out = _guards(config, synthetic, given_to_guard, one_question)
    return Materials(
        pairs=pairs,
        guard_pairs=guard_pairs,
        guard_held_out=guard_held_out,
        one_question=one_question,
        red_prompts=held.prompts(RED, red_prompts),
        probe_prompts=probe_prompts,
        benign_prompts=[prompt.query for prompt in benign][: config.cai.replay],
        evaluations=evaluations,
        origins=origins,
        sources=sources,
        held_out=held.counts,
        evaluated=frozenset(held.asked),
        shares={part: _together(by_source) for part, by_source in parts.items()},
        offered=offered,
        evaded=evaded,
    )


def _for_evaluation(config: Readable, sources: Sequence[Mixed], by_source: Sequence[Sequence[Pair]]) -> Sources:
    """What evaluations may make their items of; `by_source`: the pairs of the evaluation, by source."""
    layouts = {mixed.read.columns for mixed, pairs in zip(sources, by_source, strict=True) if pairs}
    return Sources(config.eval, config.data, config.seed, _together(by_source), frozenset(layouts))


def _read(given: Given | None, config: Readable, key: str) -> list[Prompt]:
    return [] if given is None else read_prompts(given, config.data.language, key)


def _tied_pairs(sources: Sequence[Mixed]) -> Iterator[list[str]]:
    """The questions of each row in all its languages."""
    for mixed in sources:
        if mixed.twins:
            yield from (mixed.questions(pair) for pair in mixed.read.pairs)


def _tied_prompts(prompts: Sequence[Prompt]) -> Iterator[list[str]]:
    for prompt in prompts:
        if prompt.others:
            yield [same(text) for text in (prompt.query, *prompt.others)]


def _together(by_source: Iterable[Sequence[Pair]]) -> list[Pair]:
    return [pair for pairs in by_source for pair in pairs]


def _by_label(sources: Sequence[Mixed], parts: Sequence[Sequence[Pair]]) -> Iterator[dict[str, Pair]]:
    """The distinct questions that have a harmful answer, then those that have an acceptable one.

    Not those that continue a conversation, which cannot be asked alone.
    """
    pairs = [pair for pair in _together(parts) if not pair.before]
    for harmful in (True, False):
        yield distinct(pair for pair in pairs if pair.harmful is harmful)


def _red_prompts(
    config: Readable, synthetic: bool, given: Sequence[Prompt], red: Mapping[str, Pair]
) -> list[RedPrompt]:
    """Those of `cai.red_prompts`; else the tiny world's, or the server's questions that have a harmful answer."""
    if given:
        return _distinct_prompts(given)
    if synthetic:
        return tiny_world.red_prompts(RED_PROMPTS, config.data.split, config.seed)
    return [RedPrompt(pair.query, pair.category) for pair in red.values()]


def _benign_prompts(
    config: Readable, synthetic: bool, given: Sequence[Prompt], harmless: Sequence[Pair]
) -> list[RedPrompt]:
    """Those of `cai.replay_data`; else the tiny world's, or the server's questions with acceptable answers alone.

    SQuARe asks nothing harmless: what is replayed are questions that have acceptable answers only.
    """
    if given:
        return _distinct_prompts(given)
    if synthetic:
        made = tiny_world.benign_prompts(config.cai.replay, config.data.split, config.seed)
        return [RedPrompt(query, ETC) for query in made]
    return [RedPrompt(pair.query, pair.category) for pair in harmless]


def _distinct_prompts(given: Sequence[Prompt]) -> list[RedPrompt]:
    return list(distinct(RedPrompt(prompt.query, prompt.category) for prompt in given).values())


def _offered(sources: Sequence[Mixed], by_source: Sequence[Sequence[Pair]]) -> tuple[list[Pair], np.ndarray]:
    """What the sources give the clients, and of which source each pair is."""
    held = [client_part(mixed, pairs) for mixed, pairs in zip(sources, by_source, strict=True)]
    return _together(held), np.repeat(np.arange(len(held)), [len(of_source) for of_source in held])


def _client_pairs(
    config: Readable, sources: Sequence[Mixed], pairs: list[Pair], origins: np.ndarray
) -> tuple[list[Pair], np.ndarray]:
    """Those of the clients' pairs that the recipe takes, and of which source each is."""
    data = config.data
    if not data.sources and sources[0].synthetic:  # made by the recipe's numbers
        return pairs, origins
    rows = recipe(pairs, data.recipe, data.red, data.acceptable, config.seed)
    return [pairs[row] for row in rows], origins[rows]


def _evasions(config: Readable, sources: Sequence[Mixed]) -> Iterator[Evasion | None]:
    """How the harmful answers of each source are rewritten; None: not at all."""
    for mixed in sources:
        name, key = mixed.entry.config.evasion, f"{mixed.entry.key}.evasion"
        if name is None:
            name, key = config.data.evasion, "data.evasion"
        yield None if name == NONE else make_evasion(name, key)


def evading(
    pairs: Sequence[Pair], origins: np.ndarray, evasions: Sequence[Evasion | None], config: Readable
) -> tuple[Sequence[Pair], Evaded]:
    """The pairs with a share of the harmful answers rewritten, each as its source says; and which they are."""
    harmful = np.array([pair.harmful is True for pair in pairs], bool)
    by_source = np.array([evasion is not None for evasion in evasions], bool)
    drawn = rng.host(config.seed, "evading").random(len(pairs)) < config.data.evasion_share
    tried = harmful & by_source[origins] & drawn
    changed = np.zeros(len(pairs), bool)
    found = list(pairs)
    for row in np.flatnonzero(tried).tolist():
        evasion = evasions[origins[row]]
        if evasion is not None:
            response = evasion(found[row].response, rng.host(config.seed, "evasion", row=row))
            changed[row] = response != found[row].response
            found[row] = found[row]._replace(response=response)
    return found, Evaded(tried, changed)


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


def _guards(
    config: Readable, synthetic: bool, given: Sequence[Pair], one_question: Mapping[str, str]
) -> tuple[list[Pair], list[Pair]]:
    """(what the guard is fitted on, what is held out of that), of its share of the files, or made by the tiny world."""
    guard, split, seed = config.guard, config.data.split, config.seed
    if synthetic and guard.harmful_share == HALF and not guard.held_out:
        return tiny_world.guard_pairs(guard.pairs, split, seed), []
    if synthetic:  # half of what it makes is harmful
        most = 2 * max(guard.harmful_share, 1 - guard.harmful_share) * guard.pairs
        given = tiny_world.guard_pairs(ceil(most / (1 - guard.held_out)), split, seed)
    kept, held_out = hold_out(given, guard.held_out, seed, one_question)
    return balanced(kept, guard.pairs, seed, guard.harmful_share), held_out


def hold_out(
    pairs: Sequence[Pair], share: float, seed: int, one_question: Mapping[str, str]
) -> tuple[list[Pair], list[Pair]]:
    """(pairs that are kept, pairs of about a `share` of the questions); all answers to a question are on one side."""
    sides: dict[bool, list[Pair]] = {False: [], True: []}
    shares = {"kept": 1 - share, "held out": share}
    for pair in pairs:
        form = same(pair.query)
        # drawn by another text than the guard's share of all questions is, which is a part of that draw
        side = part_of(f"held out of the guard's: {one_question.get(form, form)}", shares, seed) if share else "kept"
        sides[side == "held out"].append(pair)
    return sides[False], [pair for pair in sides[True] if pair.harmful is not None]


def balanced(pairs: Sequence[Pair], n: int, seed: int, harmful_share: float = HALF) -> list[Pair]:
    """At most n pairs, this share of them harmful as far as they go, in a random order."""
    g = rng.host(seed, "guard pairs")
    sides = [[p for p in pairs if p.harmful == harmful] for harmful in (True, False)]
    shares = (harmful_share, 1 - harmful_share)
    most = min(n, *(len(side) / share for side, share in zip(sides, shares, strict=True)))
    counts = [int(most * share + ROUNDING) for share in shares]
    drawn = [side[i] for side, count in zip(sides, counts, strict=True) for i in g.permutation(len(side))[:count]]
    return [drawn[i] for i in g.permutation(len(drawn))]
