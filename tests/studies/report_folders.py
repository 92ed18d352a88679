"""Folders of runs as a report reads them, written by hand: no run is computed."""

from pathlib import Path
from typing import Any

from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.evals.evaluation import AnswerRow, ChoiceRow, ConversationRow, TokensRow
from fedjax_rai.evals.rate import Rate, Verdict
from fedjax_rai.runs import files, rows
from fedjax_rai.runs.rows import Probe
from tests.tiny_runs import CAI, ROUND, SUMMARY, vary

RED, BENIGN = "advbench", "over_refusal"
SCRIPT = "<script>alert('owned')</script><img src=x onerror=alert(1)>"
HANGUL, ARABIC = "안녕하세요, 도와드릴 수 없습니다.", "مرحبا، لا أستطيع"
LONG = "word " * 4000


def asked(name: str, prompt: str, answers: list[str], verdicts: dict[str, list[Verdict]]) -> AnswerRow:
    return AnswerRow(name, prompt, answers, [False] * len(answers), verdicts, {}, None)


def harm(prompt: str, answer: str, by_rule: bool | None, by_phrases: bool | None) -> AnswerRow:
    """An answer to a red prompt; the rule is the primary judge."""
    verdicts: dict[str, list[Verdict]] = {
        "harmless": [by_rule],
        "harmless_by_rule": [by_rule],
        "harmless_by_refusal_phrases": [by_phrases],
    }
    return asked(RED, prompt, [answer], verdicts)


def rates_of(answer_rows: list) -> dict[str, Any]:
    """What eval.json says of rows."""
    by_rate: dict[str, list] = {}
    for row in answer_rows:
        for rate, verdicts in getattr(row, "verdicts", {}).items():
            by_rate.setdefault(rate, []).append(verdicts)
    found = {}
    for rate, verdicts in by_rate.items():
        judge = "refusal_phrases" if "phrases" in rate or rate == BENIGN else "rule"
        made = Rate.of(verdicts, judge)
        found[rate] = made and made._replace(answers=len(verdicts))
    found["drift"] = Rate(0.05, 0.01, 0.09, 1, judge="base", unit="nats a token")
    return found


def write_run(folder: Path, config: ExperimentConfig, answer_rows: list, **summary: Any) -> Path:
    """A finished run's folder."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(vary(config, output=str(folder))))
    rounds = [ROUND._replace(round=t, probe=Probe(0.5 + 0.1 * t, 0.5), cai_seconds=1.0) for t in (1, 2)]
    files.write_rows(folder / "metrics.jsonl", [rows.flat(row) for row in rounds])
    files.write_rows(folder / "answers.jsonl", [row._asdict() for row in answer_rows])
    files.write_json(folder / "versions.json", [{"python": "3.11", "platform": "x", "packages": {"jax": "0.1"}}])
    made = SUMMARY._replace(rates=rates_of(answer_rows), seed=config.seed, **summary)
    files.write_json(folder / "summary.json", made)
    return folder


def some_rows(harmless: int) -> list:
    """Ten red prompts, of which the first so many got a harmless answer, three others, and a choice."""
    found: list = [harm(f"request {i}", f"answer {i}", i < harmless, i % 2 == 0) for i in range(10)]
    found += [
        asked(BENIGN, "How do I stop a process?", [SCRIPT], {BENIGN: [False]}),
        asked(BENIGN, HANGUL, [ARABIC, ""], {BENIGN: [True, None]}),
        asked(BENIGN, "Tell me a long story.", [LONG], {BENIGN: [False]}),
    ]
    verdict: dict[str, list[Verdict]] = {"hhh": [True], "hhh_honest": [True]}
    found.append(
        ChoiceRow(
            set="hhh",
            prompt="Who is right?",
            good="the good",
            bad="the <b>bad</b>",
            category="honest",
            good_logp=-1.5,
            bad_logp=None,
            good_tokens=3,
            bad_tokens=4,
            whole=True,
            verdicts=verdict,
        )
    )
    found.append(TokensRow("drift", "What is 3 plus 4?", "It is 7.", 0.25, 5))
    found.append(
        ConversationRow("mt_bench", ["Write.", "Again."], ["First.", ""], [], "writing", [False] * 2, [7.0, None])
    )
    return found


def write_table(folder: Path, config: ExperimentConfig, seeds: int = 2) -> Path:
    """A table of two arms: 4 and 8 of 10 harmless, of the second with constitutional AI."""
    for seed in range(seeds):
        of_seed = vary(config, seed=seed, cai={"probe": 8})
        write_run(folder / f"seed{seed}" / "fl", vary(of_seed, cai={"enabled": False}), some_rows(4))
        cost = SUMMARY.cost._replace(cai=CAI)
        write_run(folder / f"seed{seed}" / "fl+cai", of_seed, some_rows(8), cost=cost)
    (folder / "table.yaml").write_text(dump_config(config))
    return folder
