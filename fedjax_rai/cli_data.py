"""The commands of `fedjax-rai data`: prepare the corpus, and show what a source holds.

What they need is imported when they run. A command's parameters are its arguments and options.
"""

import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_rai import terminal
from fedjax_rai.config.prepared import CORPORA, language_of
from fedjax_rai.errors import InputError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

LANGUAGES = ("en", "ko")
USED_BY = {"square20k": "data.train", "questions": "cai.red_prompts"}


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(CORPORA)}.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder with SQuARe's files by their names, as response_train.json; one such file, "
            "which becomes the split train; or the URL of one.",
        ),
    ],
    checksum: Annotated[
        str | None,
        typer.Option(metavar="sha256:HEX", help="The hash that the file must have; a URL needs it."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where prepared sets lie; TFDS_DATA_DIR, or ~/tensorflow_datasets, if not given."
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Of too few pairs for the recipe, take as many as there are at 3 to 7."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Put the set in the place of another of its name.")
    ] = False,
) -> None:
    """Build the prepared corpus from SQuARe's official JSON.

    \b
    fedjax-rai data prepare square20k_en korean-safety-benchmarks/data/SQuARe
    fedjax-rai run CONFIG data.train=tfds:square/square20k_en
    """
    with terminal.answering():
        from fedjax_rai.tools import prepare_corpus

        asked = prepare_corpus.Preparation(name, source, data_dir, checksum, partial, overwrite)
        made = prepare_corpus.prepare(asked)
        typer.echo(prepare_corpus.report(made))
        _close(made)


@app.command()
def show(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Whatever data.train takes: a file, a folder, a name on the hub, tfds:NAME/CONFIG."
        ),
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The layout of its rows, or names of columns, as '{prompt: q, response: a}'; recognised if not given.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="A configuration of a set on the hub.")] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split to read.")] = "train",
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a set on the hub.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="en|ko", help="Which of SQuARe's languages; English if not given.")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="How many rows to show.")] = 3,
) -> None:
    """Show what a source holds: counts, labels, lengths and a few rows."""
    with terminal.answering():
        if language is not None and language not in LANGUAGES:
            raise InputError(f"--language {language}: must be one of {', '.join(LANGUAGES)}")
        from fedjax_rai.data.sources import Source
        from fedjax_rai.tools import show_data

        spoken = language or language_of(source) or LANGUAGES[0]
        layout = None if columns is None else _parse_columns(columns)
        asked = Source(source, name, split, revision, layout, spoken)  # pyright: ignore[reportArgumentType]
        for line in show_data.show(asked, rows, shutil.get_terminal_size().columns):
            typer.echo(line)


def _parse_columns(text: str) -> Any:
    """What `data.columns` would be; raises InputError."""
    from fedjax_rai.config.column_names import checked_columns
    from fedjax_rai.yaml_lines import parse_value

    try:
        return checked_columns(parse_value(text))
    except ValueError as error:
        raise InputError(f"--columns {text}: {error}") from None


def _close(made: str) -> None:
    """End by what to type next: show what was prepared and, where a key takes it, run with it."""
    commands = [[*terminal.program(), "data", "show", made]]
    key = USED_BY.get(made.rpartition("/")[2].rpartition("_")[0])
    if key is not None:
        language = language_of(made)
        spoken = [] if language == LANGUAGES[0] else [f"data.language={language}"]
        commands.append([*terminal.program(), "run", "CONFIG", f"{key}={made}", *spoken])
    terminal.say(f"next: {'; '.join(map(shlex.join, commands))}")
