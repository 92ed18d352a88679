"""What is declared is used, and what is used is declared: nobody installs what nothing imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What a distribution is imported as, where that is not its own name.
IMPORTED_AS = {
    "orbax-checkpoint": ("orbax",),
    "huggingface-hub": ("huggingface_hub",),
    "tensorflow-datasets": ("tensorflow_datasets",),
    "pydantic": ("pydantic", "pydantic_core"),
    "pyyaml": ("yaml",),
    "myst-parser": ("myst_parser",),
    "tensorboardx": ("tensorboardX",),
}
# Programs that are called by these words; what pytest and jax load by themselves.
CALLED = {
    "ruff": ("Makefile", "/ruff check"),
    "basedpyright": ("Makefile", "/basedpyright"),
    "sphinx": ("Makefile", "-m sphinx"),
    "pytest-xdist": ("Makefile", "-n 2"),
    "beartype": ("tests/conftest.py", '"beartype.beartype"'),
    "myst-parser": ("docs/conf.py", '"myst_parser"'),
}


def distribution(requirement: str) -> str:
    """The name in a requirement."""
    return re.split(r"[\[<>=!;\s]", requirement, maxsplit=1)[0].lower()


@cache  # to parse the package takes two seconds, and every requirement asks
def imported(folder: str) -> frozenset[str]:
    """The top-level packages that the code in a folder imports, or skips a test for want of."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        found |= {name.split(".")[0] for name in imports(path)}
    return frozenset(found - {*sys.stdlib_module_names, "fedjax_rai", "tests"})


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and "importorskip" in ast.unparse(node.func):
            yield from (str(word.value) for word in node.args if isinstance(word, ast.Constant))


def names(requirement: str) -> tuple[str, ...]:
    """What a requirement is imported as."""
    return IMPORTED_AS.get(distribution(requirement), (distribution(requirement),))


# What transformers needs for chat templates, and does not require.
NEEDED = {"jinja2": ("fedjax_rai/text/tokenizer.py", "apply_chat_template")}


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_is_imported_by_the_package(requirement: str) -> None:
    if distribution(requirement) in NEEDED:
        file, words = NEEDED[distribution(requirement)]
        assert words in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert {*names(requirement)} & imported("fedjax_rai")


def test_everything_that_the_package_imports_is_declared() -> None:
    declared = {name for requirement in PROJECT["dependencies"] for name in names(requirement)}
    optional = {
        name for requirement in (*EXTRAS["parity"], *EXTRAS["gguf"], *EXTRAS["eval"]) for name in names(requirement)
    }
    # Flower's simulation and vLLM are measured in environments of their own: neither can have all that we need
    assert imported("fedjax_rai") - declared - {"jaxlib", "flwr", "vllm"} - optional == set()


def test_what_an_extra_brings_is_imported_where_it_is_used() -> None:
    """Never at the top of a module, which would then fail to import without the extra."""
    optional = {
        name for requirement in (*EXTRAS["parity"], *EXTRAS["gguf"], *EXTRAS["eval"]) for name in names(requirement)
    }
    for path in (ROOT / "fedjax_rai").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        at_top = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
        assert not at_top & optional, path


@pytest.mark.parametrize(
    ("extra", "requirement"), [(extra, each) for extra, listed in EXTRAS.items() for each in listed]
)
def test_every_extra_is_used(extra: str, requirement: str) -> None:
    name = distribution(requirement)
    if name in ("jax", "fedjax-rai"):  # another build of a dependency, or another extra
        assert "[" in requirement
    elif name in CALLED:
        file, words = CALLED[name]
        assert words in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert {*names(requirement)} & imported("tests")


def test_everything_that_tests_import_is_declared() -> None:
    extras = [*EXTRAS["test"], *EXTRAS["parity"], *EXTRAS["gguf"], *EXTRAS["eval"], *EXTRAS["track"]]
    listed = [*PROJECT["dependencies"], *extras]
    declared = {name for requirement in listed for name in names(requirement)}
    assert imported("tests") - declared - {"ml_dtypes"} == set()  # of jax


SLOW_TO_LOAD = {"datasets", "huggingface_hub", "matplotlib", "orbax", "pandas", "tokenizers", "torch", "transformers"}


def test_what_takes_long_to_load_is_loaded_by_what_needs_it():
    """Inside of functions: a run reaches its first step sooner, and a command that needs none of it loads none."""
    found = []
    for path in sorted((ROOT / "fedjax_rai").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{path.name}: {name}" for name in names if name.partition(".")[0] in SLOW_TO_LOAD]
    assert not found
