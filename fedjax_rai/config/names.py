"""Values that a config names: a row of a table, or the user's own value as `package.module:attribute`."""

import dis
import functools
import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fedjax_rai.errors import InputError, did_you_mean

T = TypeVar("T")
FORM = "package.module:attribute"
GIVEN = "given"  # stands for the module where a value was handed over by the Python API and cannot be imported
_NAME = r"[^\W\d]\w*"
_ATTRIBUTE = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}(\.{_NAME})*")
_given: dict[str, Any] = {}  # by attribute


class Name:
    """Marks a key of the schema that takes one of `names`, or the user's own value as `package.module:attribute`.

    `Annotated[str, Name("fedavg", "scaffold")]`. What the names mean stands in a table; a test holds the two equal.
    `before`: words that may stand before a colon and any text, `guard` of `guard:PATH`; no module has such a name.
    """

    def __init__(self, *names: str, before: Mapping[str, str] | None = None):
        self.names = names
        self.before = dict(before or {})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        forms = " or ".join(f"{word}:{what}" for word, what in self.before.items())
        others = {"else": forms, "before": [*self.before]} if forms else {}
        return {**handler(schema), "enum": [*self.names], **TAKES_ATTRIBUTE, **others}

    def _check(self, value: str) -> str:
        word, _, text = value.partition(":")
        if word in self.before and text.strip():
            return value
        if value in self.names or (is_attribute(value) and word not in self.before):
            return value
        raise PydanticCustomError("name", "no such name")


TAKES_ATTRIBUTE: dict[str, Any] = {"attribute": FORM}
"""Marks, in a key's JSON schema, that it takes the user's own value besides."""


def is_attribute(value: str) -> bool:
    """Whether a text has the form `package.module:attribute`."""
    return _ATTRIBUTE.fullmatch(value) is not None


def look_up(table: Mapping[str, T], name: str, key: str, kind: type | None = None) -> T:
    """The row of that name, else the value at `package.module:attribute`; `key` is the config's, for messages.

    A value of the user's own must be of the `kind`, or where none is given, callable. Raises InputError for a name that
    is neither, and for what cannot be imported or is of another kind.
    """
    if name in table:
        return table[name]
    if is_attribute(name):
        return attribute(name, key, kind)
    known = ", ".join(table)
    raise InputError(f"{key} = {name!r}: must be one of {known}, or {FORM}{did_you_mean(name, table)}")


def attribute(name: str, key: str, kind: type | None = None) -> Any:
    """The value at `package.module:attribute`, of the `kind` or callable; raises InputError, which says what is wrong.

    The current directory is searched after all that is installed.
    """
    value = _imported(name, key)
    if kind is None and not callable(value):
        raise InputError(f"{key} = {name}: is {_kind(value)}; must be callable")
    if kind is not None and not isinstance(value, kind):
        raise InputError(f"{key} = {name}: is {_kind(value)}; must be of the type {kind.__name__}")
    return value


def fingerprint(name: str, key: str) -> str:
    """An attribute's name and the digest of the file that it is from, as a run notes it; of a given value, its source.

    Says so where there is no file and no source. Raises InputError as `attribute` does.
    """
    value = _imported(name, key)
    module = name.partition(":")[0]
    if module == GIVEN:
        text = source(value)
        return f"{name}, {_digest([text.encode()])}" if text else f"{name}, which has no source"
    files = {getattr(sys.modules[module], "__file__", None), _source_file(value)}
    paths = sorted(Path(file) for file in files if file)
    return f"{name}, {_digest(path.read_bytes() for path in paths)}" if paths else f"{name}, which is in no file"


def given(value: Any) -> str:
    """A name for a value: `module:qualname` where another process can import it, else a generated one.

    `look_up` finds the value by either. A generated name holds a part of the digest of the value's source, so that two
    values of one name are told apart, and is unknown to other processes until they are given the value, too. Raises
    InputError where another value has that name, and nothing shows that both are the same.
    """
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module and qualname and is_attribute(f"{module}:{qualname}") and _is_importable(module, qualname, value):
        return f"{module}:{qualname}"
    word = re.sub(r"\W+", "_", getattr(value, "__name__", type(value).__name__)).strip("_")
    text = source(value)
    attribute = f"{word}_{hashlib.sha256(text.encode()).hexdigest()[:8]}" if text else word
    taken = _given.get(attribute, value)
    if taken is not value and not (text and source(taken) == text and _program(taken) == _program(value)):
        raise InputError(
            f"{GIVEN}:{attribute}: another value of that name was given before, and their sources do not tell them "
            f"apart; must be put into a function of another name, or into a file and named as {FORM}"
        )
    _given[attribute] = value
    return f"{GIVEN}:{attribute}"


def _program(value: Any) -> Any:
    """What a function does, wherever it stands: tells two apart that are written on one line. None for other values."""
    code = value if isinstance(value, CodeType) else getattr(value, "__code__", None)
    if code is None:
        return None
    constants = [
        _program(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts
    ]
    return code.co_code, code.co_names, constants


def source(value: Any) -> str:
    """What a value is made of, as text: source of functions and classes, with what they closed over; data as they are.

    Of the globals that its functions read, numbers, texts and tuples of them count. Functions that it calls are not
    followed. Empty for what has no source.
    """
    return _text(value, 0)


def _imported(name: str, key: str) -> Any:
    module, _, qualname = name.partition(":")
    if module == GIVEN:
        if qualname in _given:
            return _given[qualname]
        raise InputError(
            f"{key} = {name}: a value that was given to the Python API in another process; give it again, or put it "
            f"into a file and name it as {FORM}"
        )
    value: Any = _module(module, f"{key} = {name}")
    at = module
    for part in qualname.split("."):
        if not hasattr(value, part):
            near = did_you_mean(part, dir(value))
            raise InputError(f"{key} = {name}: {at} has no {part}{near}")
        value = getattr(value, part)
        at = f"{at}.{part}" if ":" in at else f"{at}:{part}"
    return value


def _module(module: str, stated: str) -> ModuleType:
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # the file may be younger than what was seen of its folder
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise InputError(
                f"{stated}: there is no module {error.name}; must be {FORM}, installed or below the current directory"
            ) from None
        raise InputError(f"{stated}: importing it failed{_failed_at(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{stated}: importing it failed{_failed_at(error)}") from error


def _failed_at(error: BaseException) -> str:
    """` at file:line: error`, the innermost line of the user's or of what he called."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    beyond = [frame for frame in frames if frame.filename != __file__]
    return f" at {beyond[-1].filename}:{beyond[-1].lineno}: {message}" if beyond else f": {message}"


def _is_importable(module: str, qualname: str, value: Any) -> bool:
    """Whether another process would find this very value there."""
    if module == "__main__" or not getattr(sys.modules.get(module), "__file__", None):
        return False
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is value


def _source_file(value: Any) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(value) if callable(value) else type(value))
    except TypeError:
        return None


def _digest(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"


def _kind(value: Any) -> str:
    if isinstance(value, ModuleType):
        return "a module"
    return f"of the type {type(value).__name__}"


_DEEPEST = 8  # levels of values within values


def _text(value: Any, depth: int) -> str:
    if depth > _DEEPEST:
        return ""
    if isinstance(value, functools.partial):
        return _text((value.func, value.args, value.keywords), depth + 1)
    if inspect.ismethod(value):
        return _text((value.__func__, value.__self__), depth + 1)
    if inspect.isbuiltin(value):
        return _of_c(value, depth)
    if inspect.isclass(value):
        return _code(value, depth) or f"{value.__module__}:{value.__qualname__}"
    if inspect.isfunction(value):
        return _code(value, depth)
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(item, depth + 1)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return type(value).__name__ + "\n".join(_text(item, depth + 1) for item in value)
    if isinstance(value, Set):  # in an order that every process has
        return type(value).__name__ + "\n".join(sorted(_text(item, depth + 1) for item in value))
    if isinstance(value, str | bytes | int | float | complex | bool | None):
        return repr(value)
    if hasattr(value, "tobytes"):  # an array
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    wrapped = getattr(value, "__wrapped__", None)  # of a jitted function
    if wrapped is not None:
        return _text(wrapped, depth + 1)
    name = getattr(value, "__name__", "") if depth else ""  # alone, it tells no value from another
    return _code(type(value), depth) + name + _text(_attributes(value), depth + 1)


def _of_c(value: Any, depth: int) -> str:
    """A built-in function's name; a method's, with what it is of, and nothing where that cannot be told."""
    name = f"{value.__module__}:{value.__qualname__}"
    if value.__self__ is None or inspect.ismodule(value.__self__):
        return name
    owner = _text(value.__self__, depth + 1)
    return f"{name}{owner}" if owner else ""


def _attributes(value: Any) -> dict[str, Any]:
    """What an instance holds, in its dictionary and in slots."""
    found = {**getattr(value, "__dict__", {})}
    for kind in type(value).__mro__:
        for name, member in vars(kind).items():
            if inspect.ismemberdescriptor(member) and not name.startswith("__") and hasattr(value, name):
                found[name] = member.__get__(value)
    return found


def _code(value: Any, depth: int) -> str:
    """Of a function or a class."""
    try:
        code = inspect.getsource(value)
    except (OSError, TypeError):
        code = ""
    if inspect.isfunction(value):
        return (code or _bytecode(value.__code__)) + _bound(value, depth) + _globals(value, depth)
    methods = [member for member in vars(value).values() if inspect.isfunction(member)]
    if not code:
        code = "\n".join(_bytecode(method.__code__) for method in methods)
    return code + "".join(_globals(method, depth) for method in methods)


def _bound(function: FunctionType, depth: int) -> str:
    """What a function closed over, and its defaults."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    named = [function.__kwdefaults__] if function.__kwdefaults__ else []
    return _text([*(function.__defaults__ or ()), *cells, *named], depth + 1)


_PLAIN = str | bytes | int | float | complex | bool | tuple | None


def _globals(function: FunctionType, depth: int) -> str:
    """The plain values among the globals that a function reads."""
    found = {}
    for name in sorted(_global_names(function.__code__)):
        value = function.__globals__.get(name, function)
        if isinstance(value, _PLAIN):
            found[name] = value
    return _text(found, depth + 1)


def _global_names(code: CodeType) -> set[str]:
    """Of a function's code, and of the functions within it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    within = [item for item in code.co_consts if isinstance(item, CodeType)]
    return names.union(*(_global_names(item) for item in within))


def _bytecode(code: CodeType) -> str:
    """What Python runs, where a function was written into no file."""
    constants = [_constant(item) for item in code.co_consts]
    return "\n".join([code.co_code.hex(), repr(code.co_names), *constants])


def _constant(item: Any) -> str:
    if isinstance(item, CodeType):
        return _bytecode(item)
    return _text(item, 0) if isinstance(item, Set) else repr(item)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a function that refers to itself, not yet bound
        return False
    return True
