"""`docs/run_folder.md`, from the types of what a run writes: `python -m fedjax_rai.tools.run_folder_reference`."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from fedjax_rai.data.summary import DataFile, DataSummary
from fedjax_rai.evals.evaluation import AnswerRow, ChoiceRow, ConversationRow, TokensRow
from fedjax_rai.runs import files, rows
from fedjax_rai.tools.evaluate import Record

# What each file is, in the order of a run. A name that ends in a slash is a folder.
RUN = {
    "config.yaml": "The run's config, every key with its value. A folder of another config is refused.",
    "versions.json": "What the numbers depend on besides the config: versions, commits, digests of named files.",
    "data.json": "What the run has of the data that it was given: read, shared out, left out, cut, by client.",
    "data.png": "The picture of that.",
    "metrics.jsonl": "A row for each round.",
    "revisions.jsonl": "A row for each conversation of a CAI phase; empty where none was held.",
    "checkpoints/": "The last two states (Orbax): an interrupted run goes on from the latest that is not damaged.",
    "adapter/": "The trained adapter in PEFT's format.",
    "guards/": "The guards that were fitted and their scores, by the digest of what they were made of; found again.",
    "eval.json": "The rates, as under `rates` in summary.json.",
    "answers.jsonl": "A row for each prompt of the evaluation; every rate can be counted from their verdicts.",
    "summary.json": "Rates, costs and counts; written last, so that a run that has it is finished.",
    "run.png": "The picture of the run: loss and safety by round, seconds by phase.",
    "tensorboard/": "The rows of metrics.jsonl as TensorBoard reads them; by `tracker: tensorboard` alone.",
    "evals/<digest>/": "What was evaluated afterwards (`fedjax-rai eval`), by the digest of all that it depends on.",
}
TABLE = {
    "table.yaml": "The table's config, which arms and seeds vary; written last.",
    "planned.txt": "The run folders of the last command, a line each; written first.",
    "seed<N>/<arm>/": "The run folder of each cell.",
    "guards/": "The guards that were fitted and their scores, by the digest of what they were made of; found again.",
    "table.md": "The table with notes, as it was printed.",
    "table.csv": "Every rate of every run: arm, seed, rate, mean, low, high, prompts.",
    "table.png": "The picture of the table.",
}
SWEEP = {
    "sweep.yaml": "What the points agree in; the first point's values for the swept keys.",
    "planned.txt": "The run folders of the last command, a line each; written first.",
    "<point>/": "The run folder of each point, named by its values.",
    "guards/": "The guards that were fitted and their scores, by the digest of what they were made of; found again.",
    "sweep.md": "The table with notes, as it was printed.",
    "sweep.csv": "Every rate and every cost of every run, the costs by their dotted names in summary.json.",
    "sweep.png": "The picture of the sweep.",
}
EVALUATIONS = {
    "config.yaml": "The config of the evaluation, every key with its value.",
    "eval.json": "The rates, as in a run folder.",
    "answers.jsonl": "A row for each prompt, as in a run folder.",
    "results.json": "Of `--tasks`, in place of these three: what lm-evaluation-harness found.",
    "samples.jsonl": "Of `--tasks`: its rows, with the name of the task.",
    "evaluation.json": "What was evaluated, and by which versions; a folder that has it is whole.",
}
GUARDS = {
    "README.md": "What this is. All of it may be deleted: it is made again, with the same numbers.",
    "fitted-<digest>/": "A guard, as an adapter in PEFT's format on the base; `guard.adapter` takes it.",
    "scores-<digest>/": "`scores.safetensors`, float32[2, n]: p(unsafe), and how probable a verdict was.",
    "*/origin.json": "What the digest is of, the digests of the files beside it, and the versions that wrote them.",
}
SET = {
    "set.json": "What was asked for: number of prompts, and the digest of the adapter that answers.",
    "config.yaml": "The config that the set was made with.",
    "versions.json": "As in a run folder.",
    "pairs-<shard>.jsonl": "A pair a row, in TRL's conversational preference format, with all turns beside it.",
    "dropped-<shard>.jsonl": "Conversations that make no pair, with the cause.",
    "progress.jsonl": "Tokens generated and seconds, a row for each finished shard.",
    "summary.json": "Counts of pairs and causes, by principle and category; written last.",
}
ANSWER_ROWS = (AnswerRow, ChoiceRow, TokensRow, ConversationRow)
TYPES = (DataFile, rows.Round, rows.Revision, *ANSWER_ROWS, rows.Summary, rows.Versions, Record)
TITLES = {DataFile: "Data", Record: "Evaluation"}
"""What a section is called that is not called like its type."""
ONCE = {DataSummary: DataFile}
"""Parts whose keys stand in the section of one type alone."""


JOINTS = {dict: ".<name>.", list: "[]."}
"""What stands between a key and those of the parts that it maps to or lists."""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [
        "# The run folder",
        "Written by `python -m fedjax_rai.tools.run_folder_reference`; edit the types that it reads, not this page.",
        "Numbers that are none (NaN, infinity) are `null` in every file, as JSON has no word for them.",
        "## A run",
        table(RUN),
        "## A table's folder",
        table(TABLE),
        "## A sweep's folder",
        table(SWEEP),
        "## An evaluation afterwards",
        table(EVALUATIONS),
        "## Kept guards",
        table(GUARDS),
        "## A prepared set",
        table(SET),
    ]
    for kind in TYPES:
        parts += section(kind)
    return "\n\n".join(parts) + "\n"


def table(names: dict[str, str]) -> str:
    """Files and what they are."""
    lines = ["| file | holds |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in names.items()]
    return "\n".join(lines)


def section(kind: Any) -> list[str]:
    """A type: what it is, and a table of all its keys as the file has them."""
    lines = ["| key | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {shown} | {text} |" for name, shown, text in keys(kind)]
    return [f"## {TITLES.get(kind, kind.__name__)}", inspect.cleandoc(kind.__doc__), "\n".join(lines)]


def keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, type, meaning) of every field, and of the fields of what stands in it, in order."""
    described = descriptions(kind)
    for name, hint in get_type_hints(kind).items():
        key = f"{prefix}{name}"
        inner = part_of(hint)
        if kind is rows.Round and name in rows.PARTS:
            yield f"{name}_...", "keys", described[name]
            yield from keys(inner, f"{name}_")
            continue
        if kind is rows.Round and name == "more":
            yield "...", "numbers", described[name]
            continue
        yield key, in_words(hint), described[name]
        if inner is not None and ONCE.get(inner, kind) is kind:
            yield from keys(inner, f"{key}{JOINTS.get(get_origin(present(hint)), '.')}")


def part_of(hint: Any) -> Any:
    """The named tuple that a field is, may be, lists or maps to; None where it holds none."""
    hint = present(hint)
    if get_origin(hint) in (dict, list):
        hint = present(get_args(hint)[-1])
    return hint if files.is_named_tuple(hint) else None


def present(hint: Any) -> Any:
    """A type without the None that may stand in its place."""
    if get_origin(hint) is UnionType:
        (hint,) = [part for part in get_args(hint) if part is not NoneType]
    return hint


def in_words(hint: Any) -> str:
    """A field's type in JSON's words; what may be null or absent is `optional`, and its line says which."""
    optional = ", optional" if get_origin(hint) is UnionType else ""
    hint = present(hint)
    words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint] + optional
    if get_origin(hint) is list:
        return f"list of {in_words(get_args(hint)[0])}{optional}"
    return f"object{optional}"


def descriptions(kind: Any) -> dict[str, str]:
    """The line under each field of a named tuple; a field without one is not in it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    assert isinstance(tree.body[0], ast.ClassDef)
    body = tree.body[0].body
    found = {}
    for field, after in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


if __name__ == "__main__":
    print(page(), end="")
