"""Several sources as one set of pairs: what is read of each, which clients hold it, and how it is dealt out to them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai import rng
from fedjax_rai.config.client_names import Named, members
from fedjax_rai.config.names import look_up
from fedjax_rai.config.schema import TINY, SourceConfig
from fedjax_rai.data import tiny_world
from fedjax_rai.data.columns import COLUMNS
from fedjax_rai.data.partition import LABELS, PARTITIONS, at_least_one, checked_partition
from fedjax_rai.data.sources import Pair, Read, Source, read_pairs
from fedjax_rai.errors import InputError
from fedjax_rai.text.compare import same
from fedjax_rai.text.prompts import USER

ALL_PAIRS = "data.recipe=all data.red=null data.acceptable=null"
TINY_RED, TINY_ACCEPTABLE = 1800, 4200  # the proportions of SQuARe20K
RED_SHARE, ACCEPTABLE_SHARE = 3, 7  # of SQuARe20K, arXiv 2502.16691
TRAIN = "data.train"
_LANGUAGES = ("en", "ko")


class Entry(NamedTuple):
    """A source of a config."""

    key: str
    """How messages call it: `data.train`, `data.sources[1]`."""
    config: SourceConfig
    seed: int
    """Of its draws; the config's for the first source."""

    @property
    def listed(self) -> bool:
        """Whether it stands in `data.sources`."""
        return self.key != TRAIN


class Mixed(NamedTuple):
    """A source that has been read."""

    entry: Entry
    read: Read
    """Its pairs are labelled as `label` says."""
    twins: tuple[str, ...] = ()
    """The columns that may hold a pair's question in another language."""
    language: str = "en"
    """Of its questions."""

    @property
    def tied(self) -> bool:
        """Whether a row has its question in another language, too."""
        return any(not pair.columns.keys().isdisjoint(self.twins) for pair in self.read.pairs if pair.columns)

    @property
    def synthetic(self) -> bool:
        return self.entry.config.path == TINY

    def questions(self, pair: Pair) -> list[str]:
        """The question of a pair, then the same in other languages, in the form by which texts are compared."""
        others = [same((pair.columns or {}).get(name, "")) for name in self.twins]
        return [same(pair.query), *filter(None, others)]

    def asked(self, pair: Pair) -> list[str]:
        """Its questions, and all that its user asked before."""
        return [*self.questions(pair), *(same(turn.text) for turn in pair.before if turn.role == USER)]


def entries(data: Any, seed: int) -> list[Entry]:
    """The sources of a config's section `data`: those of the list, or the one of `data.train`."""
    listed = data.sources or (_of_train(data),)
    found = []
    for i, source in enumerate(listed):
        key = f"data.sources[{i}]" if data.sources else TRAIN
        of_source = seed if i == 0 else int(rng.host(seed, "source", source=i).integers(2**31))
        found.append(Entry(key, source, of_source))
    return found


def _of_train(data: Any) -> SourceConfig:
    """`data.train` as a source."""
    return SourceConfig(path=data.train, name=data.name, split=data.train_split, revision=data.revision)


def is_synthetic(data: Any) -> bool:
    """Whether all pairs are the tiny world's: then what the server asks and what is evaluated are, too."""
    return all(entry.config.path == TINY for entry in entries(data, 0))


def where(data: Any) -> str:
    """The sources, for a message: `data.train = pairs.json`, or the keys of the list with their paths."""
    return ", ".join(f"{entry.key} = {entry.config.path}" for entry in entries(data, 0))


# --- reading ----------------------------------------------------------------------------------------------------


def read_sources(data: Any, seed: int) -> list[Mixed]:
    """Every source with its pairs. Raises InputError for files and labels that are not as they should be."""
    return [_read(entry, data) for entry in entries(data, seed)]


def _read(entry: Entry, data: Any) -> Mixed:
    config = entry.config
    if config.path == TINY:
        return Mixed(entry, _labelled(entry, _tiny(entry, data)))
    source = Source(
        path=config.path,
        name=config.name,
        split=config.split,
        revision=config.revision,
        columns=data.columns if config.columns is None else config.columns,
        language=config.language or data.language,
    )
    read = read_pairs(source)
    return Mixed(entry, _labelled(entry, read), twins(_prompt_column(source, read)), source.language)


def _tiny(entry: Entry, data: Any) -> Read:
    """Pairs that the tiny world makes: of `data.train` by `data.red` and `data.acceptable`, of a list by its `rows`."""
    config = entry.config
    red = TINY_RED if config.only != "acceptable" else 0
    acceptable = TINY_ACCEPTABLE if config.only != "harmful" else 0
    if not data.sources:
        red = red if data.red is None else data.red
        acceptable = acceptable if data.acceptable is None else data.acceptable
    elif config.rows is not None or config.share is not None:
        rows = config.rows or at_least_one(config.share or 1.0, red + acceptable)
        red = round(rows * red / (red + acceptable))
        acceptable = rows - red
    pairs = tiny_world.square_like(red, acceptable, data.split, entry.seed)
    return Read(pairs, len(pairs), TINY)


def _labelled(entry: Entry, read: Read) -> Read:
    label = entry.config.label
    if label is None:
        return read
    harmful = label == LABELS[True]
    contrary = sum(pair.harmful is (not harmful) for pair in read.pairs)
    if contrary:
        raise InputError(
            f"{entry.key}.label = {label}: {contrary} of {len(read.pairs)} pairs are labelled as "
            f"{LABELS[not harmful]} by their rows; must be left out, or be only: {label}, which takes those alone"
        )
    return read._replace(pairs=[pair._replace(harmful=harmful) for pair in read.pairs], unlabelled=0)


def _prompt_column(source: Source, read: Read) -> str | None:
    if isinstance(source.columns, Mapping):
        return source.columns.get("prompt")
    return COLUMNS[read.columns].of(source.language)[0].prompt if read.columns in COLUMNS else None


def twins(column: str | None) -> tuple[str, ...]:
    """The columns in which the same question may stand in another language: `question` beside `question_en`."""
    if column is None:
        return ()
    stem = re.sub(f"_({'|'.join(_LANGUAGES)})$", "", column)
    return tuple(name for name in (stem, *(f"{stem}_{language}" for language in _LANGUAGES)) if name != column)


# --- which pairs clients hold -----------------------------------------------------------------------------------


def client_part(mixed: Mixed, pairs: Sequence[Pair]) -> list[Pair]:
    """Of a source's pairs for clients those that its `only`, `rows` and `share` ask for; InputError for too many."""
    entry, config = mixed.entry, mixed.entry.config
    if config.only is not None:
        harmful = config.only == LABELS[True]
        pairs = [pair for pair in pairs if pair.harmful is harmful]
    if not pairs:
        kind = f"{config.only} pair" if config.only else "pair"
        raise InputError(f"{entry.key} = {config.path}: no {kind} for clients; must hold at least one")
    wanted = at_least_one(config.share, len(pairs)) if config.share is not None else config.rows
    if wanted is None or mixed.synthetic:  # the tiny world makes as many as are wanted
        return list(pairs)
    if wanted > len(pairs):
        raise InputError(
            f"{entry.key}.rows = {wanted}: more than there are; must be at most {len(pairs)}, its pairs for clients"
        )
    return [pairs[i] for i in rng.host(entry.seed, "source rows").permutation(len(pairs))[:wanted]]


def recipe(pairs: Sequence[Pair], name: str, red: int | None, acceptable: int | None, seed: int) -> np.ndarray:
    """int[m]: the pairs that clients hold, `red` harmful and `acceptable` others, drawn at random and shuffled.

    None is all of them, in the recipe `three_to_seven` as many as there are at that ratio, or all where the other side
    is 0. Raises InputError for more than there are, for none at all, and for pairs without a label where these count.
    """
    if name == "all" and red is None and acceptable is None:
        return np.arange(len(pairs))
    unlabelled = sum(pair.harmful is None for pair in pairs)
    if unlabelled:
        key = f"data.recipe = {name}" if name != "all" else "data.red, data.acceptable"
        raise InputError(
            f"{key}: needs labels, and {unlabelled} of the {len(pairs)} pairs have none; must be left out, or the "
            "source must say what they are (label: harmful or acceptable)"
        )
    harmful = np.array([pair.harmful for pair in pairs], bool)
    sides = np.flatnonzero(harmful), np.flatnonzero(~harmful)
    most, others = map(len, sides)
    for kind, wanted, there in (("red", red, most), ("acceptable", acceptable, others)):
        if wanted is not None and wanted > there:
            raise InputError(
                f"data.{kind} = {wanted}: more than there are; must be at most {there}, the {kind} pairs; to take all "
                f"pairs: {ALL_PAIRS}"
            )
    if name == "all":
        red = most if red is None else red
        acceptable = others if acceptable is None else acceptable
    if red is None:
        matching = others if acceptable is None else acceptable
        red = most if acceptable == 0 else min(most, matching * RED_SHARE // ACCEPTABLE_SHARE)
    if acceptable is None:
        acceptable = others if red == 0 else min(others, red * ACCEPTABLE_SHARE // RED_SHARE)
    if red + acceptable == 0:
        raise InputError(f"data.red, data.acceptable: no pairs to train on, of {most} red and {others} acceptable ones")
    g = rng.host(seed, "recipe")
    drawn = [side[g.permutation(len(side))[:n]] for side, n in zip(sides, (red, acceptable), strict=True)]
    together = np.concatenate(drawn)
    return together[g.permutation(len(together))]


# --- who holds them ---------------------------------------------------------------------------------------------


def holders(data: Any, clients: int) -> list[list[int]]:
    """The clients that hold each source.

    A percentage takes clients that no source names by number, in order, each going on where the one before ended.
    Raises InputError for clients that there are not, and for one that no source names.
    """
    named = [Named(entry.key, entry.config.clients) for entry in entries(data, 0)]
    everyone = list(range(clients))
    found = [everyone if held_by is None else held_by for held_by in members(named, clients)]
    without = sorted(set(everyone).difference(*found))
    if without:
        raise InputError(
            f"data.sources: no source gives client {', '.join(map(str, without[:5]))} anything, of federated.clients = "
            f"{clients}; each must stand in `clients` of one"
        )
    return found


def deal(
    pairs: Sequence[Pair], origins: np.ndarray, data: Any, clients: int, seed: int, sections: Mapping[str, Any]
) -> list[np.ndarray]:
    """The pairs of each client: those of every source are dealt out to its holders, by its partition.

    `origins[i]` is the source of pair i; `sections` holds the numbers of each partition, by its name. Raises InputError
    for partitions that cannot be, and with the shipped ones no client is left without a pair.
    """
    held: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for i, (entry, held_by) in enumerate(zip(entries(data, seed), holders(data, clients), strict=True)):
        rows = np.flatnonzero(origins == i)
        given = [pairs[int(row)] for row in rows]
        parts = _dealt(given, len(held_by), entry, data.partition, sections)
        for client, part in zip(held_by, parts, strict=True):
            held[client].append(rows[part])
    return [np.concatenate(parts) for parts in held]


def _dealt(
    pairs: Sequence[Pair], clients: int, entry: Entry, default: str, sections: Mapping[str, Any]
) -> list[np.ndarray]:
    config = entry.config
    name = config.partition or default
    key = f"{entry.key}.partition" if config.partition else "data.partition"
    stated = f"{key} = {name}"
    if entry.listed and not config.partition:
        stated = f"{entry.key}: {stated}"
    partition = look_up(PARTITIONS, name, key)
    if entry.listed and name in PARTITIONS and len(pairs) < clients:
        raise InputError(
            f"{entry.key}.clients: {clients} clients hold it, more than its {len(pairs)} pairs for clients; must be at "
            "most that"
        )
    numbers = {}
    if name in PARTITIONS and name in sections:
        numbers = dict(getattr(config, name) or sections[name])
    try:
        parts = partition(pairs, clients, entry.seed, **numbers)
    except InputError as error:
        raise InputError(f"{stated}: {error}") from None
    except Exception as error:
        if name in PARTITIONS:
            raise
        raise InputError(
            f"{stated}: calling it failed ({type(error).__name__}: {error}); must be a function of the pairs, the "
            "number of clients and the seed"
        ) from error
    return checked_partition(parts, len(pairs), clients, stated)
