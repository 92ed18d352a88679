"""What `import fedjax_rai as rai` offers: runs, tables and sweeps from Python, with values of the user's own.

What computes is imported when it is asked for, so that loading a config needs no jax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fedjax_rai import terminal
from fedjax_rai.config import grid, load
from fedjax_rai.config.names import attribute, given
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError, did_you_mean, did_you_mean_file

Source: TypeAlias = ExperimentConfig | str | Path | Mapping[str, Any]
"""A config: loaded, a YAML file, or a mapping like what such a file holds."""
VALUES = {
    "algorithm": "federated.algorithm",
    "aggregator": "federated.aggregator",
    "optimizer": "federated.optimizer",
    "schedule": "federated.schedule",
    "weight": "federated.weight",
    "columns": "data.columns",
    "partition": "data.partition",
    "evasion": "data.evasion",
    "guard": "guard.scorer",
    "constitution": "cai.constitution",
    "method": "cai.method",
    "preference": "cai.preference",
    "judge": "eval.judge",
    "rater": "eval.rater",
    "guard_form": "guard.form",
    "tracker": "tracker",
}
"""The key of the config that each value of the user's own stands for."""
EVALUATED = ("judge", "rater", "guard", "guard_form")
"""Those of them that an evaluation of its own reads."""


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its folder, of which everything else is read when it is asked for."""

    folder: Path

    @property
    def config(self) -> ExperimentConfig:
        """The resolved config."""
        return load.load_config(self.folder / "config.yaml")

    @property
    def finished(self) -> bool:
        """Whether the run has been evaluated."""
        return (self.folder / "summary.json").is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """Rates, guard, filter, costs and seconds, as in `summary.json` (docs/run_folder.md).

        Raises InputError for a run that is not finished.
        """
        from fedjax_rai.runs import files

        self._must_be_finished()
        return files.read_object(self.folder / "summary.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row for each round so far, as in `metrics.jsonl` (docs/run_folder.md)."""
        from fedjax_rai.runs import files

        return files.read_rows(self.folder / "metrics.jsonl")

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The answers of the evaluation, a row for each prompt, as in `answers.jsonl`; none of an unfinished run."""
        from fedjax_rai.runs import files

        return files.read_rows(self.folder / "answers.jsonl")

    @property
    def adapter(self) -> Any:
        """The global LoRA adapter after the last round, a pytree of float32 arrays on the default device.

        Raises InputError for a run that is not finished.
        """
        from fedjax_rai.model.families import read_config
        from fedjax_rai.model.peft import load_adapter
        from fedjax_rai.runs.folder import pinned
        from fedjax_rai.text.hub import resolve

        self._must_be_finished()
        model = pinned(self.folder, self.config).model
        shape = read_config(resolve(model.path, model.revision), dtype=model.dtype)
        return load_adapter(self.folder / "adapter", shape)[1]

    def __repr__(self) -> str:
        rounds = f"{len(self.metrics)} rounds"
        if not self.finished:
            return f"Run('{self.folder}': {rounds}, unfinished)"
        rates = [_shown(name, rate) for name, rate in self.summary["rates"].items() if rate and name in SHOWN]
        return f"Run('{self.folder}': {', '.join([rounds, *rates])})"

    def _must_be_finished(self) -> None:
        if not self.finished:
            raise InputError(f"{self.folder}: this run is not finished; give its config to `run` once more to go on")


SHOWN = ("harmless", "utility")


def _shown(name: str, rate: Mapping[str, Any]) -> str:
    """A rate in short; the harmless one with its judge."""
    judge = f" (by {rate['judge']})" if name == "harmless" and rate.get("judge") else ""
    return f"{name}{judge} {rate['mean']:.1f}"


@dataclass(frozen=True)
class Table:
    """A table of arms: its folder, and its runs by (arm, seed)."""

    folder: Path

    @property
    def runs(self) -> dict[tuple[str, int], Run]:
        """The finished runs, seed by seed."""
        found = {}
        for folder in sorted(self.folder.glob("seed*/*/summary.json")):
            seed = int(folder.parent.parent.name.removeprefix("seed"))
            found[folder.parent.name, seed] = Run(folder.parent)
        return dict(sorted(found.items(), key=lambda item: item[0][1]))

    @property
    def text(self) -> str:
        """The table in Markdown, with intervals and paired differences."""
        return (self.folder / "table.md").read_text(encoding="utf-8")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each arm, seed and rate, as in `table.csv`."""
        return _read_csv(self.folder / "table.csv")

    def __repr__(self) -> str:
        return f"Table('{self.folder}': {len(self.runs)} runs)"


@dataclass(frozen=True)
class Sweep:
    """A sweep: its folder, and its runs by the name of each point."""

    folder: Path

    @property
    def runs(self) -> dict[str, Run]:
        """The finished runs, by names like `cai.iterations=10,seed=0`."""
        return {path.parent.name: Run(path.parent) for path in sorted(self.folder.glob("*/summary.json"))}

    @property
    def text(self) -> str:
        """The table in Markdown, with intervals, costs and paired differences."""
        return (self.folder / "sweep.md").read_text(encoding="utf-8")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each point and number, as in `sweep.csv`."""
        return _read_csv(self.folder / "sweep.csv")

    def __repr__(self) -> str:
        return f"Sweep('{self.folder}': {len(self.runs)} runs)"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run, an adapter or a model in its folder, of which everything is read when it is asked for."""

    folder: Path

    @property
    def config(self) -> ExperimentConfig:
        """The resolved config."""
        return load.load_config(self.folder / "config.yaml")

    @property
    def rates(self) -> dict[str, Any]:
        """The rates by name, as in `eval.json`; None: not measured."""
        from fedjax_rai.runs import files

        return files.read_object(self.folder / "eval.json")

    @property
    def answers(self) -> list[dict[str, Any]]:
        """A row for each prompt, as in `answers.jsonl`."""
        from fedjax_rai.runs import files

        return files.read_rows(self.folder / "answers.jsonl")

    @property
    def record(self) -> dict[str, Any]:
        """What was evaluated and by which versions, as in `evaluation.json`."""
        from fedjax_rai.runs import files

        return files.read_object(self.folder / "evaluation.json")

    def __repr__(self) -> str:
        return f"Evaluation('{self.folder}': {len(self.rates)} rates)"


def load_config(source: Source, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The config in a YAML file, or of a mapping of the same form; `key.path=value` overrides are applied in order.

    What is not named is the default. Raises InputError, which lists every problem.
    """
    return _load(source, overrides, "runs/{stem}", None)


def run(config: Source, output: str | Path | None = None, **values: Any) -> Run:
    """The run of a config, finished: started, resumed, or found done in its folder, which is `output` if given.

    Values of the user's own (`VALUES`), each what docs/api.md says: `algorithm`, `aggregator`, `optimizer`, `schedule`,
    `weight`, `columns`, `partition`, `evasion`, `guard`, `guard_form`, `constitution`, `method`, `preference`, `judge`,
    `rater`, `tracker`. A run that began with another value is refused. Raises InputError for what is wrong with config,
    files or values.
    """
    terminal.quiet_libraries()
    from fedjax_rai.runs import run as runs

    return Run(runs.run(with_values(_load(config, (), "runs/{stem}", output), values)))


def table(
    config: Source,
    arms: Sequence[str] | None = None,
    seeds: int = 1,
    output: str | Path | None = None,
    **values: Any,
) -> Table:
    """The paper's table: every arm (the paper's if none are named) with `seeds` seeds; written, printed and returned.

    Values are those of `run`, in every arm. Finished runs are kept. Raises InputError as `run` does, and for an unknown
    arm.
    """
    terminal.quiet_libraries()
    from fedjax_rai.studies.table import run_table

    return Table(run_table(with_values(_load(config, (), "runs/{stem}-table", output), values), arms, seeds))


def sweep(
    config: Source,
    swept: Mapping[str, Sequence[Any]],
    together: bool = False,
    output: str | Path | None = None,
    **values: Any,
) -> Sweep:
    """A run for every combination of some keys' values, `{"cai.iterations": [0, 10]}`; written, printed and returned.

    `together`: points that differ in numbers alone are one vmapped axis, as memory allows. Values are those of `run`,
    in every point; a key may also be swept over such values. Raises InputError as `run` does, and for keys that are not
    swept over at least one value.
    """
    terminal.quiet_libraries()
    from fedjax_rai.studies.sweep import run_sweep

    def point(overrides: Sequence[str]) -> ExperimentConfig:
        return with_values(_load(config, overrides, "runs/{stem}-sweep", output), values)

    texts = {key: _texts(key, each) for key, each in swept.items()}
    return Sweep(run_sweep(grid.combine(point, texts), together))


def evaluate(
    target: str | Path,
    overrides: Sequence[str] = (),
    config: str | Path | None = None,
    output: str | Path | None = None,
    **values: Any,
) -> Evaluation:
    """The evaluation of a run, an adapter or a model by overrides like `eval.samples=1`: made, or found in its folder.

    `target` is what the command takes; `config` a YAML file that a model or an adapter is evaluated by. Values are
    those of `run` that an evaluation reads: `judge`, `rater`, `guard`, `guard_form`. Raises InputError for what is
    wrong with any of them.
    """
    terminal.quiet_libraries()
    from fedjax_rai.tools import evaluate as evaluations

    named = None if config is None else Path(config)
    asked = evaluations.request(str(target), overrides, named)
    if unread := [name for name in values if name not in EVALUATED]:
        near = did_you_mean(unread[0], EVALUATED)
        raise InputError(f"{unread[0]}: no evaluation reads it; must be one of {', '.join(EVALUATED)}{near}")
    asked = asked._replace(config=with_values(asked.config, values))
    if output is not None:
        asked = asked._replace(output=Path(output))
    return Evaluation(evaluations.evaluate(asked))


def generate(
    model: str | Path, prompts: Sequence[str], adapter: str | Path | None = None, **settings: Any
) -> list[str]:
    """An answer to each prompt by a model, or by a model and an adapter (a folder in PEFT's format, as a run's is).

    `model`: a Hugging Face folder, owner/name on the hub, or "tiny". Settings are those of the command, by default
    greedy: `max_new`, `temperature`, `top_p`, `top_k`, `min_p`, `seed`, `dtype`, `revision`, `raw`, `merged`,
    `batch_size`.
    Raises InputError for a model, an adapter or a prompt that cannot be read.
    """
    if isinstance(prompts, str):
        raise InputError("prompts: must be a list of texts, not one text")
    terminal.quiet_libraries()
    from fedjax_rai.tools.generate import Request, answers, prompts_of_texts

    known = [name for name in Request._fields if name not in ("model", "adapter")]
    if unknown := [name for name in settings if name not in known]:
        near = did_you_mean(unknown[0], known)
        raise InputError(f"{unknown[0]}: no such setting; must be one of {', '.join(known)}{near}")
    request = Request(str(model), adapter=None if adapter is None else Path(adapter), **settings)
    found = answers(request, prompts_of_texts(prompts, "prompts"))
    return [answer.text or "" for answer in found]


def open_run(folder: str | Path) -> Run:
    """The run in a folder. Raises InputError where there is none."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        near = did_you_mean_file(folder, inside=["config.yaml"])
        raise InputError(f"{folder}: no run there (it holds no config.yaml){near}")
    return Run(folder)


def with_values(config: ExperimentConfig, values: Mapping[str, Any]) -> ExperimentConfig:
    """The config that names these values of the user's own (`VALUES`); what is a text already is a name.

    Raises InputError for a value that is not what its key takes.
    """
    fields = config.model_dump()
    for name, value in values.items():
        if name not in VALUES:
            near = did_you_mean(name, VALUES)
            raise InputError(f"{name}: no such value; must be one of {', '.join(VALUES)}{near}")
        section, _, key = VALUES[name].rpartition(".")
        (fields[section] if section else fields)[key] = _checked(name, value)
    return load.load_config(fields) if values else config


def _texts(key: str, each: Any) -> list[str]:
    """The values of a swept key as they would be written in overrides."""
    if isinstance(each, str) or not isinstance(each, Sequence):
        raise InputError(f"{key} = {each!r}: must be a list of values to sweep over")
    return [grid.as_text(_named(value)) for value in each]


def _checked(name: str, value: Any) -> str:
    text = _named(value)
    if text is not value:
        attribute(text, name, _constitution() if name == "constitution" else None)
    return text


def _constitution() -> type:
    from fedjax_rai.cai.constitution import Constitution

    return Constitution


def _named(value: Any) -> Any:
    """A function, or another value that YAML cannot write, as a name for it."""
    plain = value is None or isinstance(value, str | int | float | bool | list | dict)
    return value if plain else given(value)


def _load(source: Source, overrides: Sequence[str], default: str, output: str | Path | None) -> ExperimentConfig:
    """The config of a source, with another output if one is given; `default` where none is named, {stem} its name."""
    if isinstance(source, ExperimentConfig):
        fields = source.model_dump()
        if "output" not in source.model_fields_set:
            stem = Path(source.output or "run").name
            default = default.format(stem=stem.replace("{", "{{").replace("}", "}}"))
            fields["output"] = None
        source = fields
    config = load.load_config(source if isinstance(source, Mapping) else Path(source), overrides, default)
    return config if output is None else config.model_copy(update={"output": str(output)})


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows by column, numbers as numbers."""
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return [{column: _number(text) for column, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
