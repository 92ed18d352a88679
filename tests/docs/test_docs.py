"""What README and docs name is there: links, files, tests, commands, config keys; and no page is out of reach."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.evals.evaluation import LOWER
from fedjax_rai.evals.judge import JUDGES
from fedjax_rai.evals.suite import EVALUATIONS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_BYTES = 8000

# Named in the docs and not there yet; the last test says when a name is to be taken off.
AWAITED: dict[str, str] = {}

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.-])((?:fedjax_rai|tests|configs|docs|tpu_scripts|\.ci)/[\w./-]*[\w/])(?:::(\w+))?")
INTERVAL = re.compile(r"\d\.\d \[-?\d+\.\d, -?\d+\.\d\]")
# Files of a reader's own: what a shown command names need not be here, so what is shipped stands in its place.
SHIPPED = "model.path=tiny guard.path=null data.train=tiny eval.advbench=tiny cai.data=online".split()

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


class Block(NamedTuple):
    """A fenced block: its language and text."""

    language: str
    text: str


def blocks(page: Path, language: str) -> list[str]:
    """The texts of the page's fenced blocks in a language."""
    found = (Block(*match) for match in FENCE.findall(page.read_text(encoding="utf-8")))
    return [block.text for block in found if block.language == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What a link can name of a page: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command line in the page's shell blocks, comments taken off."""
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


SHOWN = [(page, words) for page in PAGES for words in commands(page)]
OURS = [
    pytest.param(words, id=f"{page.stem}: {shlex.join(words)}") for page, words in SHOWN if words[0] == "fedjax-rai"
]


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """(name of the command, its parameters) of a `fedjax-rai` line, which is not executed."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    name = ""
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"{shlex.join(words)}: no such command"
        name = rest[0]
        command = command.commands[name]
        rest = rest[1:]
    return name, command.make_context(name, rest).params


def checked(*arguments: str) -> str:
    """What `fedjax-rai config` prints of a config; fails with its message where something is wrong."""
    done = CliRunner().invoke(app, ["config", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < README_BYTES


@every_page
def test_a_page_begins_with_what_it_is_for(page):
    title, blank, first = page.read_text(encoding="utf-8").split("\n")[:3]
    assert title.startswith("# ") and not blank and re.match(r"[A-Z]", first)


@every_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), f"{page.name}: no {target}"
        assert not anchor or anchor in anchors(to), f"{page.name}: no heading {target}"


@every_page
def test_files_and_tests_that_are_named_exist(page):
    for name, test in PATH.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or name.rstrip("/") in AWAITED, f"{page.name}: no file {name}"
        if test:
            moved = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py") if defines(path, test)]
            assert name in moved, f"{page.name}: no {name}::{test}; a test of this name is in {moved}"


def defines(path: Path, test: str) -> bool:
    return f"\ndef {test}(" in path.read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    (listed,) = blocks_of_directive(ROOT / "docs" / "index.md", "toctree")
    names = [line for line in listed.splitlines() if line and not line.startswith(":")]
    assert len(names) == len(set(names))
    assert {*names, "index"} == {page.stem for page in (ROOT / "docs").glob("*.md")}


def blocks_of_directive(page: Path, name: str) -> list[str]:
    return re.findall(rf"^```{{{name}}}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_layout_lists_every_folder_and_module():
    rows = re.findall(r"^\| \d+ \| ([^|]*) \|", (ROOT / "docs" / "layout.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]*)`", row)}
    package = ROOT / "fedjax_rai"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    awaited = {name.removeprefix("fedjax_rai/") for name in AWAITED}
    assert listed - awaited == (folders | modules) - awaited


@pytest.mark.parametrize("words", OURS)
def test_a_command_that_is_shown_is_one(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, parameters = parsed(words)
    if parameters.get("config") is None:
        return
    overrides = parameters["overrides"] or []
    known = yaml.safe_load(checked("configs/tiny_cpu.yaml"))
    for override in overrides:
        section, _, key = override.partition("=")[0].partition(".")
        assert section in known and (not key or key in known[section]), f"no config key: {override}"
    values = [override.partition("=")[2].split(",") if name == "sweep" else [""] for override in overrides]
    for chosen in product(*values):
        settled = [
            f"{override.partition('=')[0]}={value}" if value else override
            for override, value in zip(overrides, chosen, strict=True)
        ]
        checked(str(parameters["config"]), *settled, *SHIPPED)


def test_other_commands_that_are_shown_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page, words in SHOWN:
        if words[0] == "make":
            assert words[1] in targets, f"{page.name}: no make {words[1]}"
        if words[:2] == ["python", "-m"] and words[2].startswith("fedjax_rai"):
            path = ROOT / words[2].replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page.name}: no {words[2]}"


@every_page
def test_what_is_shown_of_other_languages_can_be_read(page):
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "yaml"):
        yaml.safe_load(text)
    for text in blocks(page, "json"):
        for line in text.splitlines():
            json.loads(line)


@every_page
def test_numbers_of_the_tiny_world_are_called_synthetic(page):
    for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert not INTERVAL.search(section) or "synthetic" in section, section.split("\n")[0]


def test_a_harmless_rate_in_the_results_is_named_by_its_judge():
    judges = {judge.title for judge in JUDGES.values() if judge.beside}
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    named = re.findall(r"\| harmless(?: \((\w+)\))?", text)
    assert len(named) >= 6 and set(named) == judges


def test_the_page_of_evaluations_has_every_one_marked_where_less_is_better():
    page = (ROOT / "docs" / "evaluations.md").read_text(encoding="utf-8")
    for evaluation in EVALUATIONS.values():
        column = evaluation.columns[0]
        mark = "" if column.higher_is_better else f" {LOWER}"
        assert f"| `{column.rate}`{mark} |" in page or (evaluation.name == "mt_bench" and "`mt_bench` is" in page)
        assert all(f"`eval.{key}`" in page for key in evaluation.keys), evaluation.name


@pytest.mark.parametrize("key", ["algorithm", "aggregator", "optimizer", "schedule"])
def test_the_page_of_algorithms_has_every_name_and_its_section(key):
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    schema = ExperimentConfig.model_json_schema()
    names = schema["$defs"]["FederatedConfig"]["properties"][key]["enum"]
    sections = {name for name in names if name in schema["properties"]}
    assert names and not [name for name in names if f"`{name}`" not in page]
    if key in ("algorithm", "aggregator"):
        rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
        told = {cells[0].strip("| `") for cells in rows if cells[-1].strip("| `") == cells[0].strip("| `")}
        assert {name for name in names if name in told} == sections


def test_the_citation_is_readable():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = citation["references"]
    assert citation["type"] == "software" and "2502.16691" in paper["url"]


def test_what_is_awaited_is_not_there():
    there = [name for name in AWAITED if any((ROOT / (name + end)).exists() for end in ("", ".py"))]
    assert not there, f"take these off AWAITED: {there}"
