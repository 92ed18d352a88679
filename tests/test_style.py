"""Rules of style that a parser can see: few parameters, plain words, one lambda a line."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fedjax_rai"
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
MOST = 6
PRONOUNS = {"own", "said", "talk", "lesson", "sayer", "refer", "converse", "teach"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer makes a command of it: each of its parameters is an option."""
    calls = [decorator.func for decorator in function.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr in ("command", "callback") for call in calls)


def crowded(tree: ast.AST) -> Iterator[str]:
    """Functions with too many parameters and no word on why; by position and by keyword alone counted apart."""
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        positional = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if positional[:1] in (["self"], ["cls"]):
            positional.pop(0)
        most = max(len(positional), len(node.args.kwonlyargs))
        docstring = ast.get_docstring(node) or ""
        explained = "parameters" in docstring or "arguments" in docstring
        if most > MOST and not explained and not is_command(node):
            yield f"{node.lineno}: {node.name} has {most} parameters and does not say why"


def bound_names(node: ast.AST) -> list[str]:
    """The names that a node binds."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.alias):
        return [node.asname or node.name.rpartition(".")[2]]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        return [node.name] if node.name else []
    return []


def pronouns(tree: ast.AST) -> Iterator[str]:
    """Names that say nothing, or that name what has a plain word."""
    for node in ast.walk(tree):
        for name in bound_names(node):
            if name in PRONOUNS:
                yield f"{getattr(node, 'lineno', 0)}: the name `{name}`"


def tuples_of_lambdas(tree: ast.AST) -> Iterator[str]:
    """Several assignments at once of which one is a lambda: two functions without a name of their own on a line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        if any(isinstance(element, ast.Lambda) for element in node.value.elts):
            yield f"{node.lineno}: a lambda among several values assigned at once"


def wrong(text: str) -> list[str]:
    """What is wrong with a module, by line."""
    tree = ast.parse(text)
    return [*crowded(tree), *pronouns(tree), *tuples_of_lambdas(tree)]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_the_rules(module: str) -> None:
    assert wrong((ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f(a, b, c, d, e, f, g): pass",
        "async def f(a, b, c, d, e, f, g): pass",
        "def f(*, a, b, c, d, e, f, g): pass",
        "class A:\n    def f(self, a, b, c, d, e, f, /, g): 'What it does.'",
        "@command\ndef f(a, b, c, d, e, f, g): pass",
        "own = 1",
        "x, own = 1, 2",
        "for own in []: pass",
        "x = [own for own in y]",
        "if said := x: pass",
        "def talk(): pass",
        "class refer: pass",
        "def f(lesson): pass",
        "x = lambda teach: 1",
        "x.said = 1",
        "class A:\n    said: int",
        "from x import talk",
        "from x import y as converse",
        "with x as sayer: pass",
        "try: pass\nexcept E as own: pass",
        "x, y = 1, lambda: 2",
    ],
)
def test_the_check_sees(text: str) -> None:
    assert len(wrong(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "def f(a, b, c, d, e, f): pass",
        "def f(a, b, c, d, e, f, *, g, h): pass",
        "class A:\n    def f(self, a, b, c, d, e, f): pass",
        "def f(a, b, c, d, e, f, g):\n    'Seven parameters: those of the formula.'",
        "@app.command()\ndef f(a, b, c, d, e, f, g): pass",
        "x = y.said + owned",
        "print(own)",
        "f = lambda: 1",
        "x = (1, f(lambda: 2))",
    ],
)
def test_the_check_lets_pass(text: str) -> None:
    assert wrong(text) == []
