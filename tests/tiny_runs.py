"""What the tests of runs share."""

from pathlib import Path
from typing import Any

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.setting import Setting, views
from fedjax_rai.runs import files


def vary(config: ExperimentConfig, suffix: str = "", **fields: Any) -> ExperimentConfig:
    """The config with other values: of a section's keys, or of a field; the suffix is added to its `output`."""
    given = config.model_dump()
    for name, value in fields.items():
        given[name] = given[name] | value if isinstance(value, dict) else value
    if suffix:
        given["output"] += suffix
    return ExperimentConfig.model_validate(given)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """A run's rows of metrics without the seconds, which no two runs share."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in files.read_rows(folder / "metrics.jsonl")]


class Arms:
    """Settings of configs, each with the parts that it shares with one made before."""

    def __init__(self):
        self.made: list[Setting] = []

    def __call__(self, config: ExperimentConfig, *_: Any) -> Setting:
        wanted = views(config)

        def alike(setting: Setting) -> int:
            return sum(wanted[name] == view for name, view in setting._views.items())

        setting = Setting(config, max(self.made, key=alike, default=None))
        self.made.append(setting)
        return setting
