"""A report: one page in HTML that needs nothing else, of runs, tables and sweeps."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai import __version__
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.runs import files
from fedjax_rai.runs.palette import COLOURS, ON_DARK
from fedjax_rai.studies import report_filter, report_judges, report_memory, svg
from fedjax_rai.studies import report_parts as parts
from fedjax_rai.studies.gathered import gather
from fedjax_rai.studies.plots import draw_panel
from fedjax_rai.studies.report_answers import answer_sets
from fedjax_rai.studies.report_parts import Report, Section

TEMPLATE = "report.html"
SECTIONS = (
    parts.table,
    parts.rates,
    parts.compared,
    parts.rounds,
    parts.tradeoff,
    report_judges.judges,
    report_filter.guard,
    parts.data,
    parts.cai,
    parts.time,
    report_memory.memory,
    parts.config,
)


class Wanted(NamedTuple):
    """What a report is to be."""

    output: Path | None = None
    """The page; None: `report.html` in the first folder."""
    png: bool = False
    """Also write every picture, in the folder `<name>-pictures` beside the page."""
    margin: float | None = None
    """Points within which two arms count as equivalent, if the interval says so."""
    reference: str | None = None
    """The arm that others are compared with; None: the first."""
    answers: int = 20
    """The most prompts of an evaluation whose answers are shown."""


def write_report(paths: Sequence[Path], wanted: Wanted | None = None) -> list[Path]:
    """Write the page of these runs and studies, and pictures if wanted; returns the files.

    Raises InputError where there is no finished run, no arm of that name, or no place for the page.
    """
    wanted = wanted or Wanted()
    gathered = gather(paths)
    reference = wanted.reference
    labels = [arm.label for arm in gathered.arms]
    if reference is not None and reference not in labels:
        raise InputError(
            f"--reference {reference}: no such arm{did_you_mean(reference, labels)}; must be one of {', '.join(labels)}"
        )
    page = wanted.output or paths[0] / "report.html"
    if page.is_dir() or not page.parent.is_dir():
        wrong = "is a folder" if page.is_dir() else "its folder is not there"
        raise InputError(f"--output {page}: {wrong}; must be a file in a folder that is there")
    report = parts.report_of(gathered, wanted.margin, reference)
    sections = [make(report) for make in SECTIONS]
    files.write_text(page, html(report, sections, wanted.answers))
    return [page, *(_write_pictures(page, sections, parts.synthetic(report)) if wanted.png else [])]


def html(report: Report, sections: Sequence[Section], most_answers: int) -> str:
    """The page. Every text is escaped, so that what an answer holds is shown; only our own pictures are markup."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["picture"] = svg.draw
    environment.filters["swatch"] = svg.swatch
    source = (Path(str(resources.files("fedjax_rai"))) / "assets" / TEMPLATE).read_text(encoding="utf-8")
    runs = [run for arm in report.arms for run in arm.runs]
    values: dict[str, Any] = {
        "title": ", ".join(dict.fromkeys((run.study or run.folder).resolve().name for run in runs)),
        "synthetic": parts.synthetic(report),
        "sections": sections,
        "sets": answer_sets(report, most_answers),
        "colours": list(zip(COLOURS, ON_DARK, strict=True)),
        "version": __version__,
        "runs": [run.folder for run in runs],
    }
    return environment.from_string(source).render(values)


def _write_pictures(page: Path, sections: Sequence[Section], synthetic: bool) -> list[Path]:
    """Every panel as a PNG, in a folder of the page's name; numbered, as titles may be long, or the same."""
    folder = page.with_name(f"{page.stem}-pictures")
    folder.mkdir(exist_ok=True)
    written = []
    for section in sections:
        for i, panel in enumerate(section.panels, 1):
            path = folder / f"{section.anchor}-{i:02d}-{panel.name[:60]}.png"
            draw_panel(path, panel, synthetic)
            written.append(path)
    return written
