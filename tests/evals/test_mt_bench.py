"""MT-Bench: the first answer is put before the second question, both are kept, and marks are means over answers."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedjax_rai.config.schema import DataConfig, EvalConfig
from fedjax_rai.errors import InputError
from fedjax_rai.evals import suite
from fedjax_rai.evals.evaluation import Bench, Conversation, EvalSet, Item, Marks, Measured, Sources, measure
from fedjax_rai.evals.mt_bench import MT_BENCH, rater, temperatures_of
from fedjax_rai.evals.open_ended import Responses, Sampled
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

GIVEN = EvalSet(
    [
        Item("one", category="writing", further=("one more",)),
        Item("two", category="math", further=("two more",), references=("2", "4")),
        Item("three", category="math", further=("three more",)),
    ],
    synthetic=False,
)
ANSWERS = {"one": "A", "two": "B", "three": "", "one more": "C", "two more": "D", "three more": "E"}


def answers_to(name: str, prompts: Sequence[Any], sampled: Sampled) -> Responses:
    """The answer to the last thing that is asked; the second question's was cut off."""
    assert sampled == Sampled(1, 0.0, 7)
    asked = [prompt if isinstance(prompt, str) else prompt[-1].text for prompt in prompts]
    return Responses([[ANSWERS[text]] for text in asked], [[text == "two more"] for text in asked])


def measured(**given: Any) -> Measured:
    absent: Any = None
    made = Bench(EvalConfig(max_new_tokens=7), answers_to, absent, None, tiny_model=False, judge="auto")
    return measure(MT_BENCH, GIVEN, made._replace(**given))


def test_the_first_answer_stands_before_the_second_question():
    asked: dict[str, Any] = {}

    def answered(name: str, prompts: Sequence[Any], sampled: Sampled) -> Responses:
        asked[name] = prompts
        return answers_to(name, prompts, sampled)

    measured(answers_to=answered)
    assert asked["mt_bench"] == ["one", "two", "three"]
    assert asked["mt_bench second turn"][0] == [Turn(USER, "one"), Turn(ASSISTANT, "A"), Turn(USER, "one more")]
    assert len(MT_BENCH.way.asked(GIVEN)) == 3 and len(MT_BENCH.way.asked(GIVEN)[0]) == 3


CATEGORIES = (
    "writing", "roleplay", "extraction", "math", "coding", "reasoning", "stem", "humanities", "other", "",
)  # fmt: skip


def test_by_category_each_question_is_answered_at_its_temperature_and_stays_in_its_place():
    """Both turns; of one temperature together, each with a key of its own; the likeliest answers have the usual one."""
    asked: list[tuple[str, list[str], float]] = []

    def answered(name: str, prompts: Sequence[Any], sampled: Sampled) -> Responses:
        texts = [prompt if isinstance(prompt, str) else prompt[-1].text for prompt in prompts]
        asked.append((name, texts, sampled.temperature))
        assert (sampled.samples, sampled.max_new) == (1, 7)
        return Responses([[f"to {text}"] for text in texts], [[text == "stem?"] for text in texts])

    items = [Item(f"{name}?", category=name, further=(f"{name}!",)) for name in CATEGORIES]
    config = EvalConfig(max_new_tokens=7, mt_bench_temperature="by_category", batch_size=3)
    absent: Any = None
    given = EvalSet(items, synthetic=False)
    bench = Bench(config, answered, absent, None, tiny_model=False, judge="auto")
    found = measure(MT_BENCH, given, bench)
    cold = ["extraction", "math", "coding", "reasoning"]
    cool = ["stem", "humanities"]
    warm = ["writing", "roleplay", "other", ""]
    assert asked == [
        ("mt_bench", [f"{name}?" for name in cold], 0.0),
        ("mt_bench at 0.1", [f"{name}?" for name in cool], 0.1),
        ("mt_bench at 0.7", [f"{name}?" for name in warm], 0.7),
        ("mt_bench second turn", [f"{name}!" for name in cold], 0.0),
        ("mt_bench second turn at 0.1", [f"{name}!" for name in cool], 0.1),
        ("mt_bench second turn at 0.7", [f"{name}!" for name in warm], 0.7),
    ]
    rows = [row._asdict() for row in found.rows]
    assert [row["answers"] for row in rows] == [[f"to {name}?", f"to {name}!"] for name in CATEGORIES]
    assert [row["cut_off"] for row in rows] == [[name == "stem", False] for name in CATEGORIES]
    assert MT_BENCH.way.batches(given, config, scored_in=None) == 2 * (2 + 1 + 2)
    greedy = config.model_copy(update={"mt_bench_temperature": "greedy"})
    assert MT_BENCH.way.batches(given, greedy, scored_in=None) == 2 * 4


def test_a_category_is_known_by_its_lower_case_name():
    items = [Item("?", category=name) for name in ("Math", "Coding", "STEM", "Roleplay")]
    assert temperatures_of(items, EvalConfig(mt_bench_temperature="by_category")) == [0.0, 0.0, 0.1, 0.7]


def test_without_a_judge_both_answers_are_kept_and_nothing_is_marked():
    found = measured()
    assert found.rates == {"mt_bench": None, "mt_bench_turn_1": None, "mt_bench_turn_2": None}
    assert found.rows[1]._asdict() == {
        "set": "mt_bench", "prompts": ["two", "two more"], "answers": ["B", "D"], "references": ["2", "4"],
        "category": "math", "cut_off": [False, True], "marks": None,
    }  # fmt: skip
    assert found.rows[1].found("mt_bench") == []


def test_marks_by_hand():
    """Of six answers one is empty and one got no mark: 7 + 3 + 10 + 1 over four; by turn 17 over two and 4 over two."""
    marks = [[7.0, 3.0], [10.0, None], [9.0, 1.0]]
    asked: list[Any] = []
    found = measured(marks=lambda held: asked.append(held) or Marks("mine", marks))
    assert asked[0][1] == Conversation(["two", "two more"], ["B", "D"], ["2", "4"])
    means = {name: rate and (rate.mean, rate.without_verdict, rate.prompts) for name, rate in found.rates.items()}
    assert means == {
        "mt_bench": (5.25, 2, 3), "mt_bench_turn_1": (8.5, 1, 2), "mt_bench_turn_2": (2.0, 1, 2),
        "mt_bench_math": (5.5, 2, 2), "mt_bench_writing": (5.0, 0, 1),
    }  # fmt: skip
    whole = found.rates["mt_bench"]
    assert whole and (whole.judge, whole.unit, whole.answers, whole.empty, whole.cut_off) == (
        "mine",
        "mark of 10",
        6,
        1,
        1,
    )
    assert 1 <= whole.low <= 5.25 <= whole.high <= 10
    assert [row.found("mt_bench") for row in found.rows] == [[True, True], [True, None], [None, True]]


def test_the_real_questions_are_read(shared_data):
    config = EvalConfig(mt_bench=str(shared_data / "mtbench" / "question.jsonl"))
    found = suite.load_sets(Sources(config, DataConfig(train="x.json"), 0, []))["mt_bench"]
    items = [item for item in found.items if isinstance(item, Item)]
    assert len(items) == 80 and all(len(item.further) == 1 and item.category for item in items)
    assert sum(len(item.references) == 2 for item in items) > 20


@pytest.mark.parametrize("turns", ['["only one"]', '["a", "b", "c"]', '["a", " "]'])
def test_a_row_has_two_turns(tmp_path, turns):
    (tmp_path / "q.jsonl").write_text(f'{{"turns": ["a", "b"]}}\n{{"turns": {turns}}}\n')
    config = EvalConfig(mt_bench=str(tmp_path / "q.jsonl"))
    with pytest.raises(InputError, match=r"q.jsonl:2: row 1: column 'turns'"):
        suite.load_sets(Sources(config, DataConfig(train="x.json"), 0, []))


def by_length(prompts: list[str], answers: list[str], references: list[str]) -> list[Any]:
    return [len(answer) or None for answer in answers]


def of_eleven(prompts: list[str], answers: list[str], references: list[str]) -> list[float]:
    return [11.0 for _ in answers]


def of_one(prompts: list[str], answers: list[str], references: list[str]) -> list[float]:
    return [5.0]


def failing(*_: Any) -> Any:
    raise KeyError("k")


HELD = [Conversation(["a", "b"], ["abc", ""], [])]


def test_a_function_of_the_user_s_own_marks():
    function = rater("tests.evals.test_mt_bench:by_length")
    assert rater("none") is None and function and function(HELD) == Marks("by_length", [[3.0, None]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_eleven", "gave 11.0; must be a mark from 1 to 10, or None"),
        ("of_one", "gave 1 marks of 2 answers"),
        ("failing", "calling it failed"),
    ],
)
def test_what_is_wrong_with_its_marks_is_said(name, message):
    function = rater(f"tests.evals.test_mt_bench:{name}")
    assert function
    with pytest.raises(InputError, match=f"^eval.rater = {name}: {message}"):
        function(HELD)
