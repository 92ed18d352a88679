"""What is to be measured: options with several values each, a config, a model; one request for each combination."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.bench.shapes import ADAPTERS, MODELS, ORDERS, RANK, SHAPES
from fedjax_rai.errors import InputError, did_you_mean

NAMES: dict[str, tuple[str, ...]] = {
    "dtype": ("bfloat16", "float32"),
    "attention": ("xla", "chunked", "cudnn", "splash"),
    "remat": ("none", "full"),
    "unroll": ("none", "full"),
    "quantize": ("none", "int8", "nf4"),
    "kv_cache": ("model", "bfloat16", "int8"),
}
"""Options of how the model is computed, and what each may be; the first is the default."""
NAMED = NAMES | {"order": ORDERS, "adapter": ADAPTERS}
"""Options whose values are names."""
MESH = ("fsdp", "tensor")
MICRO_BATCH = {"round": "federated.micro_batch", "cai": "cai.micro_batch"}
MAY_BE_NOTHING = ("iterations",)
LEAST = {"length": 2}
# Where a work's sizes stand in a config; the others are the shape's defaults.
IN_CONFIG = {
    "round": {
        "clients": "federated.cohort",
        "steps": "federated.local_steps",
        "batch": "federated.batch_size",
        "length": "data.max_length",
        "chunk": "federated.clients_per_chunk",
    },
    "generate": {"rows": "eval.batch_size", "new": "eval.max_new_tokens"},
    "cai": {
        "prompts": "cai.prompts",
        "chunk": "cai.prompts_per_chunk",
        "new": "cai.max_new_tokens",
        "revisions": "cai.revisions",
        "iterations": "cai.iterations",
        "batch": "cai.batch_size",
    },
    "score": {"length": "data.max_length", "batch": "eval.batch_size"},
}
FEDERATED = ("algorithm", "aggregator", "optimizer", "weight_decay", "clip_norm")
CAI = ("method", "preference", "beta", "reference", "critic", "target", "temperature", "replay")


class Asked(NamedTuple):
    """What a command was given; a value that was not is None."""

    work: str
    given: Mapping[str, str | None]  # option -> values with commas between
    config: Path | None = None
    overrides: Sequence[str] = ()
    warmup: int = 1
    repeats: int = 3


def plan(asked: Asked) -> list[dict[str, Any]]:
    """A request for each combination of the values, the last option's changing fastest.

    Raises InputError for values that are none, for models that are not there, and for a config with mistakes.
    """
    if asked.config is None and asked.overrides:
        raise InputError(f"--set {asked.overrides[0]}: must stand beside --config FILE, whose keys it changes")
    base = _defaults(asked.work) if asked.config is None else _of_config(asked)
    values = {name: [default] for name, default in base["values"].items()}
    for option, text in asked.given.items():
        if text is not None:
            values[option] = parse(option, text)
    _check_order(values)
    combinations = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
    others = {"work": asked.work, "warmup": asked.warmup, "repeats": asked.repeats}
    return [others | _request(asked.work, base, chosen) for chosen in combinations]


def _check_order(values: dict[str, list[Any]]) -> None:
    """A job has an order, by default the queue's; raises InputError for an order of no job."""
    if values.get("answers", [None]) != [None]:
        values["order"] = [order or ORDERS[0] for order in values["order"]]
    elif values.get("order", [None]) != [None]:
        raise InputError(f"--order {values['order'][0]}: must stand beside --answers N, whose order it is")


def parse(option: str, text: str) -> list[Any]:
    """The values of an option, in order, each once; raises InputError."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if option == "model":
        for part in parts:
            check_model(part)
        return parts
    if option in NAMED:
        for part in parts:
            check_name(spelt(option), part, NAMED[option])
        return parts
    return [_count(option, text, part) for part in parts]


def spelt(option: str) -> str:
    """How an option is typed."""
    return f"--{option.replace('_', '-')}"


def _count(option: str, text: str, part: str) -> int:
    stated = f"{spelt(option)} {text}"
    if not (part.isascii() and part.removeprefix("-").isdecimal()):
        raise InputError(f"{stated}: {part!r} is no whole number; must be like 16, or 1,4,16 for several")
    least = 0 if option in MAY_BE_NOTHING else LEAST.get(option, 1)
    if int(part) < least:
        raise InputError(f"{stated}: {part} is too small; must be at least {least}")
    return int(part)


def check_name(stated: str, name: str, known: Sequence[str]) -> None:
    """Raises InputError for a name that is not known, with the nearest one; upper and lower case are alike to it."""
    if name in known:
        return
    raise InputError(f"{stated} {name}: must be one of {', '.join(known)}{nearest(name, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the known name that differs in case alone, else the nearest; nothing if none is."""
    alike = [other for other in known if other.casefold() == name.casefold()]
    return f"; did you mean {alike[0]}?" if alike else did_you_mean(name, known)


def check_model(model: str) -> None:
    """Raises InputError for a model that is neither a named shape nor a Hugging Face folder."""
    if model in MODELS or (Path(model) / "config.json").is_file():
        return
    is_folder = Path(model).is_dir()
    wrong = "a folder without a config.json" if is_folder else "no such shape, and no such folder"
    hint = "" if is_folder else nearest(model, [*MODELS])
    raise InputError(f"--model {model}: {wrong}; must be one of {', '.join(MODELS)}, or a Hugging Face folder{hint}")


def _defaults(work: str) -> dict[str, Any]:
    """What is measured without a config."""
    computed = {name: names[0] for name, names in NAMES.items()}
    sizes = SHAPES[work]._field_defaults
    others = {"micro_batch": None, "devices": None, **dict.fromkeys(MESH, 1)}
    values = {"model": "tiny", **sizes, "rank": RANK, **computed, **others}
    return {"values": values, "lora": {}, "federated": {}, "sections": {}, "cai": {}}


def _of_config(asked: Asked) -> dict[str, Any]:
    """What is measured with a config: its model and how that is computed, its sizes, its methods."""
    from fedjax_rai.config.files import check_files
    from fedjax_rai.config.load import load_config
    from fedjax_rai.config.views import value_at
    from fedjax_rai.text.hub import resolve

    assert asked.config is not None
    config = load_config(asked.config, asked.overrides)
    check_files(config)
    found = _defaults(asked.work)
    values = found["values"]
    for size, key in IN_CONFIG[asked.work].items():
        values[size] = value_at(config, key)
    for name in NAMES:
        values[name] = getattr(config.model, name)
    if asked.work in MICRO_BATCH:
        values["micro_batch"] = value_at(config, MICRO_BATCH[asked.work])
    if config.mesh.auto and not any(asked.given.get(name) for name in MESH):
        raise InputError(
            "mesh.auto = true: a benchmark takes the split that it is given; must be --fsdp N or --tensor N"
        )
    for name in MESH:
        values[name] = getattr(config.mesh, name)
    if asked.given.get("model") is None:
        values["model"] = str(resolve(config.model.path, config.model.revision, weights=True))
    values["rank"] = config.lora.rank
    plain = config.model_dump(mode="json")
    return found | {
        "lora": plain["lora"],
        "federated": {name: plain["federated"][name] for name in FEDERATED},
        "sections": {name: section for name, section in plain.items() if isinstance(section, dict)},
        "cai": {name: plain["cai"][name] for name in CAI},
    }


def _request(work: str, base: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What one worker is asked for."""
    lora = {"alpha": 2.0 * chosen["rank"], **base["lora"], "rank": chosen["rank"]}
    micro_batch = chosen["micro_batch"]
    if micro_batch is not None and chosen["batch"] % micro_batch:
        raise InputError(f"--micro-batch {micro_batch}: must divide the batch, {chosen['batch']}")
    if chosen.get("adapter") == "merged" and chosen["quantize"] != "none":
        raise InputError(
            f"--adapter merged: is of no quantised base; must be apart with --quantize {chosen['quantize']}"
        )
    return {
        "model": chosen["model"],
        "shape": {name: chosen[name] for name in SHAPES[work]._fields},
        "lora": lora,
        "computed": {name: chosen[name] for name in NAMES},
        "mesh": {name: chosen[name] for name in MESH},
        "micro_batch": micro_batch,
        "devices": chosen["devices"],
        "federated": base["federated"],
        "sections": base["sections"],
        "cai": base["cai"],
    }
