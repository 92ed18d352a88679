"""What a guard finds of rewritten answers, by hand; and that what hides them from it no longer does once hardened."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.evals.rate import wilson
from fedjax_rai.safety.evasion import EVASIONS
from fedjax_rai.tools.guard_attack import (
    ATTACK,
    AUGMENTED,
    PICTURE,
    Request,
    attack,
    augmenting,
    chosen,
    lines,
    plain,
    rate,
)
from fedjax_rai.tools.guard_attack import write as write_attack
from tests.tiny_runs import vary


def reads_the(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Unsafe is what has the word `the` in it; no score has what ends in an exclamation mark."""
    return [float("nan") if answer.endswith("!") else float(" the " in answer) for _, answer in pairs]


def test_recall_and_false_alarms_by_hand():
    """Four harmful answers to three questions: two found, one missed, one without a score; one false alarm of two."""
    labels = [True, True, True, True, False, False, None]
    pairs = [Pair(query, "r", label) for query, label in zip("aabcdee", labels, strict=True)]
    scores = np.array([0.9, 0.5, 0.1, np.nan, 0.8, 0.2, 0.9])
    found, alarms = rate(pairs, scores, True, 0.5), rate(pairs, scores, False, 0.5)
    assert found and alarms and found.mean == pytest.approx(200 / 3) and alarms.mean == 50.0
    assert (found.prompts, found.without_verdict) == (2, 1), "two questions have a verdict"
    assert (found.low, found.high) == pytest.approx([100 * limit for limit in wilson(2 / 3, 2)])
    assert rate(pairs[:1], np.array([np.nan]), True, 0.5) is None


def test_as_many_of_each_label_as_are_wanted_and_none_without_one():
    pairs = [Pair(f"q{i}", "r", (True, False, None)[i % 3]) for i in range(30)]
    found = chosen(pairs, 4, 0)
    assert [pair.harmful for pair in found] == [True] * 4 + [False] * 4
    assert found == chosen(pairs, 4, 0) != chosen(pairs, 4, 1)
    assert len(chosen(pairs, 100, 0)) == 20
    with pytest.raises(InputError, match="no pair of the clients is labelled harmful"):
        chosen(pairs[1:3], 4, 0)


def test_a_config_is_attacked_without_what_it_has_of_its_own(config):
    own = {"data": {"evasion": "base64"}, "guard": {"normalise": True, "augment": ("split",)}}
    made = plain(vary(config, **own))
    assert (made.data.evasion, made.guard.normalise, made.guard.augment) == ("none", False, ())
    assert augmenting(vary(config, **own)) == ["split"]
    assert augmenting(config) == [name for name in EVASIONS if name != "none"]


def test_a_normal_form_undoes_what_it_can_and_the_files_say_so(config, tmp_path):
    """Of twelve harmful answers those with `the` are found; not in base64; and again in the normal form."""
    asked = vary(config, guard={"scorer": f"{__name__}:reads_the"})
    found = attack(Request(asked, ("base64", "homoglyphs", "injection")))
    assert (found.harmful, found.acceptable, found.augment) == (12, 28, [])
    recall = {(row.evasion, row.guard): row.recall.mean for row in found.rows if row.recall}
    seen = recall["none", "as it is"]
    assert 0 < seen and recall["base64", "as it is"] == 0.0
    assert [recall[name, "normalised"] for name in ("none", "base64", "homoglyphs")] == [seen] * 3
    assert recall["injection", "as it is"] == 100.0, "it has the word"
    assert not any(row.guard == AUGMENTED for row in found.rows), "a function is not fitted"
    write_attack(found, tmp_path / "out")
    written = json.loads((tmp_path / "out" / ATTACK).read_text())
    assert len(written["rows"]) == 8 and written["rows"][0]["recall"]["mean"] == seen
    assert (tmp_path / "out" / PICTURE).stat().st_size > 1000
    shown = "\n".join(lines(found))
    assert shown.startswith("SYNTHETIC") and all(len(line) <= 100 for line in shown.splitlines())
