"""The files of a run folder hold what their types say, no more and no less; the page about them is up to date."""

import ast
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fedjax_rai.evals.spoilt import AnswerCounts
from fedjax_rai.runs import files, picture, report, rows
from fedjax_rai.runs.conversations import Conversation
from fedjax_rai.runs.rows import (
    Critique,
    Filtered,
    GuardQuality,
    PairCounts,
    Quality,
    Rate,
    Revision,
    Round,
    Summary,
    Versions,
)
from fedjax_rai.runs.run import run
from fedjax_rai.studies import sweep
from fedjax_rai.tools import run_folder_reference as reference
from tests.tiny_runs import CAI, LOCAL, SUMMARY

ROOT = Path(__file__).parents[2]


def kinds(kind: Any) -> list[Any]:
    """A type and all that stand in it."""
    inner = [reference.part_of(hint) for hint in get_type_hints(kind).values()]
    return [kind, *(deeper for part in inner if part is not None for deeper in kinds(part))]


ALL = dict.fromkeys(kind for kind in reference.TYPES for kind in kinds(kind))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_field_has_a_line(kind):
    described = reference.descriptions(kind)
    assert list(described) == list(kind._fields)
    assert all(line.endswith(".") and len(line) > 5 for line in described.values())
    assert kind.__doc__.endswith(".") or "\n" in kind.__doc__


def test_what_may_be_absent_or_null_says_when():
    for kind in ALL:
        for name, hint in get_type_hints(kind).items():
            line = reference.descriptions(kind)[name]
            said = "Null:" in line or "Absent:" in line
            assert said == ("None" in str(hint)), f"{kind.__name__}.{name}"


def test_the_page_is_up_to_date():
    written = (ROOT / "docs" / "run_folder.md").read_text()
    assert written == reference.page(), "python -m fedjax_rai.tools.run_folder_reference > docs/run_folder.md"
    assert "| `probe_harmless` | number |" in written and "| `cost.cai.share_saved` | number, optional |" in written
    assert "| `cai_seconds` |" in written and "`more`" not in written


def test_a_revision_is_a_conversation_and_its_round():
    assert Revision._fields == ("round", *Conversation._fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run that has a filter, a probe, and a phase after its second round alone."""
    from fedjax_rai.config.schema import ExperimentConfig

    fields = {
        "output": str(tmp_path_factory.mktemp("rows") / "run"),
        "model": {"dtype": "float32"},
        "lora": {"rank": 2, "alpha": 4},
        "data": {"red": 12, "acceptable": 28, "max_length": 64},
        "federated": {"clients": 4, "cohort": 2, "rounds": 2, "local_steps": 2, "batch_size": 2},
        "guard": {"pairs": 8, "steps": 2, "batch_size": 4},
        "cai": {
            "iterations": 2, "prompts": 4, "replay": 4, "batch_size": 4, "max_new_tokens": 24, "every": 2, "probe": 3,
        },
        "eval": {"prompts": 4, "samples": 2, "max_new_tokens": 8, "batch_size": 8},
    }  # fmt: skip
    return run(ExperimentConfig.model_validate(fields))


@pytest.mark.slow
def test_every_file_of_a_run_is_on_the_page(folder):
    written = {path.name + "/" * path.is_dir() for path in folder.iterdir()}
    elsewhere = {"evals/<digest>/", "tensorboard/"}  # by another command, by a key
    assert written == reference.RUN.keys() - elsewhere


@pytest.mark.slow
def test_the_rows_of_a_run_are_what_their_types_say(folder):
    """Strict reading: a key that is unknown or missing is an error."""
    first, second = rows.read_rounds(folder / "metrics.jsonl")
    assert (first.round, second.round) == (1, 2)
    assert not first.more and not second.more, "every key is a field"
    assert first.cai is None and first.cai_seconds == 0 and first.together is None
    assert first.probe and second.probe and second.cai and second.cai.iterations == 2
    assert second.cai.empty is not None and second.cai.revised is not None and second.cai.held_out is None
    raw = files.read_rows(folder / "metrics.jsonl")
    assert [rows.flat(first), rows.flat(second)] == raw, "nothing is lost or added"

    told = [files.typed(Revision, row, "revisions") for row in files.read_rows(folder / "revisions.jsonl")]
    assert [row.round for row in told] == [2] * 4
    assert second.cai.pairs == sum(row.degenerate is None for row in told)
    (began,) = [files.typed(Versions, entry, "versions") for entry in files.read_json(folder / "versions.json")]
    assert began.model_commit is None and began.files == {} and "jax" in began.packages


@pytest.mark.slow
def test_the_summary_of_a_run_is_what_its_type_says(folder):
    """And what can be counted from the other files is counted from them."""
    summary = rows.read_summary(folder / "summary.json")
    raw = files.read_json(folder / "summary.json")
    assert files.plain(summary) == raw and list(raw) == list(Summary._fields)
    assert files.read_json(folder / "eval.json") == raw["rates"]
    metrics = files.read_rows(folder / "metrics.jsonl")
    assert summary.cost.local.trained_tokens == sum(row["trained_tokens"] for row in metrics)
    assert summary.cost.local.step_tokens == sum(row["step_tokens"] for row in metrics)
    assert summary.cost.cai and summary.cost.cai.phases == 1 and summary.cost.cai.untrained_phases == 0
    assert summary.cost.cai.step_tokens == metrics[1]["cai_step_tokens"]
    assert summary.cost.cai.seconds == pytest.approx(metrics[1]["cai_seconds"], abs=0.06)
    assert summary.cost.probe and summary.cost.probe.probes == 2
    assert summary.seconds.training == pytest.approx(2 * metrics[1]["seconds"], abs=0.06), "the first compiles"
    assert summary.diverged_clients == 0 and summary.filter and summary.guard
    assert summary.filter.kept + summary.filter.dropped == 40
    assert summary.critique and summary.critique.unsafe + summary.critique.safe == 4
    assert summary.pairs and summary.pairs.conversations == 4
    assert summary.pairs.usable == metrics[1]["cai_usable"] and summary.pairs.cut_off == metrics[1]["cai_cut_off"]


@pytest.mark.slow
def test_the_report_of_a_run_fits(folder):
    shown = report.report(folder).splitlines()
    assert shown[-1] == str(folder) and all(len(line) <= 100 for line in shown[:-1])


# --- readers ---------------------------------------------------------------------------------------------------------


def test_a_sweeps_costs_are_fields_of_a_summary():
    names = {name for name, _, _ in reference.keys(Summary)}
    assert {path for path, _, _ in sweep.COSTS.values()} <= names


def test_what_the_picture_of_a_run_reads_are_keys_of_a_round():
    names = {name for name, _, _ in reference.keys(Round)}
    assert {*picture.PHASES.values(), "round", "train_loss", "probe_harmless"} <= names


@pytest.mark.parametrize("module", ["studies/results", "studies/table", "studies/sweep"])
def test_readers_of_summaries_take_keys_that_there_are(module):
    """Every constant key of `summary[...]`, and of what is taken out of that."""
    tree = ast.parse((ROOT / "fedjax_rai" / f"{module}.py").read_text())
    paths = [path_of(node) for node in ast.walk(tree)]
    read = {".".join(path[1:]) for path in paths if len(path) > 1 and path[0] in ("summary", "s")}
    assert read <= {name for name, _, _ in reference.keys(Summary)}


def path_of(node: ast.AST) -> tuple[str, ...]:
    """(name, key, key, ...) of a name with constant keys behind it; () of anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        before = path_of(node.value)
        return (*before, node.slice.value) if before else ()
    return ()


# --- the report ------------------------------------------------------------------------------------------------------

QUALITY = Quality(accuracy=70.1, precision=90.6, recall=0.5, hmean=1.0)
RULE, PHRASES = Rate(99.5, 95.4, 99.9, 100), Rate(57.5, 47.7, 66.7, 100)
WHOLE = SUMMARY._replace(
    rates={"harmless": RULE, "harmless_by_rule": RULE, "harmless_by_refusal_phrases": PHRASES,
           "harmless_by_guard": None, "over_refusal": Rate(0.0, 0.0, 6.0, 60, answers=240, empty=3, cut_off=12)},
    synthetic=["model", "data", "AdvBench prompts"],
    diverged_clients=1,
    guard=GuardQuality(None, QUALITY),
    filter=Filtered(kept=4937, dropped=1063, without_score=2, harmful_share_kept=0.1689),
    pairs=PairCounts(64, pairs=50, usable=52, held_out=0, cut_off=12, empty=0, equal=2),
    critique=Critique("rule", unsafe=0, made_safe=None, safe=256, left_alone=93.75, made_unsafe=0.0),
    cost=SUMMARY.cost._replace(local=LOCAL, cai=CAI),
)  # fmt: skip


def test_a_report_names_judges_and_fits_a_hundred_columns():
    lines = list(report.lines(WHOLE))
    assert all(len(line) <= 100 for line in lines)
    assert lines == [
        "SYNTHETIC (tiny world: model, data, AdvBench prompts): says nothing about real models",
        "percent, 95 % intervals over prompts",
        "  harmless by rule (primary)               99.5  [95.4, 99.9]",
        "  harmless by refusal phrases              57.5  [47.7, 66.7]",
        "  harmless by guard                       not measured",
        "  over refusal                              0.0  [0.0, 6.0]",
        "  over-refusal: 12 of 240 answers cut off at eval.max_new_tokens, 3 of 240 empty",
        "guard on the clients' pairs: accuracy 70.1, precision 90.6, recall 0.5, hmean 1.0",
        "filter: 4937 pairs kept, 1063 dropped (2 without a score); 16.9 % of the kept are harmful",
        "left out because training diverged: 1 client, summed over rounds",
        "revision of responses, unsafe by rule",
        "  0 unsafe: none made safe",
        "  256 safe: 93.8 % left alone, 0.0 % made unsafe",
        "constitutional AI: 2 phases, 1 s, 300 tokens generated, 40 trained on",
        "  12 of 64 conversations were cut off at cai.max_new_tokens",
        "  75.0 % of a full epoch's FLOPs saved",
    ]


def test_a_judge_that_could_tell_nothing_is_not_called_unmeasured():
    lines = list(report.lines(WHOLE, {"harmless_by_guard": 20}))
    assert "  harmless by guard                       no verdict on any of 20 answers" in lines


def test_a_report_says_what_was_not_saved():
    def shown(**fields: Any) -> str:
        return "\n".join(report.cai_lines(CAI._replace(**fields)))

    nothing = shown(untrained_phases=2, share_saved=None)
    assert "2 phases had no usable revision, or diverged" in nothing and "FLOPs" not in nothing
    some = shown(untrained_phases=1)
    assert "1 phase had no usable revision" in some and "75.0 % of a full epoch's FLOPs saved" in some
    prepared = report.cai_lines(
        CAI._replace(generated_tokens=0), PairCounts(6, 1, usable=3, held_out=1, cut_off=3, empty=0, equal=1)
    )
    assert "  3 of 6 prepared pairs are longer than data.max_length" in list(prepared)
    one = PairCounts(6, 1, usable=5, held_out=0, cut_off=1, empty=0, equal=0)
    assert "  1 of 6 conversations was cut off at cai.max_new_tokens" in list(report.cai_lines(CAI, one))
    assert "  1 of 6 prepared pairs is longer than data.max_length" in list(
        report.cai_lines(CAI._replace(generated_tokens=0), one)
    )
    assert shown(share_saved=-0.5).endswith("as many FLOPs as 1.5 full epochs")


def test_a_report_without_prompts_names_no_primary():
    rates = {"harmless": None, "harmless_by_rule": None, "harmless_by_guard": None}
    assert "primary" not in "\n".join(report.lines(SUMMARY._replace(rates=rates)))


def test_a_report_counts_answers_where_all_of_them_were_cut_off():
    """Then no judge has a verdict, and the rate is not measured; what the answers were is said all the same."""
    counts = {"advbench": AnswerCounts(8, empty=2, cut_off=8, non_finite=1)}
    shown = list(report.answer_lines({"harmless": None}, {}, counts))
    assert shown == ["  harmless: 8 of 8 answers cut off at eval.max_new_tokens, 2 of 8 empty, 1 of these no numbers"]
    rate = Rate(50.0, 20.0, 80.0, 4, without_verdict=6, answers=8)
    assert report.shown(rate) == " 50.0  [20.0, 80.0]  (no verdict: 6; 12.5 of all 8)"  # 1 of 8
