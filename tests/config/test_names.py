"""Names in configs: rows of tables, and the user's own values, which a run notes and does not go on without."""

import functools
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from fedjax_rai.cai.options import METHODS
from fedjax_rai.config import names
from fedjax_rai.config.files import check_files, digests
from fedjax_rai.config.keys import schemas
from fedjax_rai.config.load import load_config
from fedjax_rai.config.names import attribute, fingerprint, given, look_up
from fedjax_rai.config.schema import ExperimentConfig, ModelConfig
from fedjax_rai.data.columns import COLUMNS
from fedjax_rai.data.partition import PARTITIONS
from fedjax_rai.errors import InputError
from fedjax_rai.evals.judge import AUTO, JUDGES
from fedjax_rai.evals.mt_bench import NO_RATER
from fedjax_rai.fed.aggregate import AGGREGATORS
from fedjax_rai.fed.algorithm import ALGORITHMS
from fedjax_rai.fed.weights import WEIGHTS
from fedjax_rai.model.attention import ATTENTIONS
from fedjax_rai.model.cache import CACHES
from fedjax_rai.model.quantize import QUANTIZATIONS
from fedjax_rai.runs.trackers import TRACKERS
from fedjax_rai.safety.evasion import EVASIONS
from fedjax_rai.safety.forms import AUTO as AUTO_FORM
from fedjax_rai.safety.forms import FORMS
from fedjax_rai.safety.guard import FUNCTIONS, MODEL
from fedjax_rai.train.losses import PREFERENCES
from fedjax_rai.train.optimizers import OPTIMIZERS, SCHEDULES

# What the names of every key of this kind mean; a new key must be added, with its table.
TABLES = {
    "tracker": TRACKERS,
    "data.columns": COLUMNS,
    "data.partition": PARTITIONS,
    "data.evasion": EVASIONS,
    "federated.algorithm": ALGORITHMS,
    "federated.aggregator": AGGREGATORS,
    "federated.weight": WEIGHTS,
    "federated.optimizer": OPTIMIZERS,
    "federated.schedule": SCHEDULES,
    "guard.scorer": [MODEL],
    "guard.form": [AUTO_FORM, *FORMS, *FUNCTIONS],
    "cai.method": METHODS,
    "cai.preference": PREFERENCES,
    "eval.judge": [AUTO, *JUDGES],
    "eval.rater": [NO_RATER],
    "cai.constitution": None,  # a path is allowed, too
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]


def module(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def test_the_schema_names_what_the_tables_hold() -> None:
    assert {key for key, schema in schemas().items() if "attribute" in schema} == TABLES.keys()
    for key, table in TABLES.items():
        if table is not None:
            assert schemas()[key]["enum"] == [*table], key


@pytest.mark.parametrize(
    ("section", "key", "table", "others"),
    [
        (ModelConfig, "attention", ATTENTIONS, set()),
        (ModelConfig, "quantize", QUANTIZATIONS, {"none"}),
        (ModelConfig, "kv_cache", CACHES, set()),
    ],
)
def test_the_schema_s_choices_are_those_of_the_tables(section, key, table, others) -> None:
    assert {*get_args(section.model_fields[key].annotation)} == {*table} | others


def test_a_name_that_is_unknown_is_refused_with_line_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\nfederated:\n  algorithm: fedavgg\ndata: {partition: 3}\nguard: {scorer: modle}\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    own = "or package.module:attribute"
    assert str(caught.value).replace(f"{path}:", "").split("\n") == [
        f"3: federated.algorithm = 'fedavgg': must be {among('federated.algorithm')}, {own}; did you mean fedavg?",
        f"4: data.partition = 3: must be {among('data.partition')}, {own}; put it in quotes",
        f"5: guard.scorer = 'modle': must be model, {own}; did you mean model?",
    ]


def among(key: str) -> str:
    known = schemas()[key]["enum"]
    return f"one of {', '.join(known)}" if len(known) > 1 else known[0]


@pytest.mark.parametrize("value", ["mine:f", "a.b_c.d:E.f", "모듈:값"])
def test_an_attribute_is_a_name(tmp_path: Path, value: str) -> None:
    (tmp_path / "c.yaml").touch()
    config = load_config(tmp_path / "c.yaml", [f"federated.algorithm={value}", f"cai.constitution={value}"])
    assert (config.federated.algorithm, config.cai.constitution) == (value, value)


@pytest.mark.parametrize("value", ["mine:", ":f", "mine/x.py:f", "mine:f()", "mine: f", "1:2", "mine.:f", "a:b:c"])
def test_what_is_nearly_an_attribute_is_not(tmp_path: Path, value: str) -> None:
    (tmp_path / "c.yaml").touch()
    with pytest.raises(InputError, match="package.module:attribute"):
        load_config(tmp_path / "c.yaml", [f"federated.algorithm='{value}'"])


def test_a_row_of_the_table_goes_before_and_a_value_of_the_users_own_is_found(here: Path) -> None:
    module(here, "class Rules:\n    @staticmethod\n    def half():\n        return 0.5\n")
    table = {"none": lambda: 0.0}
    assert look_up(table, "none", "k")() == 0.0
    assert look_up(table, "mine:Rules.half", "k")() == 0.5
    with pytest.raises(InputError, match=r"^k = 'nne': must be one of none, or package.module:attribute; did you mean"):
        look_up(table, "nne", "k")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "absent:f", "there is no module absent; must be package.module:attribute, installed or below"),
        ("", "mine.absent:f", "there is no module mine.absent"),
        ("def median(): ...", "mine:medain", "mine has no medain; did you mean median?"),
        ("class A:\n    b = 1", "mine:A.c", "mine:A has no c"),
        ("f = 3", "mine:f", "is of the type int; must be callable"),
        ("import os", "mine:os", "is a module; must be callable"),
        ("x = 1\nx / 0\n", "mine:f", r"importing it failed at .*mine\.py:2: ZeroDivisionError: division by zero"),
        ("x = 1\n\nx = (\n", "mine:f", r"importing it failed at .*mine\.py:3: SyntaxError: '\(' was never closed"),
        ("\nimport absent_library\n", "mine:f", r"importing it failed at .*mine\.py:2: ModuleNotFoundError: No mod"),
        ("raise SystemExit(3)", "mine:f", r"importing it failed at .*mine\.py:1: SystemExit: 3"),
    ],
)
def test_what_cannot_be_imported_is_said(here: Path, text: str, name: str, message: str) -> None:
    module(here, text)
    with pytest.raises(InputError, match=f"^federated.aggregator = {re.escape(name)}: {message}"):
        attribute(name, "federated.aggregator")


def test_a_value_of_another_type_is_refused(here: Path) -> None:
    module(here, "rules = ('be kind',)")
    assert attribute("mine:rules", "k", tuple) == ("be kind",)
    with pytest.raises(InputError, match="^k = mine:rules: is of the type tuple; must be of the type dict$"):
        attribute("mine:rules", "k", dict)


def test_what_is_wrong_with_own_values_is_said_beside_absent_files(here: Path) -> None:
    module(here, "")
    config = ExperimentConfig.model_validate(
        {"data": {"train": "absent.json", "partition": "mine:deal"}, "guard": {"scorer": "absent:f"}}
    )
    with pytest.raises(InputError) as caught:
        check_files(config)
    assert [line.partition(" = ")[0] for line in str(caught.value).split("\n")] == [
        "data.train", "data.partition", "guard.scorer",
    ]  # fmt: skip


def test_a_run_notes_the_file_of_a_value_and_sees_that_it_changed(here: Path) -> None:
    path = module(here, "def deal(n, clients, seed): ...\n")
    config = ExperimentConfig.model_validate({"data": {"partition": "mine:deal"}})
    noted = digests(config)
    assert noted.keys() == {"data.partition"}
    assert re.fullmatch(r"mine:deal, sha256:[0-9a-f]{64}", noted["data.partition"])
    assert digests(config) == noted
    path.write_text(path.read_text() + "\n# another\n")
    assert digests(config)["data.partition"] != noted["data.partition"]


def test_a_value_that_a_module_passes_on_is_noted_with_both_files(here: Path) -> None:
    inner = module(here, "def f(): ...\n", "within")
    module(here, "from within import f\n")
    before = fingerprint("mine:f", "k")
    inner.write_text("def f(): return 1\n")
    assert fingerprint("mine:f", "k") != before


def test_a_value_without_a_file_says_so() -> None:
    assert fingerprint("math:sqrt", "k").startswith(("math:sqrt, which is in no file", "math:sqrt, sha256:"))
    assert fingerprint("builtins:len", "k") == "builtins:len, which is in no file"


def test_a_value_that_another_process_can_import_is_named_as_it_stands() -> None:
    assert given(look_up) == "fedjax_rai.config.names:look_up"
    assert look_up({}, given(look_up), "k") is look_up


def test_a_value_that_cannot_be_imported_is_found_by_a_name_that_tells_it_from_others() -> None:
    def rule(share: float):
        return lambda: share

    tenth, fifth = rule(0.1), rule(0.2)
    assert given(tenth).startswith("given:lambda_") and given(tenth) == given(rule(0.1))
    assert given(tenth) != given(fifth)
    assert look_up({}, given(fifth), "k")() == 0.2
    bound = functools.partial(rule, share=0.3)
    assert look_up({}, given(bound), "k")()() == 0.3
    assert re.fullmatch(r"given:lambda_\w{8}, sha256:[0-9a-f]{64}", fingerprint(given(tenth), "k"))


def test_a_value_that_was_given_elsewhere_is_asked_for() -> None:
    with pytest.raises(InputError, match="^k = given:f: a value that was given to the Python API in another process"):
        look_up({}, "given:f", "k")


def test_functions_that_stand_in_no_file_are_told_apart_by_what_they_do() -> None:
    def made(text: str):
        found = {}
        exec(text, found)
        return found["f"]

    one, same, other = (made(f"f = lambda x: x + {number}") for number in (1, 1, 2))
    assert given(one) == given(same) != given(other)


def test_values_of_the_users_own_are_told_apart_by_what_they_hold() -> None:
    pairs = [({"a": 1}, {"a": 2}), ((1, "x"), (1, "y")), (functools.partial(max, 1), functools.partial(max, 2))]
    for one, other in pairs:
        assert names.source(one) == names.source(one) != names.source(other)


def run_as(text: str, **constants):
    """`f` of a text that stands in no file, with globals."""
    found = {**constants}
    exec(text, found)
    return found["f"]


class Slotted:
    """Holds what it holds in a slot."""

    __slots__ = ("share",)

    def __init__(self, share: float):
        self.share = share

    def __call__(self) -> float:
        return self.share


def of_keywords(value):
    def f(*, share=value):
        return share

    return f


def closed_over(value):
    return lambda x: x in value


NESTED = "def f(xs):\n    return [(lambda y: y + SHIFT)(x) for x in xs]"
METHOD = "class A:\n    def __call__(self):\n        return {}\nf = A()"


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (of_keywords(0.1), of_keywords(0.1), of_keywords(0.2)),
        (closed_over({"a", "b", "c"}), closed_over({"c", "b", "a"}), closed_over({"a", "b"})),
        (closed_over(frozenset({1})), closed_over(frozenset({1})), closed_over(frozenset({2}))),
        (Slotted(0.1), Slotted(0.1), Slotted(0.2)),
        ("a".count, "a".count, "b".count),
        (functools.partial(max, 1), functools.partial(max, 1), functools.partial(min, 1)),
        (closed_over(int), closed_over(int), closed_over(float)),
        (closed_over(np.maximum), closed_over(np.maximum), closed_over(np.minimum)),
        (Slotted(0.1).__call__, Slotted(0.1).__call__, Slotted(0.2).__call__),
        *(
            (run_as(NESTED, SHIFT=one), run_as(NESTED, SHIFT=one), run_as(NESTED, SHIFT=other))
            for one, other in [(1, 2), ("a", "b"), ((1, 2.0), (1, 3.0))]
        ),
        (run_as(METHOD.format(1)), run_as(METHOD.format(1)), run_as(METHOD.format(2))),
        (run_as(METHOD.format("N"), N=1), run_as(METHOD.format("N"), N=1), run_as(METHOD.format("N"), N=2)),
    ],
)
def test_values_that_behave_otherwise_have_other_names(one, same, other) -> None:
    assert given(one) == given(same) != given(other)


def test_a_global_that_is_not_read_makes_no_other_name() -> None:
    text = "f = lambda x: x.shift + 1"
    assert given(run_as(text, shift=1)) == given(run_as(text, shift=2))


def test_a_value_does_not_take_another_s_name_unseen() -> None:
    first, second = (1).__add__, (2).__add__
    assert look_up({}, given(first), "k") is first
    assert given(first) == given(first)
    with pytest.raises(InputError, match="^given:add: another value of that name was given before"):
        given(second)


def test_two_lambdas_of_one_line_are_told_apart() -> None:
    """Their source is the same line, so one name stands for both: refused, rather than the second for the first."""
    doubled, tripled = (lambda x: 2 * x), (lambda x: 3 * x)
    given(doubled)
    with pytest.raises(InputError, match="do not tell them apart"):
        given(tripled)
    first, second = ((lambda x: 5 * x) for _ in range(2))
    assert given(first) == given(second)  # twice the same
