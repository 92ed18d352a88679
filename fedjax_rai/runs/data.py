"""What a run says of its data before its first step: lines, `data.json` and the picture of it."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.config.schema import FilterConfig
from fedjax_rai.data.columns import shown_category
from fedjax_rai.data.summary import Client, Clients, Cut, DataFile, DataSummary, Spread
from fedjax_rai.experiment.data_summary import describe
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import DATA, run_folder
from fedjax_rai.runs.palette import COLOURS
from fedjax_rai.runs.picture import figure
from fedjax_rai.runs.rows import read_data

PICTURE = "data.png"
WIDTH = 100
LISTED = 20
"""Clients that are listed one by one; of more the spread is told."""
PAIRED = ("clients", "guard", "server", "evaluation")
_told: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # texts, which arms share -> what was said of them


def announce(setting: Setting) -> None:
    """Say what an arm has of its data, before anything is fitted, scored or written.

    What was said of the same texts for another arm is not said again.
    """
    described = describe(setting)
    known = _told.get(setting.texts, set())
    for line in data_lines(described.summary):
        if line not in known:
            terminal.say(line)
            _told.setdefault(setting.texts, set()).add(line)
    if not setting.config.filter.enabled:
        _say_once(setting, client_lines(described))


def keep(federation: Federation) -> None:
    """Write what an arm has of its data into its run folder (`draw_data` draws it), and say what its filter left."""
    setting = federation.setting
    filtered = setting.config.filter.enabled
    described = describe(setting, federation.kept if filtered else None, federation.filtered)
    if filtered:
        _say_once(setting, client_lines(described))
        _say_once(setting, unscored_lines(federation.filtered.unscored, setting.config.filter))
    folder = run_folder(setting.config)
    files.write_json(folder / DATA, described)


def unscored_lines(unscored: int, filtering: FilterConfig) -> Iterator[str]:
    """What became of pairs without a verdict; nothing where there is none."""
    if unscored:
        drops = filtering.action != "keep" and filtering.no_verdict == "drop"
        what = f"{terminal.plural(unscored, 'pair')} without a score {'dropped' if drops else 'kept'}"
        yield f"  filter: {what} (filter.no_verdict = {filtering.no_verdict}, filter.action = {filtering.action})"


def _say_once(setting: Setting, block: Iterator[str]) -> None:
    """Say lines that belong together, unless all of them were said of the same texts."""
    text = "\n".join(block)
    if text and text not in _told.get(setting.texts, set()):
        terminal.say(text)
        _told.setdefault(setting.texts, set()).add(text)


def lines(described: DataFile) -> Iterator[str]:
    """All that is said of the data, in lines of at most 100 characters."""
    yield from data_lines(described.summary)
    yield from client_lines(described)


def data_lines(summary: DataSummary) -> Iterator[str]:
    """What is said of sources, parts and limits."""
    yield from source_lines(summary)
    yield from part_lines(summary)
    if summary.evaded:
        unchanged = f", {summary.not_evaded:,} of which it leaves as they are" if summary.not_evaded else ""
        answers = terminal.plural(summary.evaded, "harmful answer")
        yield from filled(f"evasion: {answers} of clients rewritten before the filter{unchanged}")
    for short in summary.less:
        yield f"  less than asked for: {short.key} = {short.asked:,}, but there are {short.there:,}"
    yield from filled(cut_text(summary))


def source_lines(summary: DataSummary) -> Iterator[str]:
    """What was read."""
    if not summary.sources:
        yield "data: made by the synthetic tiny world"
    for path, read in summary.sources.items():
        if read.synthetic:
            yield from filled(f"data: {path}: {read.pairs:,} pairs made by the synthetic tiny world", "")
            continue
        counts = f"{read.refused:,} refused, {read.duplicates:,} duplicate, {read.unlabelled:,} unlabelled"
        yield from filled(f"data: {path}: {read.rows:,} rows, {read.pairs:,} pairs by {read.columns}; {counts}", "")


def part_lines(summary: DataSummary) -> Iterator[str]:
    """A line for each part that has pairs, and one for all prompts."""
    asked = []
    for name, part in summary.parts.items():
        left_out = [f"{count:,} left out by {key}" for key, count in part.left_out.items()]
        if name not in PAIRED:
            if part.used or left_out:
                asked.append(", ".join([f"{name} {part.used:,}", *left_out]))
            continue
        labels = f"{percent(part.harmful or 0, part.used - (part.unlabelled or 0))} harmful"
        if part.unlabelled:
            labels += f", {part.unlabelled:,} unlabelled"
        yield from filled("; ".join([f"{name}: {terminal.plural(part.used, 'pair')}, {labels}", *left_out]))
    yield from filled(f"prompts: {'; '.join(asked)}")


def cut_text(summary: DataSummary) -> str:
    """What is cut at `data.max_length`."""
    found = [f"{part.cut:,} of {part.texts:,} {by_most(name, part)}" for name, part in summary.cut.items() if part.cut]
    at = f"at data.max_length = {summary.max_length}"
    if not found:
        return f"nothing is cut {at}"
    without = ""
    if summary.without_answer:
        without = f"; {terminal.plural(summary.without_answer, 'example')} without an answer token left"
    return f"cut {at}: {', '.join(found)}{without}"


def by_most(name: str, part: Cut) -> str:
    """The texts of a kind, and by how much they are cut."""
    return f"{name} (by {part.tokens / part.cut:.0f} tokens in the mean, at most {part.most:,})"


def client_lines(described: DataFile) -> Iterator[str]:
    """What the clients hold: all of them in a line or two, and up to 20 one by one."""
    clients = described.summary.clients
    shares = f", harmful {in_percent(clients.harmful_share)}" if clients.harmful_share else ""
    yield from filled(f"{terminal.plural(clients.clients, 'client')} of {in_words(clients.pairs)} pairs{shares}")
    if clients.kept is not None and clients.kept_pairs is not None:
        labelled = clients.kept - (clients.kept_unlabelled or 0)
        left = f"; {percent(clients.kept_harmful or 0, labelled)} of the kept are harmful" if labelled else ""
        if clients.kept_unlabelled:
            left += f", {clients.kept_unlabelled:,} unlabelled"
        filtered = (
            f"filter: {clients.kept:,} kept, {clients.dropped:,} dropped; of a client {in_words(clients.kept_pairs)}"
        )
        refused = (
            f"; a refusal stands in {terminal.plural(clients.replaced, 'pair')} of these" if clients.replaced else ""
        )
        yield from filled(f"{filtered} kept{left}{refused}")
    if clients.without_data:
        yield from filled(f"NOTHING TO TRAIN ON at {without_data(clients)}")
    if len(described.clients) <= LISTED:
        yield from client_table(described.clients)


def without_data(clients: Clients) -> str:
    """How many clients have nothing to train on, by the reason."""
    reasons = {
        "hold no pair": clients.without_pairs,
        "kept none by the filter": clients.without_kept,
        "have no answer token left at data.max_length": clients.without_answers,
    }
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f"{clients.without_data} of {clients.clients} clients: {listed}"


def client_table(clients: Sequence[Client]) -> Iterator[str]:
    """A line for each client."""
    filtered = any(client.kept is not None for client in clients)
    yield (
        f"  {'client':>6} {'pairs':>7} {'harmful':>9}"
        + (f" {'kept':>7} {'dropped':>7}" if filtered else "")
        + "  most of"
    )
    for i, client in enumerate(clients):
        share = percent(client.harmful, client.pairs - client.unlabelled)
        kept = f" {client.kept:>7,} {client.pairs - (client.kept or 0):>7,}" if client.kept is not None else ""
        most = f"{shown_category(client.category)} ({client.of_category:,})" if client.category is not None else "-"
        yield f"  {i:>6} {client.pairs:>7,} {share:>9}{kept}  {most}"[:WIDTH]


def percent(count: int, of: int) -> str:
    """A share in percent; "-" of nothing."""
    return f"{100 * count / of:.1f} %" if of else "-"


def in_words(spread: Spread) -> str:
    """A spread of whole numbers: one number, or from the least to the greatest."""
    if spread.low == spread.high:
        return f"{spread.low:,.0f}"
    return f"{spread.low:,.0f} to {spread.high:,.0f} (median {spread.median:,g})"


def in_percent(spread: Spread) -> str:
    """A spread of shares, in percent."""
    if spread.low == spread.high:
        return f"{100 * spread.low:.1f} %"
    return f"{100 * spread.low:.1f} to {100 * spread.high:.1f} % (median {100 * spread.median:.1f})"


def filled(text: str, indent: str = "  ") -> list[str]:
    """A text in lines of at most 100 characters, further ones deeper."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def draw_data(folder: Path) -> None:
    """Write data.png into a run folder: the parts, the clients and what is cut, as data.json has them."""
    described = read_data(folder / DATA)
    made = figure(12.0, 3.2)
    parts, clients, cut = made.subplots(1, 3)
    draw_parts(parts, described.summary)
    draw_clients(clients, described.clients)
    draw_cut(cut, described.summary)
    for axes in (parts, clients, cut):
        axes.spines[["top", "right"]].set_visible(False)
    made.suptitle(f"data of {folder.name}{synthetic_words(described.summary)}", fontsize=10)
    made.savefig(folder / PICTURE)


def synthetic_words(summary: DataSummary) -> str:
    """What a picture's title adds where the tiny world made pairs."""
    if not summary.sources:
        return ", synthetic tiny world"
    return ", synthetic tiny world in part" if any(read.synthetic for read in summary.sources.values()) else ""


def draw_parts(axes: Any, summary: DataSummary) -> None:
    """A bar for each part that has pairs: harmful, others, left out."""
    found = {name: part for name, part in summary.parts.items() if name in PAIRED}
    names = list(found)
    harmful = np.array([part.harmful or 0 for part in found.values()])
    others = np.array([part.used for part in found.values()]) - harmful
    left_out = np.array([sum(part.left_out.values()) for part in found.values()])
    axes.barh(names, harmful, color=COLOURS[1], height=0.6, label="harmful")
    axes.barh(names, others, left=harmful, color=COLOURS[0], height=0.6, label="other")
    axes.barh(names, left_out, left=harmful + others, color="#cccccc", height=0.6, label="left out")
    axes.invert_yaxis()
    axes.set_xlabel("pairs")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)


def draw_clients(axes: Any, clients: Sequence[Client]) -> None:
    """The pairs of every client, harmful and others; what its filter kept is a line across."""
    places = np.arange(len(clients))
    harmful = np.array([client.harmful for client in clients])
    others = np.array([client.pairs for client in clients]) - harmful
    axes.bar(places, harmful, width=0.8, color=COLOURS[1])
    axes.bar(places, others, width=0.8, bottom=harmful, color=COLOURS[0])
    kept = [client.kept for client in clients if client.kept is not None]
    if len(kept) == len(clients):
        axes.plot(places, kept, "_", color=COLOURS[6], label="kept by the filter")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    axes.set_xlabel("client")
    axes.set_ylabel("pairs")
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_cut(axes: Any, summary: DataSummary) -> None:
    """The share of the texts of each kind that is cut."""
    names = list(summary.cut)
    shares = [100 * part.cut / part.texts for part in summary.cut.values()]
    bars = axes.barh(names, shares, color=COLOURS[0], height=0.6)
    counts = [f"{part.cut:,} of {part.texts:,}" for part in summary.cut.values()]
    axes.bar_label(bars, counts, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 130)
    axes.set_xlabel(f"percent cut at {summary.max_length} tokens")
