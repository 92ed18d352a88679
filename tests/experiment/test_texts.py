"""What is cut at `data.max_length`, and what that leaves to train on."""

import json

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from tests.tiny_runs import vary


@pytest.fixture
def long_questions(config, tmp_path):
    """Sixty pairs of one question of eighty words, and another one for each client: no answer token within 64."""
    rows = [
        {"question_en": f"{i} " + "what " * 80, "response_en": "no", "acceptable?": i % 2, "question_category": "etc"}
        for i in range(60)
    ]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "long.json"), "red": None, "acceptable": None}
    return vary(config, data=data, filter={"enabled": False}, cai={"enabled": False})


def test_a_run_in_which_nothing_can_be_learnt_is_refused_and_told_what_would_do(long_questions):
    setting = Setting(long_questions)
    with pytest.raises(InputError) as refused:
        setting.check()
    held = len(np.concatenate(setting.client_rows))
    assert f"data.max_length = 64: cuts {held} of {held} training pairs before their answer begins" in str(
        refused.value
    )
    needed = int(str(refused.value).split("at least ")[1].split()[0])
    assert Setting(vary(long_questions, data={"max_length": needed})).texts.answer_tokens.any()
    assert not Setting(vary(long_questions, data={"max_length": needed - 1})).texts.answer_tokens.any()


def test_a_run_without_rounds_trains_on_nothing_and_is_not_refused(long_questions):
    Setting(vary(long_questions, federated={"rounds": 0})).check()


def test_one_answer_token_is_enough(config):
    setting = Setting(config)
    vars(setting.texts)["answer_tokens"] = np.array([0, 1, 0])
    setting.texts.check_answers(np.array([0, 1]))
    setting.texts.check_answers(np.array([], int))
    with pytest.raises(InputError, match="cuts 2 of 2 training pairs"):
        setting.texts.check_answers(np.array([0, 2]))
