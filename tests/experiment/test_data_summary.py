"""What an arm has of the data that it was given: every part, limit and client, against counts by hand."""

import json
from typing import Any

import numpy as np
import pytest

from fedjax_rai.config.schema import SourceConfig
from fedjax_rai.data.sources import Choice, Pair
from fedjax_rai.data.summary import Less, Reading
from fedjax_rai.evals.evaluation import EvalSet, Item
from fedjax_rai.experiment.data_summary import cut, describe, evaluation_part, parts, readings, server_part
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.text.prompts import Turn, prompt, question
from tests.mixes import source
from tests.tiny_runs import vary


def request(i: int) -> str:
    return f"request {i}" + " and so on" * (10 + i)


@pytest.fixture
def real(config, tmp_path) -> Any:
    """Forty questions, each with an acceptable and an unacceptable answer; the first row stands twice."""
    rows = []
    for i in range(40):
        for acceptable in (0, 1):
            rows.append(
                {
                    "question_en": f"question {i}?",
                    "response_en": "no, never" if acceptable else "yes, of course",
                    "acceptable?": acceptable,
                    "question_category": "race",
                }
            )
    (tmp_path / "pairs.json").write_text(json.dumps([rows[0], *rows]))
    data = {"train": str(tmp_path / "pairs.json"), "red": 4, "acceptable": 8}
    (tmp_path / "requests.csv").write_text("goal,target\n" + "".join(f"{request(i)},x\n" for i in range(6)))
    return vary(
        config, data=data, guard={"pairs": 50}, cai={"replay": 4}, eval={"advbench": str(tmp_path / "requests.csv")}
    )


def test_every_pair_is_in_a_part_or_left_out_by_a_key(real):
    found = describe(Setting(real)).summary
    (read,) = found.sources.values()
    assert (read.rows, read.pairs, read.refused, read.duplicates, read.unlabelled) == (81, 81, 0, 1, 0)
    pairs = [found.parts[name] for name in ("clients", "guard", "server", "evaluation")]
    assert sum(part.used + sum(part.left_out.values()) for part in pairs) == 81
    clients = found.parts["clients"]
    assert (clients.used, clients.harmful, clients.unlabelled) == (12, 4, 0)
    assert set(clients.left_out) == {"data.red", "data.acceptable"}
    assert found.parts["advbench"] == (4, {"eval.prompts": 2}, None, None)
    assert found.parts["guard"].harmful == found.parts["guard"].used / 2


def test_less_than_was_asked_for_is_told_with_both_numbers(real):
    """Every question has an unacceptable answer, so none is left to replay; the guard has less than 50 pairs."""
    setting = Setting(real)
    there = len(setting.texts.materials.guard_pairs)
    assert 0 < there < 50
    red = len(setting.texts.materials.red_prompts)
    pairs = len(setting.texts.materials.evaluations["perplexity"].items)
    asked = [
        Less("guard.pairs", 50, there), Less("eval.perplexity_pairs", 64, pairs), Less("cai.prompts", 100, red),
        Less("cai.replay", 4, 0),
    ]  # fmt: skip
    assert describe(Setting(vary(real, cai={"prompts": 100}), setting)).summary.less == asked
    without = vary(real, cai={"prompts": 100, "enabled": False})
    assert describe(Setting(without, setting)).summary.less == asked[:2], "there is no phase that would ask"


def test_prompts_are_cut_at_their_beginning_and_counted(real):
    """Four requests of which each is longer than the one before: at the length of the second the last two are cut."""
    setting = Setting(real)
    tokenizer = setting.models.tokenizer
    lengths = [len(tokenizer.encode(prompt(tokenizer, question(request(i))))) for i in range(4)]
    assert lengths == sorted(set(lengths)) and lengths[-1] <= 64
    assert describe(setting).summary.cut["advbench"] == (4, 0, 0, 0)
    shorter = describe(Setting(vary(real, data={"max_length": lengths[1]}))).summary
    beyond = [lengths[2] - lengths[1], lengths[3] - lengths[1]]
    assert shorter.cut["advbench"] == (4, 2, sum(beyond), beyond[1]) and shorter.max_length == lengths[1]


def test_what_each_client_holds_and_keeps(config, arm):
    """Ten of forty pairs each; the filter is told by hand: of each client's rows the first three."""
    setting = arm(config)
    held = setting.client_rows
    described = describe(setting, [rows[:3] for rows in held])
    assert [client.pairs for client in described.clients] == [10] * 4
    assert [client.kept for client in described.clients] == [3] * 4
    harmful = [sum(setting.texts.materials.pairs[row].harmful is True for row in rows) for rows in held]
    assert [client.harmful for client in described.clients] == harmful and sum(harmful) == 12
    clients = described.summary.clients
    assert (clients.kept, clients.dropped, clients.without_data) == (12, 28, 0)
    nothing = describe(setting, [held[0][:0], *held[1:]]).summary.clients
    assert (nothing.without_kept, nothing.without_data) == (1, 1)


def test_guard_requests_near_the_limit_are_measured_and_the_others_are_not_cut(config):
    """Against every request measured, at limits at which none, some and all are cut."""
    counts = []
    for limit in (64, 48, 32):
        setting = Setting(vary(config, filter={"enabled": True}, data={"max_length": limit}))
        tokenizer = setting.models.tokenizer
        lengths = []
        for pair in setting.texts.materials.pairs:
            request = f"Is the answer safe or unsafe?\nQuestion: {pair.query}\nAnswer: {pair.response}"
            lengths.append(len(tokenizer.encode(prompt(tokenizer, question(request)))))
        found = describe(setting).summary.cut["guard requests"]
        beyond = np.array(lengths) - limit
        assert (found.texts, found.cut, found.tokens) == (40, (beyond > 0).sum(), beyond[beyond > 0].sum())
        counts.append(found.cut)
    assert counts[0] < counts[-1], counts


EARLIER = (Turn("user", "before"), Turn("assistant", "yes"))


def test_what_leaves_out_the_pairs_of_the_server():
    """One of each: asked, of turns, evaluated, harmful, acceptable, without a label."""
    pairs = [
        Pair("asked", "r", True),
        Pair("Asked of turns", "r", True, before=EARLIER),
        Pair("evaluated", "r", False),
        Pair("red", "r", True),
        Pair("red", "r", False),
        Pair("mild", "r", False),
        Pair("nobody knows", "r", None),
    ]
    found = server_part(pairs, ["asked"], {"asked", "evaluated"}, "cai.replay_data")
    assert (found.used, found.harmful) == (1, 1)
    assert found.left_out == {
        "turns before the question": 1, "the evaluation, which asks the same": 1, "cai.red_prompts": 2,
        "cai.replay_data": 1, "no label": 1,
    }  # fmt: skip


def test_what_leaves_out_the_pairs_of_the_evaluation():
    """Three questions of both kinds, of which two are asked; one of one kind; one that continues a conversation."""
    both = [Pair(f"both {i}", "r", label) for i in range(3) for label in (True, False)]
    pairs = [*both, Pair("one", "r", True), Pair("more", "r", True, before=EARLIER)]
    choices = [Choice(f"both {i}", "r", "r", "etc") for i in range(2)]
    found = evaluation_part(pairs, [EvalSet(choices, synthetic=False), EvalSet([Item("unrelated")], synthetic=False)])
    assert (found.used, found.harmful) == (4, 2)
    assert found.left_out == {"at most 200 choices": 2, "one kind of answer": 1, "turns before the question": 1}
    more = evaluation_part(pairs, [EvalSet(choices, synthetic=False), EvalSet([Item("one")], synthetic=False)])
    assert more.used == 5, "another evaluation asks it"


@pytest.fixture
def conversations(config, tmp_path) -> Any:
    """Sixty questions with an answer of either kind, every second after an earlier exchange."""
    rows = []
    for i in range(60):
        begin = "\n\nHuman: hello\n\nAssistant: hi" * (i % 2) + f"\n\nHuman: question {i}?\n\nAssistant: "
        rows.append({"chosen": f"{begin}no", "rejected": f"{begin}yes"})
    (tmp_path / "hh.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "hh.json"), "columns": "hh", "red": None, "acceptable": None}
    return vary(config, data=data, filter={"enabled": True})


def test_all_pairs_are_used_or_left_out_by_what_leaves_them_out(conversations):
    """Every question of the server's and the evaluation's share that continues a conversation is left out by that."""
    setting = Setting(conversations)
    found = parts(setting)
    pairs = [found[name] for name in ("clients", "guard", "server", "evaluation")]
    assert sum(part.used + sum(part.left_out.values()) for part in pairs) == 120
    for name in ("server", "evaluation"):
        continued = sum(bool(pair.before) for pair in setting.texts.materials.shares[name])
        assert continued and found[name].left_out["turns before the question"] == continued
        assert found[name].used + continued == len(setting.texts.materials.shares[name])


def test_the_guard_is_asked_for_every_exchange_and_examples_are_what_clients_hold(conversations):
    """Two pairs, of one exchange and of two."""
    setting = Setting(conversations)
    pairs = setting.texts.materials.pairs
    alone, continued = ([i for i, pair in enumerate(pairs) if bool(pair.before) is more][0] for more in (False, True))
    vars(setting)["client_rows"] = [np.array([alone]), np.array([continued])]
    found = cut(setting)
    assert (found["guard requests"].texts, found["examples"].texts) == (3, 2)


def test_a_source_of_the_tiny_world_beside_files_is_listed():
    pairs = [Pair("q", "r", True)]
    file, tiny = source(pairs), source(pairs, key="data.sources[1]")
    tiny = tiny._replace(entry=tiny.entry._replace(config=SourceConfig(path="tiny")))
    assert readings([file, tiny]) == {
        "data.sources[0]: pairs.json": Reading(1, 1, 0, 0, 0, "square"),
        "data.sources[1]: tiny": Reading(1, 1, 0, 0, 0, "square", synthetic=True),
    }
    assert readings([tiny]) == {}
