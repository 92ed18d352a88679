"""The staircase: a module imports from floors below its own, or from its own folder, which holds no circle."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fedjax_rai"
# One line a floor, lowest first; `folder: modules`. Modules without a folder are listed under the package itself.
FLOORS = (
    {"": "aliases errors terminal reading rng trees mesh xla yaml_lines"},
    {"config": "client_names column_names files grid keys load names prepared schema threshold_rule views"},
    {
        "text": "compare generation gguf_tokenizer hub prompts tokenizer",
        "model": "architecture attention cache decoder families gguf lora peft quantize weights",
    },
    {
        "data": "columns corpus download examples files mix order packing partition prompts records roles sources "
        "square summary tiny_lexicon tiny_world turns"
    },
    {"train": "dispatch generate losses optimizers queue speaker step"},
    {
        "fed": "aggregate algorithm base client fedavg fedopt fedprox scaffold weights",
        "safety": "calibration evasion filter form form_file forms guard hardening measures released self_test",
        "cai": "align constitution options programs queued revise",
        "evals": "advbench agreement answering choice drift evaluation harm harmbench held_out hhh intervals judge "
        "korean mean_intervals means mt_bench open_ended panel perplexity published rate refusals rubric spoilt "
        "strongreject suite tasks user_sets xstest",
    },
    {"memory": "advice footprint layout measured plan"},
    {
        "experiment": "baseline cost data_summary endpoint evaluation filtering guard_fit guarding judging keeping "
        "layout materials models phase replay revising round setting sizes texts together"
    },
    {
        "runs": "beside checkpoint compiled conclude conversations data export files folder guards held inputs judges "
        "lockstep loop palette picture prepare record report rows run target trackers"
    },
    {
        "studies": "cells dry_run gathered judged panels plots report report_answers report_filter "
        "report_judges report_memory report_parts report_pictures results svg sweep table",
        "bench": "__main__ cli floors flower_peer loading machine measure peers prompts protocol random_inputs "
        "report requests shapes summary sweeping torch_peer trl_peer vllm_peer work",
        "tools": "batching config_reference detokenize evaluate generate guard_attack guard_eval guard_fit "
        "guard_pictures harness import_gguf openai_requests openai_responses prepare_corpus real_preparation "
        "run_folder_reference sampler serve show_data tiny_base",
    },
    {"": "api cli cli_data cli_eval cli_guard __main__"},
)
# What may know the whole config; everything else is handed the section, or the numbers, that it needs.
WHOLE_CONFIG = ("config", "memory", "experiment", "runs", "studies", "bench", "tools")
WHOLE_CONFIG += ("api", "cli", "cli_guard", "__main__")


def table() -> dict[str, int]:
    """The floor of every module that the table names."""
    floors = {}
    for floor, folders in enumerate(FLOORS):
        for folder, modules in folders.items():
            for module in modules.split():
                name = f"{folder}.{module}" if folder else module
                assert name not in floors, f"{name} stands twice"
                floors[name] = floor
    return floors


FLOOR = table()


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py") if path.name != "__init__.py")
    return sorted(".".join(path.parts) for path in paths)


def source(module: str) -> str:
    return (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")


def offered() -> set[str]:
    """The names that the package itself offers, each of which loads its front door."""
    for node in ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("fedjax_rai/__init__.py has no __all__")


OFFERED = offered()


def is_module(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()


def imports(text: str, module: str) -> Iterator[tuple[str, str]]:
    """(module, name taken from it) of every import of this package, wherever it stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name == "fedjax_rai" or (name.startswith("fedjax_rai.") and name.removeprefix("fedjax_rai.") in OFFERED):
                yield "api", name.rpartition(".")[2]  # the package itself offers what its front door does
                continue
            if not name.startswith("fedjax_rai."):
                continue
            name = name.removeprefix("fedjax_rai.")
            owner = name if is_module(name) else name.rpartition(".")[0]
            if owner:
                yield owner, name.rpartition(".")[2]


def folder(module: str) -> str:
    return module.rpartition(".")[0]


def wrong(module: str, text: str) -> list[str]:
    """What is wrong with a module's imports."""
    found = []
    for owner, name in imports(text, module):
        beside = folder(owner) == folder(module) and FLOOR[owner] == FLOOR[module]
        if not (FLOOR[owner] < FLOOR[module] or beside):
            found.append(f"{module} (floor {FLOOR[module]}) imports {owner} (floor {FLOOR[owner]})")
        if name == "ExperimentConfig" and module.split(".")[0] not in WHOLE_CONFIG:
            found.append(f"{module} knows the whole config")
    return found


def circle(texts: Mapping[str, str]) -> list[str]:
    """Modules that import each other, in order; none where nothing goes in a circle."""
    graph = {module: {owner for owner, _ in imports(text, module)} for module, text in texts.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_below(module: str) -> None:
    assert module in FLOOR, f"{module} has no floor: put it into the table"
    assert not wrong(module, source(module))


@pytest.mark.parametrize("module", FLOOR)
def test_every_module_of_the_table_exists(module: str) -> None:
    assert is_module(module)


def test_nothing_goes_in_a_circle() -> None:
    assert circle({module: source(module) for module in modules()}) == []
    assert circle({"rng": "from fedjax_rai import trees", "trees": "from fedjax_rai.rng import stream"})


@pytest.mark.parametrize("init", sorted(ROOT.glob("*/**/__init__.py")), ids=lambda path: path.parent.name)
def test_packages_import_nothing(init: Path) -> None:
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(init.read_text())))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("rng", "from fedjax_rai.config.load import load_config"),
        ("rng", "import fedjax_rai.config.schema"),
        ("rng", "def f():\n    from fedjax_rai.config import schema"),
        ("model.lora", "from fedjax_rai.data import examples"),
        ("model.lora", "from fedjax_rai.text import prompts"),
        ("model.lora", "import fedjax_rai as rai"),
        ("runs.run", "from fedjax_rai import run"),
        ("fed.client", "from fedjax_rai.config.schema import ExperimentConfig"),
    ],
)
def test_the_check_sees(module: str, text: str) -> None:
    assert wrong(module, text)
