"""What the phases of a run cost: seconds, tokens, FLOPs, and the share that a full epoch of CAI would have added.

Not counted: fitting the guard, its scores (of the filter and of the probe), evaluation, and the probe's tokens.

FLOPs are those of the matrix products, without attention's own and without padding: 2 a parameter and token forward; a
training step of an adapter takes 4 for the frozen base, whose own gradient nobody needs, and 6 for the adapter.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_rai.config.files import ONLINE
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.architecture import FUSED, DecoderConfig, fan_in, outputs
from fedjax_rai.model.lora import Lora, size
from fedjax_rai.text.compare import same


class Spent(NamedTuple):
    """What local training, or a CAI phase, took in one round."""

    seconds: float
    generated_tokens: float
    read_tokens: float
    trained_tokens: float
    step_tokens: float
    learnt: bool = True  # there was a revision to learn from, and what came of it was kept


class LocalCost(NamedTuple):
    """Local training over all rounds. The guard and the filter's scores are not counted."""

    generated_tokens: int
    """Tokens; always 0, as clients generate nothing."""
    read_tokens: int
    """Tokens; always 0, as clients read nothing that they do not train on."""
    trained_tokens: int
    """Tokens in the loss, over all rounds, clients and local steps."""
    step_tokens: int
    """Tokens that went through the local steps, prompts included, padding not."""
    flops: float
    """FLOPs of the matrix products, without attention's own and without padding."""
    seconds: float
    """Seconds: rounds x the median of all rounds but the first, which compiles."""


class ProbeCost(NamedTuple):
    """The probe over all rounds: its tokens and FLOPs, and the guard's, are not counted."""

    probes: int
    """Rounds after which there was a probe."""
    seconds: float
    """Seconds: probes x the median of all probes but the first, which compiles."""


class CaiCost(NamedTuple):
    """Constitutional AI over all its phases."""

    generated_tokens: int
    """Tokens of responses, critiques and revisions; 0 where the pairs are prepared."""
    read_tokens: int
    """Tokens read in order to generate and, for a preference, to compute the reference's log-probabilities."""
    trained_tokens: int
    """Tokens in the loss, replayed answers included."""
    step_tokens: int
    """Tokens that went through the iterations, prompts included, padding not."""
    flops: float
    """FLOPs of the matrix products, without attention's own and without padding."""
    phases: int
    """Phases that there were."""
    untrained_phases: int
    """Phases without a single revision to learn from, and phases that diverged, which are undone."""
    seconds: float
    """Seconds: phases x the median of all phases but the first, which compiles."""
    full_epoch_flops: float
    """FLOPs had each phase that trained revised each of the server's questions once, and trained on each once."""
    share_saved: float | None
    """1 - flops / full_epoch_flops; negative where more was spent. Null: no phase trained, so nothing was saved."""


class Cost(NamedTuple):
    """What a run cost, by phase. Fitting the guard, the filter's scores and evaluation are not counted."""

    local: LocalCost
    """Local training."""
    probe: ProbeCost | None
    """The probe. Null: there was none."""
    cai: CaiCost | None
    """Constitutional AI. Null: there was no phase."""


class Parameters(NamedTuple):
    """What a token is multiplied with."""

    kernels: int  # of the base, with the unembedding
    unembedding: int  # those of the kernels that give logits
    adapter: int
    remat: bool  # a step does the forward pass of the layers twice


class Epoch(NamedTuple):
    """A full epoch of CAI, and a phase as it was."""

    questions: int  # all that there are
    prompts: int  # of a phase
    replay: int  # benign answers, of which each batch has its share
    batch_size: int
    iterations: int


def parameters(model: DecoderConfig, lora: Lora) -> Parameters:
    """Those of a base and its adapter."""
    return Parameters(kernels(model), unembedding(model), size(model, lora), model.remat != "none")


def kernels(model: DecoderConfig) -> int:
    """Parameters of the base that a token is multiplied with: all kernels, and the unembedding."""
    layer = sum(fan_in(model, kernel) * sum(outputs(model, kernel).values()) for kernel in FUSED)
    return model.num_hidden_layers * layer + unembedding(model)


def unembedding(model: DecoderConfig) -> int:
    """Parameters of the base that a token is multiplied with for its logits."""
    return model.vocab_size * model.hidden_size


def forward_flops(count: Parameters) -> int:
    """FLOPs of one token in a forward pass."""
    return 2 * (count.kernels + count.adapter)


def step_flops(count: Parameters) -> int:
    """FLOPs of one token in a training step."""
    again = forward_flops(count) - 2 * count.unembedding if count.remat else 0
    return 4 * count.kernels + 6 * count.adapter + again


def seconds(rounds: Sequence[float]) -> float:
    """Rounds x the median one, the first left out where there are others: whichever arm comes first compiles."""
    if not rounds:
        return 0.0
    return round(len(rounds) * float(np.median(rounds[1:] or rounds)), 1)


def flops(count: Parameters, rounds: Sequence[Spent]) -> tuple[float, float]:
    """FLOPs of (what was generated and read, training steps)."""
    forward = sum(spent.generated_tokens + spent.read_tokens for spent in rounds)
    steps = sum(spent.step_tokens for spent in rounds)
    return float(forward * forward_flops(count)), float(steps * step_flops(count))


def full_epoch_flops(count: Parameters, rounds: Sequence[Spent], epoch: Epoch) -> float:
    """FLOPs of the same phases, had each revised every question once and trained on each once.

    A batch holds `batch_size * prompts / (prompts + replay)` revisions in the mean.
    """
    forward, steps = flops(count, rounds)
    iterations = -(-epoch.questions * (epoch.prompts + epoch.replay) // (epoch.batch_size * epoch.prompts))
    return forward * epoch.questions / epoch.prompts + steps * iterations / epoch.iterations


def local_cost(count: Parameters, rounds: Sequence[Spent]) -> LocalCost:
    """Totals of local training."""
    return LocalCost(
        generated_tokens=_total(spent.generated_tokens for spent in rounds),
        read_tokens=_total(spent.read_tokens for spent in rounds),
        trained_tokens=_total(spent.trained_tokens for spent in rounds),
        step_tokens=_total(spent.step_tokens for spent in rounds),
        flops=sum(flops(count, rounds)),
        seconds=seconds([spent.seconds for spent in rounds]),
    )


def cai_cost(count: Parameters, rounds: Sequence[Spent], epoch: Epoch) -> CaiCost:
    """Totals of the phases; one that learnt nothing costs what it costs, and saves nothing."""
    total = local_cost(count, rounds)
    learnt = [spent for spent in rounds if spent.learnt]
    full = full_epoch_flops(count, learnt, epoch)
    return CaiCost(
        **total._asdict(),
        phases=len(rounds),
        untrained_phases=len(rounds) - len(learnt),
        full_epoch_flops=full,
        share_saved=1 - total.flops / full if full else None,
    )


def full_epoch(setting: Setting) -> Epoch:
    """A run's full epoch: each distinct red question of the server's, or each prepared pair."""
    cai, materials = setting.config.cai, setting.texts.materials
    if cai.data == ONLINE:
        questions = len({same(prompt.query) for prompt in materials.red_prompts})
    else:
        questions = len(setting.revising.prepared.chosen.tokens)
    return Epoch(questions, cai.prompts, len(materials.benign_prompts), cai.batch_size, cai.iterations)


def _total(values: Iterable[float]) -> int:
    return int(sum(values))
