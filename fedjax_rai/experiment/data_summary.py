"""What an arm has of the data that it was given, counted before its first step (`data.summary`)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set

import numpy as np

from fedjax_rai.cai.options import may_be_due
from fedjax_rai.config.files import ONLINE
from fedjax_rai.data import summary
from fedjax_rai.data.mix import Mixed
from fedjax_rai.data.roles import CLIENTS, EVALUATION, GUARD, SERVER
from fedjax_rai.data.sources import Pair
from fedjax_rai.data.summary import (
    HELD_OUT,
    NO_LABEL,
    ONE_KIND,
    TURNS_BEFORE,
    Client,
    Cut,
    DataFile,
    DataSummary,
    Less,
    Part,
    Reading,
)
from fedjax_rai.evals.advbench import ADVBENCH
from fedjax_rai.evals.drift import DRIFT
from fedjax_rai.evals.evaluation import EvalSet
from fedjax_rai.evals.held_out import AT_MOST, both_ways
from fedjax_rai.evals.perplexity import PERPLEXITY_OF_PAIRS
from fedjax_rai.experiment.filtering import ClientPairs
from fedjax_rai.experiment.materials import FOR_GUARD, TRAINING
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.safety.guard import training_chats
from fedjax_rai.text.compare import same

MARGIN = 32  # tokens by which a pair in a guard's request may be longer than it is by itself


def describe(
    setting: Setting, kept: Sequence[np.ndarray] | None = None, filtered: ClientPairs | None = None
) -> DataFile:
    """What stands in `data.json`. `kept`: each client's rows after its filter; None where that is not known, or off.

    `filtered` says what stands in these rows where that is not what the clients hold.
    """
    table = client_table(setting, kept, filtered)
    texts = setting.texts
    evaded = texts.materials.evaded
    dealt = np.concatenate(setting.client_rows)
    return DataFile(
        DataSummary(
            sources=readings(texts.materials.sources),
            parts=parts(setting),
            clients=summary.all_clients(table),
            max_length=setting.config.data.max_length,
            cut=cut(setting),
            without_answer=int((texts.answer_tokens[dealt] == 0).sum()),
            less=less(setting),
            evaded=int(evaded.tried.sum()) or None,
            not_evaded=int((evaded.tried & ~evaded.changed).sum()) or None,
        ),
        table,
    )


def readings(sources: Sequence[Mixed]) -> dict[str, Reading]:
    """What was read, by its path; by its key besides, where there are several. Nothing of the tiny world alone."""
    if all(mixed.synthetic for mixed in sources):
        return {}
    found = {}
    for mixed in sources:
        path = mixed.entry.config.path
        name = path if len(sources) == 1 else f"{mixed.entry.key}: {path}"
        found[name] = summary.reading(mixed.read, mixed.synthetic)
    return found


def client_table(
    setting: Setting, kept: Sequence[np.ndarray] | None, filtered: ClientPairs | None = None
) -> list[Client]:
    """Every client, in order."""
    pairs = setting.texts.materials.pairs
    answers, replaced = setting.texts.answer_tokens, summary.NOTHING
    if filtered is not None:
        answers, replaced = filtered.answer_tokens, filtered.replaced
    left_over: Sequence[np.ndarray | None] = [None] * len(setting.client_rows) if kept is None else kept
    held = zip(setting.client_rows, left_over, strict=True)
    return [summary.client(pairs, rows, left, answers, replaced) for rows, left in held]


def parts(setting: Setting) -> dict[str, Part]:
    """The pairs and the prompts of every part of the data."""
    made = setting.texts.materials
    dealt = np.concatenate(setting.client_rows)
    found = {
        "clients": summary.part([made.pairs[row] for row in dealt], _beside_the_clients(setting, len(dealt))),
        "guard": summary.part(made.guard_pairs, _beside_the_guards(setting)),
    }
    if any(made.shares.get(name) for name in (SERVER, EVALUATION)):
        found["server"] = _the_servers(setting)
        found["evaluation"] = evaluation_part(made.shares[EVALUATION], [*made.evaluations.values()])
    found["red prompts"] = summary.prompts(len(made.red_prompts))
    found["probe"] = summary.prompts(len(made.probe_prompts))
    found["replay"] = summary.prompts(len(made.benign_prompts))
    for name, given in made.evaluations.items():
        found[name] = summary.prompts(len(given.items), {given.limit: given.left_out})
    return found


def _beside_the_clients(setting: Setting, dealt: int) -> dict[str, int]:
    """The pairs of the clients' share that no client holds, by what leaves them out."""
    made = setting.texts.materials
    held_out = made.held_out.get(TRAINING, 0)
    by_recipe = summary.left_out_by_kind(made.offered, made.pairs, *_recipe_keys(setting), "data.recipe")
    return {
        HELD_OUT: held_out,
        "data.sources": len(made.shares.get(CLIENTS, made.offered)) - held_out - len(made.offered),
        **by_recipe,
        "data.partition": len(made.pairs) - dealt,
    }


def _recipe_keys(setting: Setting) -> tuple[str, str]:
    """The keys that leave out harmful and acceptable pairs."""
    data = setting.config.data
    red = "data.recipe" if data.red is None else "data.red"
    acceptable = "data.recipe" if data.acceptable is None else "data.acceptable"
    return red, acceptable


def _beside_the_guards(setting: Setting) -> dict[str, int]:
    """The pairs of the guard's share that it is not fitted on, by what leaves them out."""
    made, asked = setting.texts.materials, setting.config.guard.pairs
    there = len(made.shares.get(GUARD, ()))
    if not there:  # the tiny world makes as many as are asked for
        return {}
    held_out = made.held_out.get(FOR_GUARD, 0)
    key = "guard.pairs" if len(made.guard_pairs) >= asked - 1 else "balance"
    beside = len(made.guard_held_out)
    found = {HELD_OUT: held_out, key: there - held_out - beside - len(made.guard_pairs)}
    return found | {"guard.held_out": beside} if beside else found


def _the_servers(setting: Setting) -> Part:
    """The pairs of the server's share whose question it asks, and what leaves out the others."""
    made, cai = setting.texts.materials, setting.config.cai
    asked = [*made.probe_prompts, *made.benign_prompts, *(red.query for red in made.red_prompts)]
    replay_key = "cai.replay" if cai.replay_data is None else "cai.replay_data"
    return server_part(made.shares[SERVER], asked, made.evaluated, replay_key)


def server_part(pairs: Sequence[Pair], asked: Iterable[str], evaluated: Set[str], replay_key: str) -> Part:
    """The server's pairs: used are those whose question is `asked`, in whatever spelling.

    `evaluated`: the questions that the evaluation asks, as they are compared. Of the other questions, `cai.red_prompts`
    leaves out those that have a harmful answer, `replay_key` those that have acceptable ones alone.
    """
    forms = {same(question) for question in asked}
    alone = [pair for pair in pairs if not pair.before]
    red, acceptable = ({same(pair.query) for pair in alone if pair.harmful is label} for label in (True, False))

    def reason(pair: Pair) -> str | None:
        form = same(pair.query)
        if pair.before:
            return TURNS_BEFORE
        if form in forms:
            return None
        if form in evaluated:
            return HELD_OUT
        if form in red:
            return "cai.red_prompts"
        return replay_key if form in acceptable else NO_LABEL

    return _by_reason(pairs, reason)


def evaluation_part(pairs: Sequence[Pair], sets: Sequence[EvalSet]) -> Part:
    """The pairs of the evaluation: used are those whose question one of the sets asks, in whatever spelling."""
    forms = {same(prompt) for given in sets for prompt in given.prompts}
    choices = {same(choice.query) for choice in both_ways(pairs)}

    def reason(pair: Pair) -> str | None:
        form = same(pair.query)
        if pair.before:
            return TURNS_BEFORE
        if form in forms:
            return None
        return AT_MOST if form in choices else ONE_KIND

    return _by_reason(pairs, reason)


def _by_reason(pairs: Sequence[Pair], reason: Callable[[Pair], str | None]) -> Part:
    """Pairs by what leaves them out; None: nothing does."""
    reasons = [reason(pair) for pair in pairs]
    used = [pair for pair, left_out_by in zip(pairs, reasons, strict=True) if left_out_by is None]
    return summary.part(used, Counter(left_out_by for left_out_by in reasons if left_out_by is not None))


def less(setting: Setting) -> list[Less]:
    """What there is less of than this arm asks for."""
    config, made = setting.config, setting.texts.materials
    asked: dict[str, tuple[int, int]] = {}
    if _fits_a_guard(setting):
        asked["guard.pairs"] = (config.guard.pairs, len(made.guard_pairs))
    for key, wanted, name in (
        ("eval.prompts", config.eval.prompts, ADVBENCH.name),
        ("eval.drift_prompts", config.eval.drift_prompts, DRIFT.name),
        ("eval.perplexity_pairs", config.eval.perplexity_pairs, PERPLEXITY_OF_PAIRS.name),
    ):
        asked[key] = (wanted, len(made.evaluations[name].items))
    if may_be_due(config.cai, config.federated.rounds):
        online = config.cai.data == ONLINE
        there = len(made.red_prompts) if online else len(setting.revising.prepared.chosen.tokens)
        asked["cai.prompts"] = (config.cai.prompts, there)
        asked["cai.replay"] = (config.cai.replay, len(made.benign_prompts))
    return summary.less(asked)


def _fits_a_guard(setting: Setting) -> bool:
    return setting.guarded and setting.guarding.is_fitted


def cut(setting: Setting) -> dict[str, Cut]:
    """What is cut of the texts that this arm uses."""
    config = setting.config
    examples = setting.texts.cut_examples(np.concatenate(setting.client_rows))
    found = {"examples": examples, **setting.texts.cut}
    if not may_be_due(config.cai, config.federated.rounds):
        del found["red prompts"], found["replay"]
    if not config.cai.probe:
        del found["probe"]
    if _fits_a_guard(setting) and config.guard.path is None:
        chats = training_chats(setting.texts.materials.guard_pairs)
        lengths = [setting.texts.length(turns) for turns in chats]
        found["guard examples"] = summary.cut(lengths, config.data.max_length)
    if config.filter.enabled and setting.guarding.possible and not setting.guarding.is_function:
        found["guard requests"] = guard_requests(setting)
    return {name: counted for name, counted in found.items() if counted.texts}


def guard_requests(setting: Setting) -> Cut:
    """What is cut of the guard's requests about the clients' pairs, one for each exchange of a pair.

    A request is measured where its pair and the guard's own words come near the limit; with another tokenizer, always.
    """
    asked = setting.guarding.asked
    question = asked.form.asked[0]
    words = len(asked.request_ids("", "", question))
    released = setting.config.guard.path is not None
    room = setting.config.data.max_length + (words if released else 0) - len(asked.lead_ids)
    pairs = setting.texts.materials.pairs
    rows = np.concatenate(setting.client_rows)
    near = rows if released else rows[setting.texts.lengths[rows] + words + MARGIN > room]
    exchanges = [exchange for row in near for exchange in pairs[row].exchanges]
    lengths = [len(asked.request_ids(query, response, question)) for query, response in exchanges]
    return summary.cut(lengths, room, sum(len(pairs[row].exchanges) for row in rows))
