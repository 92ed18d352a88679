"""Whatever spellings the questions of a file have, they are shared out as what they are to a reader."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from fedjax_rai.data.sources import RedPrompt
from fedjax_rai.experiment.materials import Materials, gather, held_out
from fedjax_rai.text.compare import same
from tests.tiny_runs import vary

QUESTION = "\ud55c\uad6d\uc5b4 caf\u00e9 {}?"
SPELLINGS: dict[str, Callable[[str], str]] = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "full width": lambda text: text.replace("caf", "\uff43\uff41\uff46").replace("?", "\uff1f"),
    "zero width": lambda text: "\u200b".join(text),
    "spaces": lambda text: f"\u3000{text}".replace(" ", "\u00a0\n"),
}


def gathered(folder: Path, config, spelled: Callable[[str], str]) -> Materials:
    """200 questions, the acceptable answer of each under the composed spelling, the unacceptable one under another."""
    rows = []
    for i in range(200):
        question = QUESTION.format(i)
        for acceptable, asked in ((1, question), (0, spelled(question))):
            rows.append(
                {"question_en": asked, "response_en": f"answer {i}", "acceptable?": acceptable, "category": ["etc"]}
            )
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows))
    data = {"train": str(path), "red": None, "acceptable": None}
    return gather(vary(config, data=data, cai={"probe": 5, "replay": 50}))


def questions(made: Materials) -> list[set[str]]:
    """What the clients, the guard, the server, the probe and the evaluation ask, in the form that is compared."""
    return [
        {same(pair.query) for pair in made.pairs},
        {same(pair.query) for pair in made.guard_pairs},
        {same(prompt.query) for prompt in made.red_prompts},
        {same(prompt) for prompt in made.probe_prompts},
        {same(choice) for choice in made.evaluations["square_choice"].prompts},
    ]


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_two_spellings_are_shared_out_as_one_and_trained_on_as_they_are(tmp_path, config, spelled):
    plain = gathered(tmp_path, config, str)
    made = gathered(tmp_path, config, spelled)
    assert questions(made) == questions(plain)
    assert made.evaluated == plain.evaluated and not made.benign_prompts
    assert len(made.evaluations["square_choice"].items) == len(plain.evaluations["square_choice"].items) > 10
    groups = questions(made)
    assert sum(map(len, groups)) == len(set().union(*groups)), "nobody has another's question"
    harmful = {pair.query for pair in made.pairs if pair.harmful}
    assert harmful == {spelled(QUESTION.format(i)).strip() for i in range(200)} & harmful != set()


def test_the_probes_questions_are_asked_by_nobody_else_in_any_spelling():
    """Six spellings of three questions; the last one is the probe's."""
    asked = [RedPrompt(spelled(QUESTION.format(i)), "") for i in range(3) for spelled in (str, SPELLINGS["decomposed"])]
    left, probed = held_out(asked, 1)
    assert left == asked[:4] and [same(prompt) for prompt in probed] == [same(QUESTION.format(2))]
