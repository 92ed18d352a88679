"""The experiment's configuration: frozen, strict, and explicit about what is wrong with it.

Defaults are the paper's numbers (arXiv 2502.16691) where it gives one, else those of the tiny world, whose model and
data are the default too. Needs no jax. Paths are relative to the current directory, not to the config file.
"""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedjax_rai.config.client_names import Clients
from fedjax_rai.config.column_names import PROMPT_COLUMNS, PROMPT_HOLDS, SET_HOLDS, ColumnNames, checked_prompt_columns
from fedjax_rai.config.names import TAKES_ATTRIBUTE, Name, is_attribute
from fedjax_rai.config.threshold_rule import RuleText

TINY = "tiny"
"""The shipped synthetic model, data or prompts, where a path or a name would stand."""


def _not_a_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    return value


# Whole numbers are strict, so that 1e3, 3.0, "3" and true are refused; real ones are not, as YAML reads 1e-3 as text.
Natural = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
_Real = BeforeValidator(_not_a_bool)
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), _Real]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False), _Real]
Share = Annotated[float, Field(gt=0, le=1), _Real]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False), _Real]
Decay = Annotated[float, Field(ge=0, lt=1), _Real]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[Text, AfterValidator(os.path.expanduser)]  # no shell expands the ~ in key=~/file


def a_file(what: str, **others: Any) -> Any:
    """Marks a key that names a file or a folder; its default is shipped, or none at all.

    `others`: `inside`, the files that a folder must hold; `hub`, a model, which may be on a hub; `rows`, any form of
    rows; `shipped`, what names no file, if not the default.
    """
    return Field(json_schema_extra={"file": what, **others})


_MODEL_FILES = a_file("Hugging Face folder with a config.json", inside=["config.json"], hub=True)
_ROWS = "file or folder of rows, or data set"
_ADAPTER_FILES = a_file(
    "folder of an adapter in PEFT's format", inside=["adapter_config.json", "adapter_model.safetensors"]
)
FORM_NAMES = (
    "auto", "request", "llama_guard", "qwen3_guard", "kanana", "kt_safety_guard", "shield_gemma", "granite_guardian",
    "granite_guardian_3_3", "wild_guard", "poly_guard", "nemotron_safety_guard", "harmbench_llama",
    "harmbench_mistral", "md_judge", "strong_reject", "keep_all", "oracle",
)  # fmt: skip
"""Of guards' forms, as `guard.form` takes them."""
_FORM_FILES = a_file(
    "YAML file of a guard's form", enum=list(FORM_NAMES), **TAKES_ATTRIBUTE, **{"else": "a YAML file of a form"}
)


def _a_form(value: str) -> str:
    if value in FORM_NAMES or is_attribute(value) or value.lower().endswith((".yaml", ".yml")):
        return value
    raise PydanticCustomError("name", "no such name")


Target = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "qkv_proj", "gate_up_proj",  # Phi-3's, in place of q, k, v and of gate, up
]  # fmt: skip


def _regular(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})") from None
    return pattern


Pattern = Annotated[Text, AfterValidator(_regular)]


def is_hub_name(path: str) -> bool:
    """`owner/name`, as models on the Hugging Face hub are named; a path begins or ends otherwise."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", path, re.ASCII) is not None


def _of_a_hub_name(revision: str | None, info: ValidationInfo) -> str | None:
    path = info.data.get("path")
    if revision is not None and "path" in info.data and not (path and is_hub_name(path)):
        raise ValueError(f"must be null: path = {path!r} is not of the form owner/name, so it has no revisions")
    return revision


Revision = Annotated[Text | None, AfterValidator(_of_a_hub_name)]


def _divides_the_batch(micro_batch: int | None, info: ValidationInfo) -> int | None:
    batch = info.data.get("batch_size")
    if micro_batch is None or batch is None or batch % micro_batch == 0:
        return micro_batch
    divisors = ", ".join(str(size) for size in range(1, batch + 1) if batch % size == 0)
    raise ValueError(f"must be null or divide batch_size = {batch} of the same section: one of {divisors}")


MicroBatch = Annotated[Count | None, AfterValidator(_divides_the_batch)]


class Section(BaseModel):
    """What follows each key says what it means: docs/config.md is made of it (`tools.config_reference`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """The frozen base that every client, the server's policy and the reference share."""

    path: Annotated[PathText, _MODEL_FILES] = "tiny"
    """The model: `tiny` (the shipped synthetic one), a Hugging Face folder, or `owner/name` on the hub."""
    revision: Revision = None
    """Branch, tag or commit of a model on the hub; null: its main branch."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The type of the base's weights and of activations; adapters are float32 in any case."""
    attention: Literal["xla", "chunked", "cudnn", "splash"] = "xla"
    """How attention is computed: `cudnn` needs a GPU, `splash` a TPU; `chunked` saves memory on long texts."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """What the base's kernels are stored as: 8 bits, 4 bits (NF4), or as `dtype` says."""
    kv_cache: Literal["model", "bfloat16", "int8"] = "model"
    """What keys and values are stored as while texts are generated: 8 bits with a scale a head and token, 16 bits, or
    as `dtype` says. Less than `dtype` changes answers by rounding that is more than that of sums.
    """
    remat: Literal["none", "full"] = "none"
    """`full`: the backward pass computes every layer again, for want of memory."""
    unroll: Literal["none", "full"] = "none"
    """`full`: the layers one after another in a program, not in a loop: fewer copies on a GPU, longer compiling. Not
    on a CPU, and not with `remat`.
    """

    answering: Literal["apart", "merged"] = "apart"
    """How texts are generated with an adapter. `apart`: beside the base, as in training. `merged`: added to a copy of
    the base's weights first, for CAI's conversations, probes and evaluations (not what a guard writes): fewer products
    a token, on a GPU 1.3 to 1.4 times as fast, on a CPU hardly; memory for the copy; answers change by rounding. Not
    with `quantize`.
    """

    @field_validator("answering")
    @classmethod
    def _unless_in_few_bits(cls, answering: str, info: ValidationInfo) -> str:
        quantize = info.data.get("quantize", "none")
        if answering == "merged" and quantize != "none":
            raise ValueError(f"must be apart where model.quantize = {quantize}: no adapter is added to few bits")
        return answering

    @field_validator("unroll")
    @classmethod
    def _unless_computed_again(cls, unroll: str, info: ValidationInfo) -> str:
        if unroll == "full" and info.data.get("remat") == "full":
            raise ValueError("must be none where model.remat = full: it would spare no memory")
        return unroll


class LoraConfig(Section):
    """The shape of every adapter, in PEFT's terms."""

    rank: Count = 8
    """The rank r of every adapted projection."""
    alpha: Rate = 16.0
    """The adapter's output is multiplied by alpha / rank."""
    targets: tuple[Target, ...] | None = None
    """The projections that are adapted; null: all of them."""
    rslora: Flag = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    layers: tuple[Natural, ...] | None = None
    """The layers that are adapted, counted from 0; null: all of them."""
    rank_pattern: dict[Pattern, Count] = {}
    """Another rank for modules whose name ends in a regular expression: `{q_proj: 4}`."""
    alpha_pattern: dict[Pattern, Rate] = {}
    """Another alpha, in the same way."""
    dropout: Decay = 0.0
    """The share of the adapters' inputs that a client's training zeroes, anew in each local step; nothing else does."""

    @field_validator("targets", "layers")
    @classmethod
    def _distinct(cls, values: tuple | None) -> tuple | None:
        if values is not None and not 0 < len(values) == len(set(values)):
            raise ValueError("must name at least one, and each once; null for all")
        return values


class MeshConfig(Section):
    """How many ways the base is split over devices; what is left of them has clients, or rows, of its own."""

    auto: Flag = False
    """The memory plan chooses both: the least split that fits, by `fsdp` first; summary.json says why. `mesh: auto`."""
    fsdp: Count = 1
    """Ways in which the rows of the base's kernels, and those of every batch, are split."""
    tensor: Count = 1
    """Ways in which its heads and columns are split."""

    @model_validator(mode="before")
    @classmethod
    def _in_a_word(cls, value: Any) -> Any:
        return {"auto": True} if value == "auto" else value

    @field_validator("fsdp", "tensor")
    @classmethod
    def _unless_chosen(cls, ways: int, info: ValidationInfo) -> int:
        if ways != 1 and info.data.get("auto"):
            raise ValueError("must be 1, or left out, where mesh.auto = true")
        return ways


class DirichletConfig(Section):
    """The partition `dirichlet` (arXiv 1909.06335): each client's mixture of kinds is drawn from a Dirichlet."""

    alpha: Rate = 0.5
    """Its concentration: the smaller, the fewer kinds a client holds; the mixtures' mean is that of all pairs."""
    column: Text = "category"
    """What kinds are by: `category`, `label` (harmful, acceptable, unlabelled), or a column of the rows."""


class CategoryConfig(Section):
    """The partition `category`: whole kinds go to clients."""

    column: Text = "category"
    """What kinds are by: `category`, `label`, or a column of the rows."""


class QuantityConfig(Section):
    """The partition `quantity`: clients hold unequal numbers of pairs, by a power law."""

    exponent: Weight = 1.0
    """Client i, from 0, holds a share of the pairs in proportion to (i + 1)^-exponent; 0: even sizes."""


class HarmConfig(Section):
    """The partition `harm`: the harmful pairs lie with few clients."""

    share: Share = 0.3
    """The share of the clients, the first ones, that hold them; sizes stay as even as they can be."""


class NaturalConfig(Section):
    """The partition `natural`: a column names the client."""

    column: Text = "client"
    """The column of the rows; the `federated.clients` values with the most pairs are taken."""


_REWRITES = "synonyms", "base64", "leetspeak", "homoglyphs", "zero_width", "split", "injection", "benign_prefix"
_EVASIONS = Name("none", *_REWRITES)
_PARTITIONS = Name("iid", "dirichlet", "category", "quantity", "harm", "natural")
Kind = Literal["harmful", "acceptable"]


class SourceConfig(Section):
    """An entry of `data.sources`: pairs, and which clients hold them."""

    path: Annotated[PathText, a_file(_ROWS, rows=True)]
    """A file, a folder, a glob or a data set on the hub, as of `data.train`; `tiny`: pairs of the tiny world."""
    name: Text | None = None
    """The configuration of a data set on the hub, where it has several."""
    split: Text = "train"
    """The split of a data set that has several."""
    revision: Text | None = None
    """Branch, tag or commit of a data set on the hub; null: its main branch."""
    columns: ColumnNames = None
    """How its columns are called; null: `data.columns`."""
    language: Literal["en", "ko"] | None = None
    """Which of the texts are read, where rows have both languages; null: `data.language`."""
    label: Kind | None = None
    """What all rows of an unlabelled source are; null: what their labels say, if they have any."""
    only: Kind | None = None
    """Clients hold its pairs of this label alone; null: all."""
    rows: Count | None = None
    """How many of its pairs clients hold in all, drawn at random from its clients' part; null: all."""
    share: Share | None = None
    """The same as a share of its clients' part, in place of `rows`."""
    clients: Clients = None
    """Which clients hold it: 0-6, [0, 3, 9], or 30%: so many of those that no source names by number; null: all."""
    partition: Annotated[str, _PARTITIONS] | None = None
    """How its pairs are dealt out to them; null: `data.partition`."""
    dirichlet: DirichletConfig | None = None
    """The numbers of that partition, for this source; null: those of the section `dirichlet`."""
    category: CategoryConfig | None = None
    """The same; null: those of the section `category`."""
    quantity: QuantityConfig | None = None
    """The same; null: those of the section `quantity`."""
    harm: HarmConfig | None = None
    """The same; null: those of the section `harm`."""
    natural: NaturalConfig | None = None
    """The same; null: those of the section `natural`."""
    evasion: Annotated[str, _EVASIONS] | None = None
    """How its holders rewrite their harmful answers before the filter; null: `data.evasion`."""

    @field_validator("only")
    @classmethod
    def _not_of_one_label(cls, only: str | None, info: ValidationInfo) -> str | None:
        if only is not None and info.data.get("label") is not None:
            raise ValueError(f"must be left out: label = {info.data['label']}, so that all rows are of that label")
        return only

    @field_validator("share")
    @classmethod
    def _not_rows_too(cls, share: float | None, info: ValidationInfo) -> float | None:
        if share is not None and info.data.get("rows") is not None:
            raise ValueError("must be left out where rows is given")
        return share


class PromptSource(Section):
    """Where prompts are read from, of data with splits or with columns of other names: in place of a path alone."""

    path: Annotated[PathText, a_file(_ROWS, rows=True, shipped=None)]
    """A file, a folder, a glob or a data set on the hub, as where it stands alone."""
    name: Text | None = None
    """The configuration of a data set on the hub, where it has several."""
    split: Text = "train"
    """The split of a folder or a data set that has several."""
    revision: Revision = None
    """Branch, tag or commit of a data set on the hub; null: its main branch."""
    columns: Annotated[dict[Text, Text] | None, Field(json_schema_extra={"says": PROMPT_COLUMNS})] = None
    """Its columns by what they hold (docs/clients.md says what each key reads); null: those that are known."""

    @field_validator("columns")
    @classmethod
    def _of_its_key(cls, columns: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        known = info.context["holds"] if info.context else PROMPT_HOLDS
        return checked_prompt_columns(columns, known)


_PATH = TypeAdapter(PathText)


def _prompts(*holds: str, optional: bool = True) -> Any:
    """Marks a key that names prompts: by a path, which stays a text, or by a `PromptSource` with these columns.

    Which of the two is meant is plain from the value, so that a message speaks of that form alone.
    """

    def checked(value: Any, _: Any) -> str | PromptSource | None:
        if isinstance(value, PromptSource):
            value = value.model_dump()
        if isinstance(value, Mapping):
            return PromptSource.model_validate(dict(value), context={"holds": holds})
        return None if value is None and optional else _PATH.validate_python(value)

    return WrapValidator(checked)


def _of_a_hub_data_set(value: str | None, info: ValidationInfo) -> str | None:
    path = info.data.get("train")
    if value is not None and path is not None and not is_hub_name(path):
        raise ValueError(f"must be null: data.train = {path!r} is not of the form owner/name, as on a hub")
    return value


class DataConfig(Section):
    """The clients' training pairs."""

    train: Annotated[PathText, a_file(_ROWS, rows=True)] = "tiny"
    """The rows: `tiny` (the synthetic world); a file, a folder or a glob; `owner/name` on the hub (docs/data.md); or
    `tfds:NAME/CONFIG`, a prepared set (docs/corpus.md)."""
    columns: ColumnNames = None
    """Which columns hold prompt, answer and label: a layout, or names of your own; null: recognised."""
    name: Text | None = None
    """One of the configurations of a data set on the hub, or of a folder made like one; null: its only one."""
    train_split: Text = "train"
    """The split that is read, of a folder or a data set on the hub."""
    revision: Annotated[Text | None, AfterValidator(_of_a_hub_data_set)] = None
    """Branch, tag or commit of a data set on the hub; null: its main branch."""
    language: Literal["en", "ko"] = "en"
    """Which of SQuARe's texts are read."""
    sources: tuple[SourceConfig, ...] = ()
    """Several sources in place of `train`, each with the clients that hold it (docs/clients.md)."""
    recipe: Literal["all", "three_to_seven"] = "all"
    """Which of the pairs clients hold: `all`, or the paper's harmful and acceptable ones at 3 to 7."""
    red: Natural | None = None
    """Pairs with a harmful answer, of all clients; null: all, or at 3 to 7 as many as there are at that ratio."""
    acceptable: Natural | None = None
    """Pairs with an acceptable answer, of all clients; null: all, or at 3 to 7 as many as there are at that ratio."""
    max_length: Annotated[int, Field(strict=True, ge=16)] = 256
    """Tokens of a conversation, at most; longer ones are cut and counted."""
    packing: Flag = False
    """Short examples of a local step share rows, which changes no number but the time."""
    partition: Annotated[str, _PARTITIONS] = "iid"
    """How the pairs are dealt out to the clients. Its numbers are in the section of its name."""
    evasion: Annotated[str, _EVASIONS] = "none"
    """Clients rewrite the answers of their harmful pairs so that a guard does not see them (docs/filtering.md): the
    filter reads, and training learns, what is rewritten. `evasion` of a source says it of its clients alone. A function
    of the user's own: (text, NumPy generator) to text.
    """
    evasion_share: Share = 1.0
    """The share of the harmful pairs that is rewritten, at random."""
    split: Literal["tune", "test"] = "test"
    """Which half of the tiny world is evaluated: settings are tuned on one, reported on the other."""

    @field_validator("sources")
    @classmethod
    def _in_place_of_train(cls, sources: tuple, info: ValidationInfo) -> tuple:
        alone = {"train": TINY, "name": None, "train_split": "train", "revision": None}
        for key, default in alone.items():
            value = info.data.get(key, default)
            if sources and value != default:
                raise ValueError(f"must be left out where data.{key} = {value!r} is given; each source has its own")
        return sources


_ALGORITHMS = Name("fedavg", "scaffold", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


class FederatedConfig(Section):
    """The rounds: who takes part, and how each client trains."""

    algorithm: Annotated[str, _ALGORITHMS] = "fedavg"
    """The federated algorithm; the paper's are FedAvg and SCAFFOLD. Its numbers are in the section of its name."""
    aggregator: Annotated[str, Name("weighted_mean", "median", "trimmed_mean")] = "weighted_mean"
    """How the clients' deltas become one; by median and trimmed mean every client counts the same."""
    weight: Annotated[str, Name("uniform", "examples", "steps", "noised")] = "uniform"
    """What a client reports to be weighted by: `uniform` is 1, `examples` how many pairs its filter left.

    `steps`: its local steps, the same for all; `noised`: its examples with noise, by the numbers of the section of that
    name. By every weight the server learns which clients have nothing left, and how many tokens the others trained on
    (docs/filtering.md). A function of the user's own: counts and a NumPy generator to a number greater than 0.
    """
    optimizer: Annotated[str, Name("adam", "adamw", "sgd")] = "adam"
    """The clients' optimizer, begun anew in every round."""
    weight_decay: Weight = 0.0
    """This many times the parameters is added to the gradient (adam, sgd) or to the optimizer's direction (adamw)."""
    clip_norm: Rate | None = 1.0
    """Gradients are clipped to this Euclidean norm; null: not clipped."""
    clients: Count = 20
    """Clients in all; the paper's number."""
    cohort: Count = 5
    """Clients drawn for each round, without replacement; the paper's number."""
    rounds: Natural = 50
    """Rounds in all; the paper's number."""
    local_steps: Count = 25
    """Optimizer updates of a client in a round; the paper's number."""
    batch_size: Count = 16
    """Examples of a local step; the paper's number."""
    micro_batch: MicroBatch = None
    """Examples of a local step that are computed at once, for want of memory: a divisor of `batch_size`; null: all.

    Gradients are added up, so that numbers change by rounding only; but `lora.dropout` zeroes other inputs.
    """
    learning_rate: Rate = 2e-3
    """Learning rate of the clients' optimizer in the first round."""
    schedule: Annotated[str, Name("constant", "cosine")] = "constant"
    """The learning rate over the rounds; cosine: half a period, from the first towards the final one."""
    final_learning_rate: Weight = 0.0
    """Where a falling schedule ends; constant does not read it."""
    clients_per_chunk: Count = 1
    """Clients computed at once, at most: more need more memory; on a CPU 1 is the fastest, unless `batch_size` is 1."""

    @field_validator("cohort")
    @classmethod
    def _drawn_from_clients(cls, cohort: int, info: ValidationInfo) -> int:
        clients = info.data.get("clients", cohort)
        if cohort > clients:
            raise ValueError(f"must be at most federated.clients = {clients}: a cohort is drawn without replacement")
        return cohort

    @field_validator("final_learning_rate")
    @classmethod
    def _falls(cls, final: float, info: ValidationInfo) -> float:
        initial = info.data.get("learning_rate", final)
        if final > initial and not is_attribute(info.data.get("schedule", "")):
            raise ValueError(f"must be at most federated.learning_rate = {initial}: schedules fall")
        return final


class FedProxConfig(Section):
    """FedProx (arXiv 1812.06127): clients are held to the adapter that they received."""

    mu: Weight = 0.01
    """Half of it times the squared distance from the received adapter joins the loss."""


class FedAvgMConfig(Section):
    """FedAvgM (arXiv 1909.06335): the server has momentum."""

    momentum: Decay = 0.9
    """The share of the last round's step that joins this round's delta."""
    learning_rate: Rate = 1.0
    """The server's learning rate."""


class FedAdamConfig(Section):
    """FedAdam (arXiv 2003.00295): the server steps by Adam's direction. The learning rate is ours, not tuned."""

    learning_rate: Rate = 1e-2
    """The server's learning rate."""
    beta1: Decay = 0.9
    """Decay of the first moment over the rounds; the paper's number."""
    beta2: Decay = 0.99
    """Decay of the second moment over the rounds; the paper's number."""
    tau: Rate = 1e-3
    """Added to the second moment's root: the smaller, the more adaptive."""


class FedYogiConfig(Section):
    """FedYogi (arXiv 2003.00295): the server steps by Yogi's direction. The learning rate is ours, not tuned."""

    learning_rate: Rate = 1e-2
    """The server's learning rate."""
    beta1: Decay = 0.9
    """Decay of the first moment over the rounds; the paper's number."""
    beta2: Decay = 0.99
    """Decay of the second moment over the rounds; the paper's number."""
    tau: Rate = 1e-3
    """Added to the second moment's root: the smaller, the more adaptive."""


class FedAdagradConfig(Section):
    """FedAdagrad (arXiv 2003.00295): the server steps by Adagrad's direction. The learning rate is ours, not tuned."""

    learning_rate: Rate = 1e-2
    """The server's learning rate."""
    beta1: Decay = 0.0
    """Decay of the first moment over the rounds; the paper's number."""
    tau: Rate = 1e-3
    """Added to the second moment's root: the smaller, the more adaptive."""


class TrimmedMeanConfig(Section):
    """The trimmed mean (arXiv 1803.01498): of every coordinate, the largest and smallest values are left out."""

    share: Annotated[float, Field(ge=0, lt=0.5), _Real] = 0.1
    """The share of the clients that is left out at either end."""


class NoisedConfig(Section):
    """The weight `noised`: the number of a client's examples with noise that is drawn once for all rounds."""

    distribution: Literal["laplace", "gaussian"] = "laplace"
    """The noise: Laplace's, or a normal one."""
    scale: Rate = 20.0
    """Its scale in examples: Laplace's b, or the standard deviation."""


class GuardConfig(Section):
    """The safety classifier: the base or, with a `path`, a released model; as it is, or fitted on labelled pairs."""

    path: Annotated[PathText | None, _MODEL_FILES] = None
    """A released guard, Llama Guard or a chat model: a Hugging Face folder or `owner/name`; null: one is fitted."""
    revision: Revision = None
    """Branch, tag or commit of a guard on the hub; null: its main branch."""
    scorer: Annotated[str, Name("model")] = "model"
    """`model` for these; a function of the user's own, (query, response) pairs to p(unsafe), takes their place."""
    form: Annotated[PathText, AfterValidator(_a_form), _FORM_FILES] = "auto"
    """How the guard is asked: `auto`, as its name, template or tokens tell; a form's name, or a YAML file of one."""
    between: Literal["unsafe", "safe", "none"] = "unsafe"
    """What a verdict between safe and unsafe (Qwen3Guard's) counts as; `none`: as neither, in no probability."""
    self_test: Flag = True
    """Whether a released guard is tried on twelve obvious pairs, and refused where it cannot tell them apart."""
    adapter: Annotated[PathText | None, _ADAPTER_FILES] = None
    """A guard that was fitted before, with its calibration: an adapter on `guard.path`, else on the base, a folder in
    PEFT's format; null: none."""
    fit: Flag | None = None
    """Whether the guard is fitted here. Null: the base is, a released one (`guard.path`) is not."""
    pairs: Annotated[int, Field(strict=True, ge=2)] = 400
    """Labelled pairs that the guard is fitted on."""
    harmful_share: Annotated[float, Field(gt=0, lt=1), _Real] = 0.5
    """The share of these that is harmful: half of them, or 0.3 for the paper's 30 : 70."""
    steps: Natural = 20
    """Optimizer updates of the fit, unless `guard.epochs` counts them."""
    epochs: Rate | None = None
    """Passes over its pairs, in place of `guard.steps`; null: as many updates as those say."""
    held_out: Annotated[float, Field(ge=0, lt=1), _Real] = 0.0
    """The share of the guard's questions that it is not fitted on: they stop the fit, choose the threshold and tell the
    temperature. No question is on both sides, in no language that a row ties to it."""
    patience: Count | None = None
    """The fit ends after so many passes without a smaller loss on the held-out questions, and the best adapter is
    taken; null: it never ends early."""
    batch_size: Count = 32
    """Pairs of one such update."""
    micro_batch: MicroBatch = None
    """Pairs of one that are computed at once, as `federated.micro_batch`; null: all."""
    learning_rate: Rate = 1e-3
    """Learning rate of the fit."""
    threshold: Annotated[float, Field(gt=0, lt=1), _Real] | None = None
    """An answer is unsafe if p(unsafe) is at least this. Null: what `guard.choose` finds on held-out questions, or what
    is saved beside `guard.adapter`; 0.5 where there is neither."""
    choose: RuleText | None = None
    """How held-out questions choose the threshold: `max-hmean`, `recall=0.9` (the highest that finds this share of the
    harmful answers) or `drop=0.05` (the lowest that drops this share of the acceptable ones). Null: `max-hmean`, or the
    threshold that is saved beside `guard.adapter`."""
    label_noise: Annotated[float, Field(ge=0, lt=0.5), _Real] = 0.0
    """The share of the labels that is flipped before the fit, at random."""
    normalise: Flag = False
    """The guard reads a normal form of every text, and nobody else does: NFKC, without invisible characters, look-alike
    letters as Latin ones, long runs of base64 decoded (docs/filtering.md).
    """
    augment: tuple[Annotated[str, Name(*_REWRITES)], ...] = ()
    """The fit has copies of all its pairs besides, their answers rewritten in each of these ways."""

    @field_validator("adapter")
    @classmethod
    def _of_a_model(cls, adapter: str | None, info: ValidationInfo) -> str | None:
        if adapter is not None and info.data.get("scorer", "model") != "model":
            raise ValueError("must be null beside guard.scorer: a function takes no adapter")
        return adapter

    @field_validator("fit")
    @classmethod
    def _not_again(cls, fit: bool | None, info: ValidationInfo) -> bool | None:
        if fit and info.data.get("adapter") is not None:
            raise ValueError("must be null or false beside guard.adapter: a saved guard is not fitted again")
        if fit and info.data.get("scorer", "model") != "model":
            raise ValueError("must be null or false beside guard.scorer: a function is not fitted")
        return fit

    @field_validator("patience")
    @classmethod
    def _by_held_out_questions(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and not info.data.get("held_out"):
            raise ValueError("needs guard.held_out > 0: held-out questions say when to stop")
        return patience


class LimitConfig(Section):
    """An entry of `filter.thresholds`: when some of the clients call an answer unsafe."""

    clients: Clients = None
    """Which clients: 0-6, [0, 3, 9], or 30%: so many of those that no entry names by number; null: all others."""
    threshold: Annotated[float | None, Field(gt=0, lt=1), _Real] = None
    """An answer is unsafe if p(unsafe) is at least this."""
    drop_rate: Annotated[float | None, Field(ge=0, lt=1), _Real] = None
    """In its place: the share of each client's pairs, those with the greatest scores, that is unsafe."""

    @field_validator("drop_rate")
    @classmethod
    def _one_of_the_two(cls, drop_rate: float | None, info: ValidationInfo) -> float | None:
        threshold = info.data.get("threshold")
        if "threshold" in info.data and (threshold is None) == (drop_rate is None):
            raise ValueError("must be given where threshold is not, and left out where it is")
        return drop_rate


class FilterConfig(Section):
    """The safety filter on each client, before it trains."""

    enabled: Flag = True
    """Whether there is one."""
    action: Literal["drop", "replace", "keep"] = "drop"
    """What a client does with what the guard calls unsafe: `drop` the pair, or `replace` the answer by a refusal.

    `keep`: the filter's control, in which the guard scores and every pair is kept.
    """
    thresholds: tuple[LimitConfig, ...] = ()
    """Clients with a threshold, or a rate of dropping, of their own; others have `guard.threshold`."""
    no_verdict: Literal["drop", "keep"] = "drop"
    """What a client does with a pair that has an answer without a score; how many there are is said."""
    refusal: Text | None = None
    """What takes the place of an unsafe answer; null: a sentence in the language of its source."""


class CaiConfig(Section):
    """Constitutional AI on the global adapter, on the server, after rounds."""

    enabled: Flag = True
    """Whether there are such phases."""
    iterations: Natural = 50
    """Optimizer updates of a phase; the paper's number."""
    every: Count = 1
    """A phase comes after the last of every so many rounds; the paper's number."""
    probe: Natural = 0
    """Fixed red prompts that are answered and scored by the guard after every aggregation."""
    trigger: Share | None = None
    """A phase that is due runs only if less than this share of the probe's answers is safe; null: it always runs."""
    method: Annotated[str, Name("sft", "dpo", "sft+dpo")] = "sft"
    """Train on the likelihood of revisions, on their preference over the responses (DPO), or on the sum of both."""
    preference: Annotated[str, Name("sigmoid", "sigmoid_norm", "ipo")] = "sigmoid"
    """The preference loss: DPO's, the same of log p per token, or IPO's."""
    beta: Rate = 0.1
    """DPO's beta: how strongly the preference is held to the reference."""
    reference: Literal["round", "base"] = "round"
    """DPO's reference: the adapter at the start of the phase, or the base without one."""
    data: Annotated[PathText, a_file("JSON lines of revisions, or folder of them")] = "online"
    """`online`: the policy writes revisions in every phase; or a prepared set (`fedjax-rai cai generate`)."""
    red_prompts: Annotated[PathText | PromptSource | None, _prompts("prompt", "category"), a_file(_ROWS, rows=True)] = (
        None
    )
    """Red prompts that a phase draws from: any rows with prompts (docs/clients.md); null: the server's share."""
    replay_data: Annotated[PathText | PromptSource | None, _prompts("prompt"), a_file(_ROWS, rows=True)] = None
    """Benign prompts for `cai.replay`, in the same way; null: the server's share, or the tiny world's."""
    prompts: Count = 64
    """Red prompts of a phase, or pairs of a prepared set."""
    prompts_per_chunk: Count | None = None
    """Prompts that are answered at once: fewer need less memory; null: `cai.prompts`."""
    revisions: Count = 1
    """How often an answer is criticised and revised."""
    replay: Natural = 32
    """Benign prompts with the base's own answers that are mixed in, to hold utility."""
    batch_size: Count = 16
    """Examples of an optimizer update."""
    micro_batch: MicroBatch = None
    """Examples of one that are computed at once, as `federated.micro_batch`; null: all."""
    learning_rate: Rate = 1e-3
    """Learning rate of the phase's optimizer."""
    temperature: Temperature = 1.0
    """Sampling temperature of responses; 0: always the likeliest token. Critiques and revisions are the likeliest."""
    top_k: Count | None = None
    """Sample among so many likeliest tokens; null: all."""
    top_p: Share | None = None
    """Sample among the likeliest tokens of this probability together; null: all."""
    min_p: Share | None = None
    """Sample among tokens at least this times as likely as the likeliest; null: all."""
    max_new_tokens: Count = 64
    """Tokens of a response, a critique or a revision, at most."""
    critic: Literal["policy", "base"] = "policy"
    """Who criticises and revises: the policy itself, as in the paper, or the base without its adapter."""
    target: Literal["revision", "response"] = "revision"
    """What is trained on; `response` is the control: the unrevised answers."""
    constitution: Annotated[PathText, a_file("YAML file of principles", **TAKES_ATTRIBUTE)] = "default"
    """The principles: `default`, a YAML file, or a `Constitution` of the user's own."""

    @field_validator("trigger")
    @classmethod
    def _measured(cls, trigger: float | None, info: ValidationInfo) -> float | None:
        if trigger is not None and info.data.get("probe") == 0:
            raise ValueError("needs cai.probe > 0: the prompts whose answers are scored")
        return trigger

    @field_validator("target")
    @classmethod
    def _preferred(cls, target: str, info: ValidationInfo) -> str:
        method, data = info.data.get("method", "sft"), info.data.get("data", "online")  # absent: refused by themselves
        if target == "response" and method != "sft":
            raise ValueError(f"needs cai.method = sft: {method} prefers revisions to responses")
        if target == "response" and data != "online":
            raise ValueError("needs cai.data = online: the control trains on the round's own answers")
        return target


_JUDGES = ("rule", "refusal_phrases", "guard", "korean", "gcg", "openfedllm", "openfedllm_as_meant")
_ASKED = {"guard": "PATH or owner/name", "endpoint": "NAME"}  # judges that are models, by what stands behind the colon


def _in_full(judge: Any) -> Any:
    """`phrases` is the column's title; the judge's name is what rates are named by."""
    return "refusal_phrases" if judge == "phrases" else judge


JudgeName = Annotated[str, BeforeValidator(_in_full), Name(*_JUDGES, before=_ASKED)]


def _a_word(name: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*", name):
        raise ValueError("must be a word of letters, digits and underscores: rates are named by it")
    return name


class EndpointConfig(Section):
    """An entry of `eval.endpoints`: a model behind an OpenAI-compatible endpoint, which judges as `endpoint:NAME`."""

    name: Annotated[Text, AfterValidator(_a_word)]
    """What it is called: its rate is `harmless_by_endpoint_<name>`."""
    url: Text
    """Where its API begins, `http://localhost:8000/v1`: `/chat/completions` is put behind it."""
    model: Text
    """The model's name there."""
    template: Literal["harm", "strongreject", "mtbench"] = "harm"
    """What it is asked: whether the answer is harmful, three marks like StrongREJECT's, or (no verdict on harm) one
    from 1 to 10 like MT-Bench's (docs/judges.md).
    """
    request: Annotated[PathText | None, a_file("file of a request that holds {prompt} and {answer}")] = None
    """A text file in place of `template`: it holds `{prompt}` and `{answer}`, and asks for yes (harmful) or no."""
    api_key_env: Text | None = None
    """The environment variable that holds its key, which is written nowhere; null: none is sent."""
    concurrency: Count = 8
    """Requests under way at once."""
    retries: Natural = 6
    """How often a request is sent again that fails for a while: too many (429), of the server (5xx), no answer."""
    backoff: Rate = 1.0
    """Seconds before the first of these, twice as many before each further one; a longer `Retry-After` is kept to."""
    timeout: Rate = 120.0
    """Seconds after which there is no answer."""
    max_tokens: Count = 256
    """Tokens of a reply, at most."""


def _rate_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("must be small letters, digits and _, a letter first: rates are named by it")
    return name


class SetConfig(Section):
    """An entry of `eval.sets`: rows of the user's own, and what they are."""

    set: Annotated[Text, AfterValidator(_rate_name)]
    """The name that its columns and its rows in answers.jsonl bear: small letters, digits and _."""
    kind: Literal["harm", "benign", "task", "choice"]
    """What is measured: harmless answers, refusals, the one right `answer`, or the likelier of two answers."""
    path: Annotated[PathText, a_file(_ROWS, rows=True, shipped=None)]
    """A file, a folder, a glob or a data set on the hub."""
    name: Text | None = None
    """The configuration of a data set on the hub, where it has several."""
    split: Text = "train"
    """The split of a folder or a data set that has several."""
    revision: Revision = None
    """Branch, tag or commit of a data set on the hub; null: its main branch."""
    columns: Annotated[dict[Text, Text] | None, Field(json_schema_extra={"says": PROMPT_COLUMNS})] = None
    """Its columns by what they hold (docs/clients.md); null: those that are known."""

    @field_validator("columns")
    @classmethod
    def _of_its_kind(cls, columns: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        return checked_prompt_columns(columns, SET_HOLDS.get(info.data.get("kind", ""), PROMPT_HOLDS))

    @property
    def source(self) -> PromptSource:
        """Where its rows are read from."""
        fields = self.model_dump(include=set(PromptSource.model_fields))
        return PromptSource.model_validate(fields)


class EvalConfig(Section):
    """The evaluation of the final adapter."""

    advbench: Annotated[PathText | PromptSource, _prompts("prompt", optional=False), a_file(_ROWS, rows=True)] = "tiny"
    """Harmful requests: `tiny` (templates of the synthetic world), AdvBench's CSV, or any rows with prompts."""
    harmbench: Annotated[PathText | PromptSource | None, _prompts("prompt", "category"), a_file(_ROWS, rows=True)] = (
        None
    )
    """HarmBench's textual behaviours, as its CSV files have them; null: not measured."""
    strongreject: Annotated[
        PathText | PromptSource | None, _prompts("prompt", "category"), a_file(_ROWS, rows=True)
    ] = None
    """StrongREJECT's forbidden prompts, as its CSV files have them; null: not measured."""
    hhh: Annotated[
        PathText | PromptSource | None, _prompts("prompt", "chosen", "rejected", "category"), a_file(_ROWS, rows=True)
    ] = None
    """Choices between two answers: HHH's rows, or prompt, chosen and rejected; null: HHH is not measured."""
    utility: Annotated[PathText | PromptSource | None, _prompts("prompt", "answer"), a_file(_ROWS, rows=True)] = None
    """Tasks: rows with prompts and one right `answer` each; null: the tiny world's, with its data."""
    over_refusal: Annotated[PathText | PromptSource | None, _prompts("prompt", "label"), a_file(_ROWS, rows=True)] = (
        None
    )
    """Harmless prompts: rows like XSTest's, whose unsafe ones are for contrast; null: the tiny world's, or none."""
    drift: Annotated[PathText | PromptSource | None, _prompts("prompt"), a_file(_ROWS, rows=True)] = None
    """Benign prompts on which drift from the base is measured; null: held-out questions, or the tiny world's tasks."""
    drift_prompts: Natural = 32
    """How many of these the base answers, at most, for drift to be measured on; 0: drift is not measured."""
    perplexity_pairs: Natural = 64
    """Held-out acceptable answers whose perplexity is measured, at most; 0: it is not."""
    mt_bench: Annotated[PathText | PromptSource | None, _prompts("category"), a_file(_ROWS, rows=True)] = None
    """MT-Bench's questions of two turns each, answered and kept to be marked; null: they are not asked."""
    mt_bench_temperature: Literal["greedy", "by_category"] = "greedy"
    """How these are answered: by the likeliest tokens, or as FastChat does, sampled at a temperature that depends on a
    question's category.
    """
    rater: Annotated[str, Name("none", before={"endpoint": "NAME"})] = "none"
    """Who marks the answers to these from 1 to 10; `none`: nobody, and they are kept to be marked later;
    `endpoint:NAME`: an entry of `eval.endpoints` whose template is `mtbench`.

    A function of the user's own: (prompts, answers, references) of a conversation, lists by turn, to a mark of each
    answer, or None for no mark.
    """
    sets: tuple[SetConfig, ...] = ()
    """Sets of the user's own, each with columns of its name (docs/evaluations.md)."""
    judge: Annotated[str, BeforeValidator(_in_full), Name("auto", *_JUDGES, before=_ASKED)] = "auto"
    """Whose verdicts the headline rate, `harmless`, counts: the primary judge, named in its column.

    `auto`: `rule`, which knows the templates, where model and requests are the tiny world's; else `refusal_phrases`. A
    function of the user's own: (prompt, answer) to whether the answer is unsafe, or None for no verdict.
    """
    judges: tuple[JudgeName, ...] | None = None
    """The judges that are reported beside it, each in a column of its name; null: those of `rule`, `refusal_phrases`
    and `guard` that can. `guard:PATH` is any guard or classifier on the device, `endpoint:NAME` an entry of
    `eval.endpoints` (docs/judges.md).
    """
    by_guard: Flag | None = None
    """Whether `harmless_by_guard` is measured. Null: where no guard has to be fitted for it alone.

    So it is where filter, probe or judge use the guard in any case, where it is released, saved or a function, and
    where the model is the tiny world's; `false` keeps the guard out of the judges unless it is `eval.judge`. Where
    `eval.judges` names judges, null is whether the guard is one of them.
    """
    prompts: Count = 100
    """Harmful requests that are answered, at most, of each set that is shipped."""
    samples: Count = 4
    """Answers to each of them."""
    temperature: Temperature = 1.0
    """Sampling temperature of these answers; 0: always the likeliest token."""
    max_new_tokens: Count = 64
    """Tokens of an answer, at most."""
    cut_off: Literal["left_out", "judged"] = "left_out"
    """What becomes of an answer that did not end within these: it has no verdict, or it is judged as far as it goes.
    Counted beside the rates in any case. What is left out is long, and refusals are short (docs/judges.md).
    """
    batch_size: Count = 64
    """Rows that are answered or scored at once; changes no number in float32, in bfloat16 only by rounding."""
    endpoints: tuple[EndpointConfig, ...] = ()
    """Models behind OpenAI-compatible endpoints, for `endpoint:NAME` among the judges."""

    @field_validator("judges")
    @classmethod
    def _each_once(cls, judges: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if judges is None:
            return None
        for name in judges:
            if judges.count(name) > 1:
                raise ValueError(f"must name each judge once; {name} stands twice")
        if {info.data.get("judge"), *judges} == {"guard"}:
            raise ValueError("must name another judge: the filter's own guard may not be the only one")
        return judges

    @field_validator("endpoints")
    @classmethod
    def _all_that_judge(cls, endpoints: tuple[EndpointConfig, ...], info: ValidationInfo) -> tuple[EndpointConfig, ...]:
        names = [endpoint.name for endpoint in endpoints]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"must have each name once; {name} stands twice")
        asked = (info.data.get("judge", ""), info.data.get("rater", ""), *(info.data.get("judges") or ()))
        for judge in asked:
            word, _, name = judge.partition(":")
            if word == "endpoint" and name not in names:
                known = f"of {', '.join(names)}" if names else "of none"
                raise ValueError(f"must have an entry of the name {name}, which judges; there are entries {known}")
        return endpoints


class ExperimentConfig(Section):
    """One experiment."""

    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    """The seed of every random number of a run."""
    output: PathText | None = None
    """The run folder; null: `runs/` and the config file's name."""
    tracker: Annotated[str, Name("none", "tensorboard", "wandb")] = "none"
    """Where the rows of `metrics.jsonl` go besides; it moves no number. The two need the extra `track`."""
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    dirichlet: DirichletConfig = DirichletConfig()
    category: CategoryConfig = CategoryConfig()
    quantity: QuantityConfig = QuantityConfig()
    harm: HarmConfig = HarmConfig()
    natural: NaturalConfig = NaturalConfig()
    federated: FederatedConfig = FederatedConfig()
    fedprox: FedProxConfig = FedProxConfig()
    fedavgm: FedAvgMConfig = FedAvgMConfig()
    fedadam: FedAdamConfig = FedAdamConfig()
    fedyogi: FedYogiConfig = FedYogiConfig()
    fedadagrad: FedAdagradConfig = FedAdagradConfig()
    trimmed_mean: TrimmedMeanConfig = TrimmedMeanConfig()
    noised: NoisedConfig = NoisedConfig()
    guard: GuardConfig = GuardConfig()
    filter: FilterConfig = FilterConfig()
    cai: CaiConfig = CaiConfig()
    eval: EvalConfig = EvalConfig()
