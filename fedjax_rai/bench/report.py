"""What was measured, for a person and for a program: a table, lines of JSON, a folder with a picture."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai.bench.shapes import SHAPES
from fedjax_rai.bench.summary import OURS
from fedjax_rai.errors import InputError

GIB = 2**30
RESULTS = "results.jsonl"
TABLE = "table.txt"
PICTURE = "bench.png"
COMPUTED = {
    "dtype": None,
    "attention": "xla",
    "remat": "none",
    "unroll": "none",
    "quantize": "none",
    "kv_cache": "model",
    "micro_batch": None,
    "fsdp": 1,
    "tensor": 1,
}
"""What is said of how the model was computed, where it is not this."""
LEGEND = {
    "seconds": "the median of the runs that were timed",
    "spread": "between the slowest and the fastest, as a share of the median",
    "of products": "share of this machine's matrix products",
    "of copies": "share of its copies",
    "of floor": "share reached of what no program can be faster than here (docs/performance.md)",
    "compiling s": "what the first run took longer",
    "compiled, found": "programs that were compiled, and those found in the cache; again: while timed",
    "times the peer": "the peer's median seconds as a multiple of ours",
}
"""What the heads of the table mean, a line below it."""
WIDTH = 100
Row = Mapping[str, Any]


def check_output(folder: Path | None) -> None:
    """Raises InputError for a folder that holds results already, and for a file."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; must be a folder, new or without {RESULTS}")
    if (folder / RESULTS).exists():
        raise InputError(f"--output {folder}: holds {RESULTS} of an earlier measurement; must be another folder")


def add(folder: Path, row: Row) -> None:
    """Write a row behind the others, as soon as it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def finish(folder: Path, rows: Sequence[Row]) -> None:
    """Write the table and the picture of all rows."""
    (folder / TABLE).write_text(table(rows) + "\n", encoding="utf-8")
    draw(folder / PICTURE, rows)


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned columns, the sizes that they have in common above them, the machine below."""
    stated = [sizes(row) for row in rows]
    common = [part for part in stated[0] if all(part in parts for parts in stated)]
    cells = [_cells(row, common) for row in rows]
    shown = [name for name in cells[0] if any(row[name] for row in cells)]
    lines = [shown, *([row[name] for name in shown] for row in cells)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    words = shown.index("seconds")
    text = [_aligned(line, widths, words) for line in lines]
    limits = rows[0]
    machine = (
        f"{limits['device']}; products {limits['matmul_flops'] / 1e9:,.0f} GFLOP/s, copies "
        f"{limits['copy_bytes'] / 1e9:,.1f} GB/s (read and written); {'; '.join(_versions(rows))}"
    )
    meanings = [f"{name}: {LEGEND[name]}" for name in shown if name in LEGEND]
    legend = textwrap.wrap("; ".join(meanings), WIDTH, break_on_hyphens=False)
    return "\n".join([*filter(None, [", ".join(common)]), *text, *legend, machine])


def _aligned(cells: Sequence[str], widths: Sequence[int], words: int) -> str:
    """The first columns, so many, hold words and begin at the left; the others hold numbers and end at the right."""
    padded = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        padded.append(cell.ljust(width) if i < words else cell.rjust(width))
    return "  ".join(padded).rstrip()


def _versions(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["versions"] for row in rows))


def _cells(row: Row, common: Sequence[str]) -> dict[str, str]:
    """A row of the table, but for what all have in common; what is not known is empty."""
    ratios = [f"{name.removeprefix('ratio_to_')} {row[name]:.2f}" for name in row if name.startswith("ratio_to_")]
    return {
        "work": f"{row['work']}, {Path(row['model']).name}",
        "by": row["by"],
        "sizes": ", ".join(part for part in sizes(row) if part not in common),
        "seconds": f"{row['median_seconds']:.3g}",
        "steps": "" if row.get("steps") is None else f"{row['steps']:,}",
        "spread": "" if row["spread"] is None else f"{row['spread']:.0%}",
        "tokens/s": f"{row['tokens_per_second']:,.0f}",
        "of products": f"{row['share_of_matmul']:.2f}",
        "of copies": f"{row['share_of_copy']:.2f}",
        "of floor": f"{row['share_of_floor']:.2f}",
        "host GiB": _gib(row["host_memory"]),
        "device GiB": _gib(row["device_memory"]),
        "compiling s": f"{row['compile_seconds']:.1f}",
        "compiled, found": _programs(row),
        "times the peer": ", ".join(ratios),
    }


def sizes(row: Row) -> list[str]:
    """Sizes of the work, and how the model was computed, as words."""
    named = [f"{name} {row[name]}" for name in SHAPES[row["work"]]._fields if row[name] is not None]
    others = [f"{name} {row[name]}" for name, usual in COMPUTED.items() if row[name] != usual]
    devices = [f"devices {row['devices']}"] if row["devices"] > 1 else []
    return [*named, f"rank {row['rank']}", *others, *devices]


def _gib(held: int | None) -> str:
    return "" if held is None else f"{held / GIB:.2f}"


def _programs(row: Row) -> str:
    if row["compilations"] is None:
        return ""
    again = f", {row['recompilations']} again" if row["recompilations"] else ""
    return f"{row['compilations']}, {row['programs_found']}{again}"


def varied(rows: Sequence[Row]) -> list[str]:
    """What differs between the rows of what was asked for."""
    names = [
        name for name in ("model", *SHAPES[rows[0]["work"]]._fields, "rank", *COMPUTED, "devices") if name in rows[0]
    ]
    ours = [row for row in rows if row["by"] == OURS]
    return [name for name in names if len({row.get(name) for row in ours}) > 1]


def curves(rows: Sequence[Row]) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """What is varied, and (its value, tokens a second) for each of the others' values and each side, by a label.

    Of several things that are varied, the first that is a number. Without any, or where works differ, there is none.
    """
    if len({row["work"] for row in rows}) > 1:
        return "", {}
    names = varied(rows)
    numbers = [name for name in names if all(isinstance(row[name], int) for row in rows)]
    if not numbers:
        return "", {}
    along = numbers[0]
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        others = [f"{name} {row[name]}" for name in names if name != along]
        label = ", ".join([row["by"], *others])
        found.setdefault(label, []).append((row[along], row["tokens_per_second"]))
    return along, {label: sorted(points) for label, points in found.items()}


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Tokens a second, as curves along what is varied, else as a bar for each row; a PNG."""
    from fedjax_rai.runs.palette import COLOURS
    from fedjax_rai.runs.picture import figure

    along, found = curves(rows)
    made = figure(6.4, 3.6 if found else 1.2 + 0.4 * len(rows))
    axes = made.subplots()
    for i, (label, points) in enumerate(found.items()):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-", color=COLOURS[i % len(COLOURS)], label=label, markersize=4, linewidth=1)
    if found:
        axes.set_xlabel(along)
        axes.set_ylabel("tokens a second")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    else:
        labels = [f"{i + 1}: {row['work']}, {Path(row['model']).name}, {row['by']}" for i, row in enumerate(rows)]
        bars = axes.barh(labels, [row["tokens_per_second"] for row in rows], color=COLOURS[0], height=0.6)
        axes.bar_label(bars, [f"{row['tokens_per_second']:,.0f}" for row in rows], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlabel("tokens a second")
    axes.spines[["top", "right"]].set_visible(False)
    made.savefig(path)
