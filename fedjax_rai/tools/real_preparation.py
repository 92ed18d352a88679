r"""What a small real model is prepared on before the federated rounds: refusals, its own answers, critiques, revisions.

    python -m fedjax_rai.tools.real_preparation prompts OUT --hh harmless.jsonl.gz --advbench harmful_behaviors.csv \
      --xstest xstest_prompts.csv
    fedjax-rai generate MODEL --prompts OUT/prompts.jsonl --json > OUT/answers.jsonl
    python -m fedjax_rai.tools.real_preparation rows OUT MODEL

A model of 135 million parameters hardly refuses, and cannot criticise or revise. The rows teach it all three: red
prompts with refusals, benign prompts with the model's own answers, and for both what follows when it is asked for a
critique and a revision. Which prompts are prepared on, tuned on and reported on depends on their texts alone.
"""

import csv
import gzip
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_rai import terminal
from fedjax_rai.cai.constitution import Constitution, find_constitution
from fedjax_rai.data.prompts import read_harmless, read_prompts
from fedjax_rai.errors import InputError
from fedjax_rai.reading import decode_text, parse_json
from fedjax_rai.runs.files import write_text
from fedjax_rai.text.compare import same
from fedjax_rai.text.prompts import USER, Renderer, Turn, answered
from fedjax_rai.text.tokenizer import PROBE, load_tokenizer

HH_PREPARED, HH_TUNED, HH_SERVER = 420, 64, 256
"""First prompts of hh's transcripts: to prepare on, to tune on, and, where clients hold transcripts of the rest, the
server's."""
CLIENT_TURNS = 2
"""Turns of the human in a client's transcript, at most, so that a pair stays short."""
CHAINS = 160
"""Prompts of either kind that are also criticised and revised."""
ANSWER_WORDS = 40
"""Words of an answer that is criticised, at most, so that a conversation stays short."""

REFUSALS = (
    "I'm sorry, but I can't help with that. It could hurt someone, and I don't want to be part of that.",
    "I won't help with this. If something is troubling you, I would be glad to talk about that instead.",
    "I can't do that. What you ask for could cause harm, so I have to leave it at that.",
    "I'm sorry, but this is not something I will write. I can help with a safe and lawful alternative.",
    "No, I will not help with that, because people could get hurt. Is there something else I can do for you?",
    "I can't assist with this request. It goes against the safety of others.",
    "I'm sorry, I can't go along with that. Please treat others as you would like to be treated.",
    "I won't give instructions for this. Doing it could be dangerous and against the law.",
    "I must decline. This could do real damage to people, and I would rather help you with something good.",
    "I cannot help with that. If you or somebody else is in danger, please reach out to someone you trust.",
)
HARMFUL_CRITIQUES = (
    "Yes. The question invites harm, and my answer went along with it instead of declining.",
    "Yes. My answer could help somebody to hurt others, so it should have been a refusal.",
    "Yes, it does. I should have declined, and said why.",
)
HARMLESS_CRITIQUES = (
    "No. The question is harmless, and so is my answer.",
    "No. There is nothing in my answer that could hurt anyone.",
)
SUBJECTS = (
    "the water cycle", "how bread rises", "why leaves turn red in autumn", "the rules of chess", "how a bicycle works",
    "the moon's phases", "why we sleep", "how bees make honey", "what a budget is", "how tides come about",
    "photosynthesis", "how to read a map", "what makes a good friend", "how vaccines work", "why the sky is blue",
    "how to grow tomatoes", "what an atom is", "how computers store numbers", "why volcanoes erupt",
    "the life of a butterfly", "how to boil an egg", "how to kill a stuck process on a computer",
    "how to shoot a good portrait photo", "how to blow up a balloon without getting tired",
)  # fmt: skip
TASKS = (
    "Explain {subject} in two sentences.",
    "Give me three facts about {subject}.",
    "I have to talk to children about {subject}. How would you begin?",
    "Write a short poem about {subject}.",
    "What is a common mistake that people make about {subject}?",
    "Ask me one question that tests whether I understand {subject}.",
    "Can you tell me something about {subject}?",
    "Summarise {subject} for a busy reader.",
)
BENIGN = tuple(task.format(subject=subject) for subject in SUBJECTS for task in TASKS)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def prompts(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder.")],
    hh: Annotated[Path, typer.Option(metavar="FILE", help="hh-rlhf's harmless-base, JSON lines, gzipped or not.")],
    advbench: Annotated[Path, typer.Option(metavar="FILE", help="AdvBench's CSV file.")],
    xstest: Annotated[Path, typer.Option(metavar="FILE", help="XSTest's CSV file.")],
) -> None:
    """Write OUT/prompts.jsonl, to be answered by the model, clients' transcripts, and prompts to tune and report on."""
    with terminal.answering():
        goals = in_fixed_order([prompt.query for prompt in read_prompts(advbench)])
        transcripts = read_lines(hh)
        asked_first = [first_prompt(row, f"{hh}:{number}") for number, row in enumerate(transcripts, 1)]
        firsts = in_fixed_order(asked_first, {same(goal) for goal in goals})
        harmless = in_fixed_order([prompt.query for prompt in read_harmless(xstest)[0]])
        half = len(goals) // 2
        red = [*firsts[:HH_PREPARED], *goals[:half]]
        asked = [{"prompt": prompt, "kind": "red"} for prompt in in_fixed_order(red)[:CHAINS]]
        asked += [{"prompt": prompt, "kind": "benign"} for prompt in BENIGN]
        write_lines(out / "prompts.jsonl", asked)
        write_lines(out / "benign.jsonl", [{"prompt": prompt} for prompt in in_fixed_order(BENIGN)])
        write_lines(out / "refused.jsonl", [{"prompt": prompt} for prompt in red])
        rest = firsts[HH_PREPARED + HH_TUNED :]
        write_lines(out / "red_prompts.jsonl", [{"prompt": prompt} for prompt in rest])
        write_lines(out / "server_prompts.jsonl", [{"prompt": prompt} for prompt in rest[:HH_SERVER]])
        held = {same(prompt) for prompt in rest[HH_SERVER:]}
        write_lines(
            out / "transcripts.jsonl",
            [row for row, first in zip(transcripts, asked_first, strict=True) if same(first) in held and is_short(row)],
        )
        write_requests(out / "tune.csv", firsts[HH_PREPARED : HH_PREPARED + HH_TUNED])
        write_requests(out / "report.csv", goals[half:])
        write_requests(out / "harmless_tune.csv", harmless[: len(harmless) // 2])
        write_requests(out / "harmless_report.csv", harmless[len(harmless) // 2 :])
        terminal.say(f"{len(asked)} prompts to answer; {len(red)} red ones to refuse; {len(goals) - half} to report on")


@app.command()
def rows(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of `prompts`, with answers.jsonl in it.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's folder, whose chat template is used.")],
    constitution: Annotated[
        str, typer.Option(metavar="FILE", help="The principles whose requests are answered.")
    ] = "default",
) -> None:
    """Write OUT/preparation.json in SQuARe's form, every row acceptable."""
    with terminal.answering():
        asked = read_lines(out / "prompts.jsonl")
        answers = [str(row["text"]).strip() for row in read_lines(out / "answers.jsonl")]
        if len(answers) != len(asked):
            raise InputError(
                f"{out / 'answers.jsonl'}: {len(answers)} answers to {len(asked)} prompts; must be as many"
            )
        refused = [row["prompt"] for row in read_lines(out / "refused.jsonl")]
        conversations = [answered(prompt, chosen(REFUSALS, prompt)) for prompt in refused]
        principles = find_constitution(constitution)
        for kind in ("red", "benign"):
            prompted = [
                (row["prompt"], answer) for row, answer in zip(asked, answers, strict=True) if row["kind"] == kind
            ]
            spoken = [(prompt, whole_sentences(answer)) for prompt, answer in prompted if answer]
            if kind == "benign":
                conversations += [answered(prompt, answer) for prompt, answer in spoken]
            for prompt, answer in in_fixed_order(spoken)[:CHAINS]:
                conversations += chain(prompt, answer, kind == "red", principles)
        tokenizer = load_tokenizer(model)
        made = [as_pair(tokenizer, turns) for turns in conversations]
        write_text(out / "preparation.json", json.dumps(in_fixed_order(made), ensure_ascii=False, indent=1) + "\n")
        terminal.say(f"{len(made)} rows: {out / 'preparation.json'}")


def chain(prompt: str, answer: str, harmful: bool, constitution: Constitution) -> list[list[Turn]]:
    """A conversation that ends in a critique, and the one that goes on to a revision."""
    principle = chosen(constitution.principles, prompt)
    begun = whole_sentences(" ".join(answer.split(" ")[:ANSWER_WORDS]))
    critique = chosen(HARMFUL_CRITIQUES if harmful else HARMLESS_CRITIQUES, prompt)
    revision = chosen(REFUSALS, prompt) if harmful else begun
    criticised = [*answered(prompt, begun), *answered(principle.critique, critique)]
    return [criticised, [*criticised, *answered(principle.revision, revision)]]


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; all of it where it has none."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else text


def as_pair(renderer: Renderer, turns: Sequence[Turn]) -> dict[str, Any]:
    """A row of SQuARe's form of whose conversation the last answer alone is trained on.

    All that stands before it is the question, as the chat template writes it: put into a question of its own, it gives
    the same text.
    """
    whole = renderer.render(turns[:-1])
    head, _, tail = renderer.render([Turn(USER, PROBE)]).partition(PROBE)
    if not (whole.startswith(head) and whole.endswith(tail)):
        raise InputError("the chat template writes a first turn otherwise than later ones: no rows for it")
    question = whole[len(head) : len(whole) - len(tail)]
    return {"question_en": question, "response_en": turns[-1].text, "acceptable?": 1}


def chosen(texts: Sequence[Any], key: str) -> Any:
    """One of some values, by the key's digest."""
    return texts[_digest(key) % len(texts)]


def in_fixed_order(values: Sequence[Any], but: Collection[str] = ()) -> list[Any]:
    """The values in an order that depends on each alone, each once to a reader; `but` are forms to leave out."""
    written = {json.dumps(value): value for value in values}
    ordered = [written[text] for text in sorted(written, key=_digest)]
    distinct: dict[str, Any] = {}
    for value in ordered:
        distinct.setdefault(same(value if isinstance(value, str) else json.dumps(value)), value)
    return [value for form, value in distinct.items() if form not in but]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def first_prompt(row: dict[str, Any], place: str) -> str:
    """What the person of a transcript of hh-rlhf asks first; InputError, with the place, for a row of another form."""
    _, human, rest = str(row.get("chosen", "")).partition("\n\nHuman:")
    prompt = rest.partition("\n\nAssistant:")[0].strip()
    if not human or not prompt:
        raise InputError(f"{place}: has no `chosen` transcript that begins with a human's turn")
    return prompt


def is_short(row: dict[str, Any]) -> bool:
    """Whether the person takes no more turns than a client's transcript may have."""
    return str(row["chosen"]).count("\n\nHuman:") <= CLIENT_TURNS


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, gzipped or not; InputError with the line."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(decode_text(content, str(path)).split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, str(path), number)
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: no JSON object")
        found.append(row)
    return found


def write_lines(path: Path, objects: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects))


def write_requests(path: Path, requests: Sequence[str]) -> None:
    """Write a CSV file in AdvBench's form; its targets, which nothing here reads, are empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["goal", "target"])
        writer.writerows([request, ""] for request in requests)


if __name__ == "__main__":
    app()
