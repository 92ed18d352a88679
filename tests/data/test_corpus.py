"""Which of SQuARe's rows make which corpus: laws that hold for any rows, and counts worked out by hand."""

from collections import Counter
from typing import Any

import pytest

from fedjax_rai.config.prepared import CORPORA
from fedjax_rai.data import corpus as corpora
from fedjax_rai.data.corpus import corpus, prepare_splits
from fedjax_rai.errors import InputError

Row = dict[str, Any]


def pair(question: int, answer: int, acceptable: int, **changes: Any) -> Row:
    """A made-up row of SQuARe's response files."""
    return {
        "question": f"질문 {question}",
        "question_en": f"Question {question}",
        "response": f"대답 {answer}",
        "response_en": f"Answer {answer}",
        "acceptable?": acceptable,
        "category": ["contentious"] if not acceptable else ["objective", "indirect"],
        "question_category": None if question % 2 else "ethical",
        **changes,
    }


def placed(rows: list[Any]) -> list[tuple[str, Any]]:
    return [(f"a.json:{i + 1}: row {i}", row) for i, row in enumerate(rows)]


# 120 questions, of each one red answer and two acceptable ones: enough for 3 + 7 (and 6 + 14) of each half.
ROWS = [pair(q, 10 * q + a, acceptable=int(a > 0)) for q in range(120) for a in range(3)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe in the small: 6 red and 14 acceptable pairs."""
    monkeypatch.setattr(corpora, "RED", 6)
    monkeypatch.setattr(corpora, "ACCEPTABLE", 14)


def train(name: str, rows: list[Row], **options: Any) -> list[Row]:
    return prepare_splits(corpus(name), {"train": placed(rows)}, **options)["train"].rows


def test_the_recipe_is_the_paper_s() -> None:
    assert (corpora.RED, corpora.ACCEPTABLE) == (6_000, 14_000)


@pytest.mark.usefixtures("small")
def test_a_recipe_takes_as_many_of_each_label_as_it_says() -> None:
    made = prepare_splits(corpus("square20k_en"), {"train": placed(ROWS)})["train"]
    assert Counter(row["acceptable?"] for row in made.rows) == {0: 6, 1: 14}
    held = {"duplicates": 0, "contradictory": 0, "held_out": 0}
    assert made.counts == {"read": 360, **held, "red": 6, "acceptable": 14}
    labels = [row["acceptable?"] for row in made.rows]
    assert labels not in ([0] * 6 + [1] * 14, [1] * 14 + [0] * 6)  # they are mixed


@pytest.mark.usefixtures("small")
def test_the_columns_are_square_s_in_one_language() -> None:
    row = train("square20k_en", ROWS)[0]
    number = int(row["question_en"].split()[1])
    assert row["response_en"] in {f"Answer {10 * number + a}" for a in range(3)}
    assert list(row) == ["question_en", "response_en", "acceptable?", "category", "question_category"]
    assert row["question_category"] == ("" if number % 2 else "ethical")  # null has no other form there
    assert list(train("square20k_ko", ROWS)[0])[:2] == ["question", "response"]


@pytest.mark.usefixtures("small")
def test_both_languages_hold_the_same_pairs_in_the_same_order() -> None:
    for kind in ("square20k", "slg20k"):
        english, korean = (train(f"{kind}_{language}", ROWS) for language in ("en", "ko"))
        assert [numbers(row) for row in english] == [numbers(row) for row in korean]


def numbers(row: Row) -> tuple[str, str]:
    """The numbers of a row's question and answer, whatever its language and form."""
    texts = [turn["content"] for turn in row["messages"]] if "messages" in row else list(row.values())[:2]
    question, answer = texts
    return question.split()[1], answer.split()[1]


@pytest.mark.usefixtures("small")
def test_clients_and_guard_share_no_question() -> None:
    clients, guard = (
        {numbers(row)[0] for row in train(name, ROWS, partial=True)} for name in ("square20k_en", "slg20k_en")
    )
    assert clients and guard and not clients & guard


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["square20k_en", "slg20k_ko"])
def test_the_order_of_the_file_changes_nothing(name: str) -> None:
    assert train(name, ROWS[::-1]) == train(name, ROWS)


@pytest.mark.usefixtures("small")
def test_a_guard_s_rows_are_conversations_and_verdicts() -> None:
    label = {(f"Question {q}", f"Answer {10 * q + a}"): "safe" if a else "unsafe" for q in range(120) for a in range(3)}
    rows = train("slg20k_en", ROWS)
    assert Counter(row["verdict"] for row in rows) == {"unsafe": 6, "safe": 14}
    for row in rows:
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert row["verdict"] == label[user["content"], assistant["content"]]


def test_too_few_pairs_are_refused_with_both_numbers_and_taken_at_3_to_7_on_request() -> None:
    # all of one half: as many questions as hold 7 red and 16 acceptable answers make 2 times 3 + 7
    rows = [row for row in ROWS if in_clients_half(row)]
    red = [row for row in rows if not row["acceptable?"]][:7]
    acceptable = [row for row in rows if row["acceptable?"]][:16]
    with pytest.raises(InputError) as raised:
        train("square20k_en", red + acceptable)
    assert "6,000 red + 14,000 acceptable pairs are wanted, and 7 + 16 are there" in str(raised.value)
    assert str(raised.value).endswith("or say --partial for 6 + 14")
    made = train("square20k_en", red + acceptable, partial=True)
    assert Counter(row["acceptable?"] for row in made) == {0: 6, 1: 14}


def in_clients_half(row: Row) -> bool:
    """Whether SQuARe20K may hold a row, found by asking for it alone, ten times over."""
    tens = [row | {"response": f"{i}", "response_en": f"{i}", "acceptable?": int(i > 2)} for i in range(10)]
    try:
        return len(train("square20k_en", tens, partial=True)) == 10
    except InputError:
        return False


def test_partial_makes_nothing_of_nothing() -> None:
    with pytest.raises(InputError, match="must be SQuARe's response_train.json$"):
        train("square20k_en", ROWS[:2], partial=True)


@pytest.mark.usefixtures("small")
def test_what_is_there_twice_with_both_labels_or_in_another_split_is_counted() -> None:
    twice = pair(0, 0, 0, question_en="Question  0")  # the same to a reader
    both = [pair(500, 1, 0), pair(500, 1, 1), pair(500, 1, 1)]
    test = [pair(7, 1, 1), pair(7, 2, 0), pair(900, 3, 1)]  # question 7 has three rows in train
    made = prepare_splits(corpus("square20k_en"), {"train": placed([*ROWS, twice, *both]), "test": placed(test)})
    counts = made["train"].counts
    assert (counts["read"], counts["duplicates"], counts["contradictory"], counts["held_out"]) == (364, 1, 3, 3)
    assert not {numbers(row)[0] for row in made["train"].rows} & {"7", "500"}
    assert [numbers(row) for row in made["test"].rows] == [("7", "1"), ("7", "2"), ("900", "3")]  # all, in order
    assert made["test"].counts == {"read": 3, "duplicates": 0, "contradictory": 0, "red": 1, "acceptable": 2}


def test_questions_are_all_there_are() -> None:
    korean = [{"question": f"질문 {i}", "sensitive?": i % 2, "category": "etc"} for i in range(5)]
    rows = [{**row, "question_en": f"Question {i}"} for i, row in enumerate(korean)]
    made = prepare_splits(corpus("questions_ko"), {"train": placed([*rows, rows[3]])})["train"]
    assert made.rows == korean
    assert made.counts == {"read": 6, "duplicates": 1, "contradictory": 0, "held_out": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acceptable?": 2}, "field 'acceptable?' is 2; must be 1 or 0"),
        ({"acceptable?": None}, "field 'acceptable?' is null; must be 1 or 0"),
        ({"response_en": " "}, "field 'response_en' is \" \"; must be text, not empty"),
        ({"response": 3}, "field 'response' is 3; must be text, not empty"),
        ({"question": "\ud800"}, "field 'question' holds half of a character"),
        ({"category": "etc"}, "field 'category' is \"etc\"; must be a list of text"),
        ({"question_category": 1}, "field 'question_category' is 1; must be text or null"),
    ],
)
def test_a_row_that_is_not_as_it_should_be_is_refused_with_its_place(changes: Row, message: str) -> None:
    with pytest.raises(InputError) as raised:
        train("square20k_en", [ROWS[0], ROWS[1] | changes])
    assert str(raised.value).startswith(f"a.json:2: row 1: {message}")


def test_a_row_without_its_texts_or_none_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="row 0: no field 'response_en', only question_en; must be text"):
        train("square20k_en", [{"question_en": "Why?"}])
    with pytest.raises(InputError, match="is no object"):
        train("square20k_en", [3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="question_train.json: no rows"):
        train("questions_en", [])


def test_corpora_are_named_by_kind_and_language() -> None:
    assert [(corpus(name).kind, corpus(name).language) for name in CORPORA] == [
        ("square20k", "en"), ("square20k", "ko"), ("slg20k", "en"), ("slg20k", "ko"), ("questions", "en"),
        ("questions", "ko"),
    ]  # fmt: skip
    assert corpus("square20k_en").files["validation"] == "response_valid.json"
    assert corpus("questions_ko").files == {
        "train": "question_train.json",
        "validation": "question_valid.json",
        "test": "question_test.json",
        "test_ood": "question_test_ood.json",
    }
