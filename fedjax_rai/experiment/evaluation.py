"""The evaluation of one adapter: harmless rate, HHH, utility, over-refusal; every judge beside the others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.schema import TINY, EvalConfig
from fedjax_rai.evals.choice import hhh, preferred
from fedjax_rai.evals.judge import knows_templates, refuses
from fedjax_rai.evals.open_ended import Rate, answer, share
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.safety.guard import score

JUDGED = 512  # conversations that `critique` looks at


def evaluate(setting: Setting, adapter: Adapter) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(rates by name, rows of all answers). A rate is {mean, low, high, prompts} in percent, or None: not measured.

    The primary judge of harm is the one that the model and the prompts allow: the rule judge, which knows the
    templates, where both are the tiny world's; else refusal phrases.
    """
    own, materials = setting.config.eval, setting.texts.materials
    red = ask(setting, adapter, materials.advbench, "advbench", own.temperature, own.samples)
    tasks = ask(setting, adapter, [q.query for q in materials.utility], "utility", 0.0, 1)
    benign = ask(setting, adapter, materials.over_refusal, "over_refusal", own.temperature, own.samples)
    unsafe = knows_templates()
    rule_applies = setting.config.model.path == setting.config.eval.advbench == TINY
    threshold = setting.config.guard.threshold
    verdicts = guard_verdicts(setting, materials.advbench, red, threshold) if setting.guarding.possible else None
    by_rule = share(red, lambda text: not unsafe(text)) if rule_applies else None
    by_phrases = share(red, refuses)
    good, whole = preferred(
        setting.lm,
        adapter,
        setting.models.tokenizer,
        materials.choices,
        setting.config.data.max_length,
        own.batch_size,
    )
    exact = [[said[0] == q.answer] for said, q in zip(tasks, materials.utility, strict=True)]
    rates = {
        "harmless": by_rule or by_phrases,
        "harmless_by_rule": by_rule,
        "harmless_by_refusal_phrases": by_phrases,
        "harmless_by_guard": None if verdicts is None else Rate.of(~verdicts),
        "utility": Rate.of(np.array(exact)) if exact else None,
        "over_refusal": share(benign, refuses) if benign else None,
        "hhh": None,
    }
    rates |= {
        f"hhh_{name}" if name != "all" else "hhh": rate for name, rate in hhh(materials.choices, good, whole).items()
    }
    rows = [{"set": "advbench", "query": q, "answers": a} for q, a in zip(materials.advbench, red, strict=True)]
    rows += [
        {"set": "utility", "query": q.query, "answers": a, "right": q.answer}
        for q, a in zip(materials.utility, tasks, strict=True)
    ]
    rows += [
        {"set": "over_refusal", "query": q, "answers": a} for q, a in zip(materials.over_refusal, benign, strict=True)
    ]
    return {name: rate and rate._asdict() for name, rate in rates.items()}, rows


def ask(
    setting: Setting, adapter: Adapter, queries: Sequence[str], name: str, temperature: float, samples: int
) -> list[list[str]]:
    own: EvalConfig = setting.config.eval
    key = rng.stream(setting.root, f"eval {name}")
    return answer(
        setting.lm, adapter, setting.models.tokenizer, queries, key, samples=samples, temperature=temperature,
        max_new=own.max_new_tokens, max_length=setting.config.data.max_length, batch_size=own.batch_size,
    )  # fmt: skip


def critique(setting: Setting, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What revision made of responses, over rows of `revisions.jsonl`: shares in percent, None of none.

    A revision that is empty or was cut off made nothing safe.

    By the rule judge where the prompts are the tiny world's, else by the guard, else by refusal phrases. Of many rows
    as many as `JUDGED`, evenly over the run.
    """
    some = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), JUDGED)).astype(int))]
    before, after = ([row["response"] for row in some], [row["revisions"][-1] for row in some])
    judge, unsafe = _judge(setting, [row["prompt"] for row in some])
    harmful, still = unsafe(before), unsafe(after)
    same = np.array([a == b for a, b in zip(before, after, strict=True)])
    whole = np.array([row["whole"] for row in some])

    def share(hits: np.ndarray, of: np.ndarray) -> float | None:
        return 100 * float(hits[of].mean()) if of.any() else None

    return {
        "judge": judge,
        "unsafe": int(harmful.sum()),
        "made_safe": share(~still & whole, harmful),
        "safe": int((~harmful).sum()),
        "left_alone": share(same, ~harmful),
        "made_unsafe": share(still, ~harmful),
    }


def _judge(setting: Setting, prompts: Sequence[str]) -> tuple[str, Callable[[Sequence[str]], np.ndarray]]:
    """(its name, answers to these prompts -> bool[n]: unsafe)."""
    if setting.config.model.path == setting.config.data.train == TINY:
        knows = knows_templates()
        return "rule", lambda texts: np.array([knows(text) for text in texts])
    if setting.guarding.possible:
        threshold = setting.config.guard.threshold
        return "guard", lambda texts: score(setting.guarding.guard, list(zip(prompts, texts, strict=True))) >= threshold
    return "refusal phrases", lambda texts: np.array([not refuses(text) for text in texts])


def guard_verdicts(setting: Setting, queries: Sequence[str], answers: Sequence[Sequence[str]], threshold: float):
    """bool[n, samples]: the guard calls the answer unsafe."""
    pairs = [(query, text) for query, samples in zip(queries, answers, strict=True) for text in samples]
    return (score(setting.guarding.guard, pairs) >= threshold).reshape(len(queries), -1)
