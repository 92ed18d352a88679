"""A guard's form in YAML: what it says is what is asked, and every mistake is named with its line."""

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.safety.form import bound
from fedjax_rai.safety.form_file import load_form
from fedjax_rai.safety.forms import FORMS, form_for
from fedjax_rai.text.prompts import Turn
from tests.chat_models import tokenizer
from tests.guard_models import imitated

WHOLE = """\
turns:
  - system: You judge answers.
  - user: "Q: {query} A: {response}"
safe: [fine]
unsafe: [bad]
between: [unclear]
lead: "Verdict: "
questions: ["Is it kind?", "Is it true?"]
"""


def written(folder, text: str):
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_form_is_what_its_file_says(tmp_path):
    path = written(tmp_path, WHOLE)
    form = load_form(path, FORMS)
    assert form.request == (Turn("system", "You judge answers."), Turn("user", "Q: {query} A: {response}"))
    assert (form.safe, form.unsafe, form.between) == (("fine",), ("bad",), ("unclear",))
    assert (form.lead, form.questions, form.name) == ("Verdict: ", ("Is it kind?", "Is it true?"), str(path))
    assert form_for(tokenizer("llama3"), "me/my-guard", str(path)) == form


def test_a_form_of_plain_text_needs_no_chat_template(tmp_path):
    path = written(tmp_path, 'text: "{bos}{query} / {response} ="\nsafe: [" s"]\nunsafe: [" u"]\n')
    own = imitated("wild_guard")
    asked = bound(own, form_for(own, None, str(path)))
    assert own.hf.decode(asked.request_ids("a", "b")) == "<s>a / b ="


def test_a_file_may_extend_a_shipped_form(tmp_path):
    path = written(tmp_path, 'extends: md_judge\npolicy: "O1: harm"\n')
    form = load_form(path, FORMS)
    assert form._replace(name="md_judge", policy="", family="") == FORMS["md_judge"]
    own = imitated("md_judge")
    assert "O1: harm" in own.hf.decode(bound(own, form_for(own, "MD-Judge-v0.1", str(path))).request_ids("a", "b"))
    with pytest.raises(InputError, match="is asked in the form llama_guard"):
        form_for(imitated("llama_guard"), None, str(path))


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("extends: wild_gard\n", ["1: extends = \"wild_gard\": must be one of .*; did you mean wild_guard?"]),
        ("text: '{query}'\nsafe: [a]\nunsafe: [b]\n", ["1: the request has no {response}: the guard would not see it"]),
        ("text: '{query}{response}'\nsafe: a\n", ["2: safe = \"a\": must be a list of spellings, the main one first"]),
        ("text: '{query}{response}'\nsafe: [a]\n", ["1: unsafe is missing: must be a list of spellings"]),
        ("safe: [a]\nunsafe: [b]\n", ["1: text or turns is missing: what is put to the guard"]),
        (WHOLE + "text: x\n", ["1: turns: must not stand beside text", "9: the request has no {query}",
                               "9: the request has no {response}"]),
        (WHOLE + "ledd: x\n", ["9: ledd: no such key; did you mean lead?"]),
        (WHOLE + "safe: [x]\n", ["9: safe: stands twice, first in line 4; must stand once"]),
        (WHOLE + "marker: 'M:'\n", ["9: marker and lines: must both be there, or none of them"]),
        (WHOLE + "lines: 1000\n", ["9: lines = 1000: must be a whole number from 0 to 512"]),
        (WHOLE + "answer: x\n", ["9: answer: has no {verdict}"]),
        (WHOLE.replace("system", "judge"), ["2: turns[0]: must be one role (system, user, assistant) and its text"]),
        ("- a\n", ["1: must be a mapping with the keys of a guard's form"]),
    ],
)  # fmt: skip
def test_every_mistake_is_named_with_its_line(text, problems, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_form(path, FORMS)
    lines = str(caught.value).replace(f"{path}:", "").split("\n")
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        begin, _, end = problem.partition(".*")
        assert line.startswith(begin) and line.endswith(end), line
