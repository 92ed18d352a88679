"""What clients train on after their filters, by hand: kept rows, refusals in them, each client's own threshold."""

from typing import Any

import numpy as np
import pytest

from fedjax_rai.data.examples import Examples, encode_chats, with_rows
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.data_summary import describe
from fedjax_rai.experiment.filtering import ClientPairs
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs.conclude import filtered
from fedjax_rai.safety.filter import REFUSALS
from fedjax_rai.text.prompts import Turn
from tests.tiny_runs import vary

NAN = np.nan


def filtering(setting: Setting, scores: list[float], rows: list[list[int]] | None = None) -> Setting:
    """Two clients of rows 0, 1, 2 and 3, 4, or of others, and the scores of all answers in order."""
    setting.client_rows = [np.array(held, int) for held in rows or [[0, 1, 2], [3, 4]]]
    vars(setting.guarding).pop("scores", None)
    vars(setting.guarding)["exchange_scores"] = np.array([*scores, *[0.0] * (40 - len(scores))], np.float32)
    return setting


def of(config: Any, arm: Any, **keys: Any) -> Setting:
    return arm(vary(config, federated={"clients": 2, "cohort": 2}, filter={"enabled": True, **keys}))


def test_each_client_goes_by_its_own_threshold(config, arm):
    """0.2, 0.6, none; 0.5, 0.49. The first client's is 0.1, then its rate a half of the two that have a score."""
    scores = [0.2, 0.6, NAN, 0.5, 0.49]
    strict = of(config, arm, thresholds=({"clients": [0], "threshold": 0.1},))
    assert [rows.tolist() for rows in ClientPairs(filtering(strict, scores)).kept] == [[], [4]]
    rate = of(config, arm, thresholds=({"clients": [0], "drop_rate": 0.5}, {"clients": [1], "threshold": 0.6}))
    assert [rows.tolist() for rows in ClientPairs(filtering(rate, scores)).kept] == [[0], [3, 4]]
    lenient = of(config, arm, no_verdict="keep")
    assert [rows.tolist() for rows in ClientPairs(filtering(lenient, scores)).kept] == [[0, 2], [4]]


def test_thresholds_of_clients_that_there_are_not_are_refused_at_once(config):
    with pytest.raises(InputError, match=r"filter.thresholds\[0\].clients = \[9\]: there is no client 9"):
        Setting(vary(config, filter={"enabled": True, "thresholds": ({"clients": [9], "threshold": 0.1},)}))


def test_a_replaced_pair_is_its_question_with_the_refusal(config, arm):
    """Row 1 is unsafe and row 2 has no score: the tokens of row 1 are those of its question and the refusal."""
    setting = filtering(of(config, arm, action="replace"), [0.2, 0.6, NAN, 0.5, 0.49])
    found = ClientPairs(setting)
    pairs = setting.texts.materials.pairs
    assert [rows.tolist() for rows in found.kept] == [[0, 1], [3, 4]] and sorted(found.replaced) == [1, 3]
    tokenizer = setting.models.tokenizer
    refused = [Turn("user", pairs[1].query), Turn("assistant", "I cannot help with that.")]
    expected, _ = encode_chats(tokenizer, [refused], setting.config.data.max_length)
    corpus, before = found.corpus, setting.texts.corpus
    length = int(expected.segments.sum())
    assert np.asarray(corpus.tokens)[1, :length].tolist() == expected.tokens[0, :length].tolist()
    assert np.asarray(corpus.loss_mask)[1].sum() == expected.loss_mask.sum() == found.answer_tokens[1]
    assert found.lengths[1] == length and not np.asarray(corpus.segments)[1, length:].any()
    for row in (0, 2, 4):
        assert np.asarray(corpus.tokens)[row].tolist() == np.asarray(before.tokens)[row].tolist()
    assert Federation(setting).cohort(0)[0].weight.tolist() == [1.0, 1.0]


def test_the_refusal_may_be_another(config, arm):
    setting = filtering(of(config, arm, action="replace", refusal="No."), [0.9])
    assert ClientPairs(setting).replaced[0].response == "No."


def test_a_filter_that_flags_nothing_leaves_the_texts_corpus(config, arm):
    setting = filtering(of(config, arm, action="replace"), [0.1] * 5)
    found = ClientPairs(setting)
    assert found.corpus is setting.texts.corpus and found.lengths is setting.texts.lengths
    assert [rows.tolist() for rows in found.kept] == [[0, 1, 2], [3, 4]] and not found.replaced


def conversations(setting: Setting) -> Setting:
    """Row 0 has three answers, a, b and c, and rows 1 to 4 have one; all are harmful, and Korean."""
    earlier = tuple(Turn(role, text) for text in "ab" for role, text in (("user", "q"), ("assistant", text)))
    pairs = [Pair("q", "c", True, before=earlier), *[Pair("q", f"r{i}", True) for i in range(4)]]
    made = setting.texts.materials
    korean = [made.sources[0]._replace(language="ko")]
    setting.texts.materials = made._replace(pairs=pairs, origins=np.zeros(5, int), sources=korean)
    for name in ("_encoded", "corpus", "lengths", "answer_tokens"):
        vars(setting.texts).pop(name, None)
    return setting


def test_of_a_conversation_the_flagged_answers_alone_are_replaced_in_its_language(config):
    """0.1, 0.9, 0.2 of row 0; row 1 is safe, row 2 is not; row 3 has no score; row 4 is at the threshold."""
    keys = {"enabled": True, "action": "replace"}
    setting = conversations(Setting(vary(config, federated={"clients": 2, "cohort": 2}, filter=keys)))
    filtering(setting, [0.1, 0.9, 0.2, 0.3, 0.8, NAN, 0.5])
    found = ClientPairs(setting)
    refusal = REFUSALS["ko"]
    assert [turn.text for turn in found.pair(0).turns] == ["q", "a", "q", refusal, "q", "c"]
    assert [found.pair(row).response for row in (1, 2, 4)] == ["r0", refusal, refusal]
    assert [rows.tolist() for rows in found.kept] == [[0, 1, 2], [4]] and found.unscored == 1
    counted = filtered(setting)
    assert (counted.kept, counted.dropped, counted.without_score, counted.replaced) == (4, 1, 1, 3)
    assert counted.harmful_share_kept == 0.5, "row 0, whose own answer stands, and row 1"
    clients = describe(setting, found.kept, found).clients
    assert [(one.kept, one.kept_harmful, one.replaced) for one in clients] == [(3, 2, 2), (1, 0, 1)]


def test_rows_take_the_place_of_others_and_all_have_the_longer_length():
    def made(tokens: list[list[int]]) -> Examples:
        ids: Any = np.array(tokens, np.int32)
        return Examples(ids, ids > 1, (ids > 0).astype(np.int32))

    found = with_rows(made([[1, 2, 2], [1, 1, 2]]), np.array([1]), made([[3, 4, 5, 6]]), pad_id=9)
    assert found.tokens.tolist() == [[1, 2, 2, 9], [3, 4, 5, 6]]
    assert found.loss_mask.tolist() == [[False, True, True, False], [True] * 4]
    assert found.segments.tolist() == [[1, 1, 1, 0], [1] * 4]
    shorter = with_rows(made([[1, 2, 2], [1, 1, 2]]), np.array([0]), made([[7]]), pad_id=9)
    assert shorter.tokens.tolist() == [[7, 9, 9], [1, 1, 2]] and shorter.segments.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_harmful_answers_of_clients_are_rewritten_before_the_filter(config):
    """All twelve, and nothing else; of a share as many as are drawn; and the evaluation asks what it asked."""
    plain = Setting(config).texts.materials
    made = Setting(vary(config, data={"evasion": "base64"})).texts.materials
    assert made.evaded.tried.sum() == made.evaded.changed.sum() == 12
    for before, after, tried in zip(plain.pairs, made.pairs, made.evaded.tried, strict=True):
        assert tried == before.harmful and (before.response == after.response) != tried
        assert before._replace(response=after.response) == after
    assert made.guard_pairs == plain.guard_pairs and not plain.evaded.tried.any()
    some = Setting(vary(config, data={"evasion": "base64", "evasion_share": 0.5})).texts.materials.evaded
    assert 0 < some.tried.sum() < 12
    assert describe(Setting(vary(config, data={"evasion": "base64"}))).summary.evaded == 12


def test_the_clients_of_one_source_may_evade_alone(config):
    sources = (
        {"path": "tiny", "only": "harmful", "rows": 6, "clients": [0]},
        {"path": "tiny", "only": "harmful", "rows": 4, "clients": "1-3", "evasion": "leetspeak"},
    )
    mixed = {"sources": sources, "red": None, "acceptable": None}
    setting = Setting(vary(config, data=mixed))
    assert setting.texts.materials.evaded.changed.tolist() == [False] * 6 + [True] * 4
    both = Setting(vary(config, data={**mixed, "evasion": "base64"})).texts.materials
    assert both.evaded.changed.all() and both.pairs[9].response == setting.texts.materials.pairs[9].response


def test_what_was_rewritten_and_passes_is_counted(config):
    """Three of the twelve are flagged; with refusals in their place, nine are still trained on."""
    for action in ("drop", "replace"):
        evading = vary(config, data={"evasion": "base64"}, filter={"enabled": True, "action": action})
        setting = Setting(evading)
        harmful = np.flatnonzero(setting.texts.materials.evaded.changed)
        scores = np.zeros(40, np.float32)
        scores[harmful[:3]] = 0.9
        vars(setting.guarding)["exchange_scores"] = scores
        assert filtered(setting).evaded_kept == 9
