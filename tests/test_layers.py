"""The layers of the package: a module imports from layers below its own, and within a layer only what is listed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fedjax_rai"
LAYERS = (
    "errors aliases trees rng",
    "config config_file mesh",
    "model.architecture model.attention model.decoder model.families model.lora model.peft model.quantize "
    "model.weights text.hub text.tokenizer text.prompts",
    "data.examples data.packing data.sources data.partition data.square_tfds data.tiny_lexicon data.tiny_world "
    "train.losses train.step train.generate",
    "fed.client fed.aggregate fed.algorithm fed.adversary safety.guard safety.filter "
    "cai.constitution cai.revise cai.align",
    "evals.open_ended evals.choice evals.judge",
    "run.round run.phase run.conversations run.record run.cost run.checkpoint run.log run.experiment run.table "
    "run.inputs run.sweep run.results run.prepare run.bench run.evaluation run.materials run.plots run.export "
    "run.footprint run.memory run.memory_plan run.playground run.setting run.tiny_base run.together",
    "cli __main__",
)
LAYER = {module: layer for layer, row in enumerate(LAYERS) for module in row.split()}
WITHIN = {
    "trees": "aliases",
    "rng": "aliases",
    "config_file": "config",
    "model.lora": "model.architecture model.quantize",
    "model.decoder": "model.architecture model.attention model.lora model.quantize",
    "model.families": "model.architecture",
    "model.weights": "model.architecture model.decoder model.families model.lora model.quantize",
    "model.peft": "model.architecture model.families model.lora model.weights",
    "text.tokenizer": "text.hub text.prompts",
    "data.tiny_world": "data.sources data.tiny_lexicon",
    "data.packing": "data.examples",
    "train.step": "data.examples train.losses",
    "fed.aggregate": "fed.client",
    "fed.algorithm": "fed.client fed.aggregate",
    "cai.revise": "cai.constitution",
    "evals.choice": "evals.open_ended",
    "run.setting": "run.inputs run.log run.materials",
    "run.phase": "run.inputs run.setting",
    "run.conversations": "run.phase run.setting",
    "run.cost": "run.inputs run.setting",
    "run.round": "run.evaluation run.phase run.setting",
    "run.record": "run.checkpoint run.conversations run.log run.round run.setting",
    "run.evaluation": "run.setting",
    "run.memory": "run.inputs run.log run.memory_plan run.setting",
    "run.memory_plan": "run.footprint",
    "run.experiment": "run.cost run.evaluation run.inputs run.log run.memory run.record run.round run.setting",
    "run.prepare": "run.conversations run.experiment run.inputs run.log run.memory run.phase run.setting",
    "run.results": "run.experiment",
    "run.plots": "run.results",
    "run.sweep": "run.experiment run.inputs run.log run.plots run.record run.results run.setting run.together",
    "run.bench": "run.round run.setting",
    "run.together": "run.experiment run.inputs run.log run.memory run.memory_plan run.phase run.record run.round "
    "run.setting",
    "run.export": "run.experiment run.inputs run.log",
    "run.playground": "run.log",
    "run.table": "run.experiment run.inputs run.log run.plots run.results run.setting",
    "__main__": "cli",
}
WHOLE_CONFIG = ("config_file", "run.", "cli")


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py") if path.name != "__init__.py")
    return sorted(".".join(path.parts) for path in paths)


def is_module(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()


def imports(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """(module, name taken from it) of every import of this package, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in (name.removeprefix("fedjax_rai.") for name in names if name.startswith("fedjax_rai.")):
            owner = name if is_module(name) else name.rpartition(".")[0]
            if owner:
                yield owner, name.rpartition(".")[2]


def wrong(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports."""
    found = []
    for owner, name in imports(ast.parse(source), module):
        same = LAYER[owner] == LAYER[module] and owner in WITHIN.get(module, "").split()
        if not (LAYER[owner] < LAYER[module] or same):
            found.append(f"{module} (layer {LAYER[module]}) imports {owner} (layer {LAYER[owner]})")
        if name == "ExperimentConfig" and not module.startswith(WHOLE_CONFIG):
            found.append(f"{module} knows the whole config")
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_below(module: str) -> None:
    assert module in LAYER, f"{module} has no layer: put it into the table"
    assert not wrong(module, (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))


def test_the_table_names_no_same_layer_import_that_is_an_upward_one() -> None:
    assert all(LAYER[module] == LAYER[owner] for module, row in WITHIN.items() for owner in row.split())


@pytest.mark.parametrize("init", sorted(ROOT.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_packages_import_nothing(init: Path) -> None:
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(init.read_text())))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rng", "from fedjax_rai.config import load_config"),
        ("rng", "import fedjax_rai.config"),
        ("rng", "def f():\n    from fedjax_rai import config"),
        ("model.lora", "from fedjax_rai.model import decoder"),
        ("errors", "from fedjax_rai.aliases import Array"),
        ("fed.client", "from fedjax_rai.config import ExperimentConfig"),
    ],
)
def test_the_check_sees(module: str, source: str) -> None:
    assert wrong(module, source)
