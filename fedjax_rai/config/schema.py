"""The experiment's configuration: frozen, strict, and explicit about what is wrong with it.

Defaults are the paper's numbers (arXiv 2502.16691) where it gives one, else those of the tiny world, whose model and
data are the default too. Needs no jax. Paths are relative to the current directory, not to the config file.
"""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

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


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelConfig(Section):
    """The frozen base: `path` is "tiny" (the shipped synthetic one), a Hugging Face folder, or owner/name on the hub.

    `revision` is the branch, tag or commit of a hub name, null for its main branch. `dtype` is that of base and
    activations, `quantize` that of its kernels; adapters are float32. `remat` full: the backward pass computes
    every layer again, for want of memory.
    """

    path: PathText = "tiny"
    revision: Revision = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["xla", "chunked", "cudnn", "splash"] = "xla"
    quantize: Literal["none", "int8", "nf4"] = "none"
    remat: Literal["none", "full"] = "none"


class LoraConfig(Section):
    """The shape of every adapter, in PEFT's terms; its output is scaled by alpha / rank (`rslora`: alpha / sqrt(rank)).

    `targets` and `layers` null: all of them. Patterns give modules whose name ends in a regular expression a rank or an
    alpha of their own. `dropout` is the share of each adapter's inputs that a client's training zeroes, anew in every
    local step; nothing else drops any.
    """

    rank: Count = 8
    alpha: Rate = 16.0
    targets: tuple[Target, ...] | None = None
    rslora: Flag = False
    layers: tuple[Natural, ...] | None = None
    rank_pattern: dict[Pattern, Count] = {}
    alpha_pattern: dict[Pattern, Rate] = {}
    dropout: Decay = 0.0

    @field_validator("targets", "layers")
    @classmethod
    def _distinct(cls, values: tuple | None) -> tuple | None:
        if values is not None and not 0 < len(values) == len(set(values)):
            raise ValueError("must name at least one, and each once; null for all")
        return values


class MeshConfig(Section):
    """How many ways the base is split over devices: its rows (`fsdp`), and its heads and columns (`tensor`).

    What is left of the devices maps over clients.
    """

    fsdp: Count = 1
    tensor: Count = 1


class DataConfig(Section):
    """Training pairs: `train` is "tiny" (the synthetic world), a SQuARe JSON file, or what `datasets` reads.

    `red` and `acceptable` are numbers of pairs, null for as many as there are at the paper's ratio of 3 to 7.
    `packing`: short examples of a local step share rows, which changes no number but the time. `split` says which half
    of the tiny world is evaluated: settings are tuned on one, reported on the other.
    """

    train: PathText = "tiny"
    language: Literal["en", "ko"] = "en"
    red: Natural | None = None
    acceptable: Natural | None = None
    max_length: Annotated[int, Field(strict=True, ge=16)] = 256
    packing: Flag = False
    split: Literal["tune", "test"] = "test"


class FederatedConfig(Section):
    """`cohort` of `clients` train `local_steps` in each of `rounds`; chunks of them are mapped at once.

    Algorithms and aggregators that have numbers have a section of their name. `optimizer` is the clients', of gradients
    clipped to `clip_norm` (null: not), with `weight_decay` (adam and sgd: added to the gradient; adamw: to the
    direction). `schedule` leads the learning rate over the rounds from `learning_rate` towards `final_learning_rate`
    (constant does not read it).
    """

    algorithm: Literal["fedavg", "scaffold", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = "fedavg"
    aggregator: Literal["weighted_mean", "median", "trimmed_mean"] = "weighted_mean"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Weight = 0.0
    clip_norm: Rate | None = 1.0
    clients: Count = 20
    cohort: Count = 5
    rounds: Natural = 50
    local_steps: Count = 25
    batch_size: Count = 16
    learning_rate: Rate = 2e-3
    schedule: Literal["constant", "cosine"] = "constant"
    final_learning_rate: Weight = 0.0
    clients_per_chunk: Count = 1

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
        if final > initial:
            raise ValueError(f"must be at most federated.learning_rate = {initial}: schedules fall")
        return final


class FedProxConfig(Section):
    """FedProx (arXiv 1812.06127): `mu` / 2 times the squared distance from the received adapter joins the loss."""

    mu: Weight = 0.01


class FedAvgMConfig(Section):
    """FedAvgM (arXiv 1909.06335): the server's momentum and learning rate."""

    momentum: Decay = 0.9
    learning_rate: Rate = 1.0


class FedAdamConfig(Section):
    """FedAdam (arXiv 2003.00295): the server's learning rate, decays of both moments, and `tau`, added to the root."""

    learning_rate: Rate = 1e-2
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Rate = 1e-3


class FedYogiConfig(Section):
    """FedYogi (arXiv 2003.00295): the server's learning rate, decays of both moments, and `tau`, added to the root."""

    learning_rate: Rate = 1e-2
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Rate = 1e-3


class FedAdagradConfig(Section):
    """FedAdagrad (arXiv 2003.00295): the server's learning rate, decay of the first moment, and `tau`."""

    learning_rate: Rate = 1e-2
    beta1: Decay = 0.0
    tau: Rate = 1e-3


class TrimmedMeanConfig(Section):
    """The trimmed mean (arXiv 1803.01498): of every coordinate, this share of clients is left out at either end."""

    share: Annotated[float, Field(ge=0, lt=0.5), _Real] = 0.1


class GuardConfig(Section):
    """The safety classifier: the base, fitted on `pairs`, of whose labels a share `label_noise` is flipped.

    Or, with a `path` (a Hugging Face folder, or owner/name at `revision` on the hub), that model as released: Llama
    Guard, or any chat model that is asked.
    """

    path: PathText | None = None
    revision: Revision = None
    pairs: Annotated[int, Field(strict=True, ge=2)] = 400
    steps: Natural = 20
    batch_size: Count = 32
    learning_rate: Rate = 1e-3
    threshold: Annotated[float, Field(gt=0, lt=1), _Real] = 0.5
    label_noise: Annotated[float, Field(ge=0, lt=0.5), _Real] = 0.0


class FilterConfig(Section):
    """The filter on each client; `keep_all` is its control: the guard scores, nothing is dropped."""

    enabled: Flag = True
    keep_all: Flag = False


class CaiConfig(Section):
    """Constitutional AI on the global adapter after each `every`th round: `iterations` optimizer steps.

    `prompts` red ones a round are answered (at `temperature`, among the likeliest tokens by `top_k`, `top_p`, `min_p`,
    null for all), then criticised and revised `revisions` times; `prompts_per_chunk` at once, null for all. `replay`
    benign ones, answered by the base, are mixed in. `critic` base switches the adapter off for critique and revision.
    `target` response is the control: training on the unrevised answers. `constitution` is "default" or a YAML file.
    `data` is "online" for all this, or a prepared set (`fedjax-rai cai generate`), of which `prompts` pairs a round are
    taken instead.

    `method`: likelihood of the revisions, preference of revision over response, or the sum of both. `preference` is its
    loss (`train.losses`), with `beta` and, as the reference, the round's own starting adapter or the base.

    `probe` fixed red prompts are answered, and the answers scored by the guard, after every aggregation; with a
    `trigger`, a phase that is due runs only if less than that share of them is safe.
    """

    enabled: Flag = True
    iterations: Natural = 50
    every: Count = 1
    probe: Natural = 0
    trigger: Share | None = None
    method: Literal["sft", "dpo", "sft+dpo"] = "sft"
    preference: Literal["sigmoid", "sigmoid_norm", "ipo"] = "sigmoid"
    beta: Rate = 0.1
    reference: Literal["round", "base"] = "round"
    data: PathText = "online"
    prompts: Count = 64
    prompts_per_chunk: Count | None = None
    revisions: Count = 1
    replay: Natural = 32
    batch_size: Count = 16
    learning_rate: Rate = 1e-3
    temperature: Temperature = 1.0
    top_k: Count | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    max_new_tokens: Count = 64
    critic: Literal["policy", "base"] = "policy"
    target: Literal["revision", "response"] = "revision"
    constitution: PathText = "default"

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


class EvalConfig(Section):
    """Safety evaluation: `samples` answers to each of `prompts` requests of `advbench` ("tiny" or a CSV file)."""

    advbench: PathText = "tiny"
    prompts: Count = 100
    samples: Count = 4
    temperature: Temperature = 1.0
    max_new_tokens: Count = 64
    batch_size: Count = 64


class ExperimentConfig(Section):
    """One experiment. `output` is its run folder; a loaded config has `runs/<stem of the file>` for null."""

    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    output: PathText | None = None
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    federated: FederatedConfig = FederatedConfig()
    fedprox: FedProxConfig = FedProxConfig()
    fedavgm: FedAvgMConfig = FedAvgMConfig()
    fedadam: FedAdamConfig = FedAdamConfig()
    fedyogi: FedYogiConfig = FedYogiConfig()
    fedadagrad: FedAdagradConfig = FedAdagradConfig()
    trimmed_mean: TrimmedMeanConfig = TrimmedMeanConfig()
    guard: GuardConfig = GuardConfig()
    filter: FilterConfig = FilterConfig()
    cai: CaiConfig = CaiConfig()
    eval: EvalConfig = EvalConfig()
