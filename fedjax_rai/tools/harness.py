"""Our models as lm-evaluation-harness takes them, and its tasks on a run, an adapter or a model.

Texts are split into tokens, cut and scored as its own `hf` model does it (special tokens as the tokenizer adds them; a
text without context behind the beginning-of-sequence token; what is too long loses its beginning), so that numbers can
be compared. It is in the extra `eval`, and imported where it is used.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai import __version__, terminal
from fedjax_rai.config.files import digest, files_at
from fedjax_rai.errors import InputError
from fedjax_rai.model.peft import files_of
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import versions
from fedjax_rai.runs.rows import Versions
from fedjax_rai.runs.target import Target
from fedjax_rai.text.hub import contents, resolve
from fedjax_rai.text.prompts import Turn
from fedjax_rai.text.tokenizer import encode_text, stop_ids
from fedjax_rai.tools import generate
from fedjax_rai.tools.evaluate import DIGITS, RECORD, Record, is_there, place, whole
from fedjax_rai.tools.sampler import Model, Row, Settings, answer, fitting, has_numbers, score

RESULTS, SAMPLES = "results.json", "samples.jsonl"
LIMIT = 256  # tokens of an answer where a task names none, as lm-eval's own models have it
TOGETHER = 512  # texts that are scored between two steps of the progress
NEEDED = "needs lm-evaluation-harness: pip install 'fedjax-rai[eval]'"
DRAWN_BY = ("do_sample", "temperature", "top_p", "top_k", "min_p")


class Request(NamedTuple):
    """Which tasks, and how."""

    target: Target
    tasks: tuple[str, ...]
    include: Path | None = None
    """A folder of tasks in YAML, besides those that lm-eval brings."""
    limit: int | None = None
    """Rows of each task, from the first on; None: all."""
    fewshot: int | None = None
    """Examples before each row; None: as the task says."""
    chat: bool = False
    """Prompts are put into the chat template."""
    dtype: str | None = None
    batch_size: int = 16
    max_length: int = 4096
    output: Path | None = None


def imported() -> Any:
    """The package `lm_eval`; raises InputError where it is absent."""
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"--tasks: {NEEDED}") from None
    return lm_eval


def evaluate(asked: Request) -> Path:
    """The folder with the results of tasks: made, or found.

    Raises InputError for tasks that there are not, and as `tools.evaluate.evaluate` does.
    """
    lm_eval = imported()
    manager = _manager(asked)
    wanted = digest_of(asked, str(getattr(lm_eval, "__version__", "")))
    out = asked.output or place(asked.target) / wanted[:DIGITS]
    if is_there(out, wanted):
        terminal.say(f"{out}: already evaluated")
        return out
    files.check_writable(out, str(out))
    model, ends = load(asked)
    with whole(out) as part:
        if is_there(out, wanted):
            return out
        began = time.perf_counter()
        found = lm_eval.simple_evaluate(
            model=language_model(model, ends, asked),
            tasks=list(asked.tasks),
            num_fewshot=asked.fewshot,
            limit=asked.limit,
            apply_chat_template=asked.chat,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=1000,
        )
        seconds = round(time.perf_counter() - began, 1)
        samples = found.pop("samples", {})
        kept = {name: found[name] for name in ("results", "groups", "versions", "n-shot", "n-samples") if name in found}
        files.write_json(part / RESULTS, _plain(kept))
        rows = [{"task": task, **row} for task, of_task in samples.items() for row in of_task]
        files.write_rows(part / SAMPLES, map(_plain, rows))
        changed = {name: str(value) for name, value in asked._asdict().items() if name not in ("target", "output")}
        record = Record(asked.target.name, wanted, changed, [], {}, [], seconds, Versions(**versions()))
        files.write_json(part / RECORD, record)
    return out


def digest_of(asked: Request, version: str) -> str:
    """The digest of all that the numbers depend on, but for data that tasks read from elsewhere."""
    target = asked.target
    parts = {
        "version": [__version__, version],
        "tasks": [asked.tasks, asked.limit, asked.fewshot, asked.chat, asked.dtype, asked.max_length],
        "include": None if asked.include is None else digest(files_at(asked.include)),
        "model": contents(resolve(target.model, target.revision)),
        "adapter": None if target.adapter is None else digest(files_of(target.adapter)),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _manager(asked: Request) -> Any:
    """What knows the tasks; raises InputError for those that there are not."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    if asked.include is not None:
        if not asked.include.is_dir():
            raise InputError(f"--include {asked.include}: no such folder; must be one of tasks in YAML")
        # of a folder of tasks alone, without the thousands that lm-eval brings, which take seconds to list
        manager = TaskManager(include_path=str(asked.include), include_defaults=False)
        if all(manager.match_tasks([task]) for task in asked.tasks):
            return manager
    manager = TaskManager(include_path=None if asked.include is None else str(asked.include))
    unknown = [task for task in asked.tasks if not manager.match_tasks([task])]
    if unknown:
        raise InputError(f"--tasks {unknown[0]}: no such task; lm-eval ls tasks lists them, --include adds a folder")
    return manager


def load(asked: Request) -> tuple[Model, tuple[int, ...]]:
    """The model, and the tokens that end an answer; raises InputError for one that has no tokenizer."""
    request = generate.of_target(asked.target, asked.dtype)
    read = generate.read_model(request)
    if read.tokenizer is None:
        raise InputError(f"{asked.target.name}: this model has no tokenizer")
    lm, adapter = generate.load(request, read)
    longest = min(read.config.longest or asked.max_length, asked.max_length)
    eos = read.tokenizer.hf.eos_token_id
    ends = {*stop_ids(read.folder), *([] if eos is None else [eos])}
    if asked.chat:
        ends |= {*read.tokenizer.end_ids}
    return Model(lm, adapter, read.tokenizer, request.dtype, longest), tuple(sorted(ends))


def language_model(model: Model, ends: Sequence[int], asked: Request) -> Any:
    """The model as an `LM` of lm-eval."""
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

    class FedjaxRai(TemplateLM):
        """A model of fedjax_rai."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = model.tokenizer.hf

        @property
        def eot_token_id(self) -> int:
            return self.tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            return prefix(self.tokenizer)

        @property
        def max_length(self) -> int:
            return model.longest or asked.max_length

        @property
        def max_gen_toks(self) -> int:
            return LIMIT

        @property
        def tokenizer_name(self) -> str:
            return model.tokenizer.name.replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return encode_text(self.tokenizer, string, add_special_tokens)

        def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
            return model.tokenizer.decode(tokens)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            turns = [Turn(message["role"], message["content"]) for message in chat_history]
            return model.tokenizer.render(turns, generate=add_generation_prompt)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return list(likelihoods(model, [(context, text) for _, context, text in requests], self.max_length))

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            from lm_eval import utils  # pyright: ignore[reportMissingImports]

            windows: list[tuple[list[int], list[int]]] = []
            owners = []
            for number, request in enumerate(requests):
                rolled = utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
                for window in rolled:
                    windows.append(utils.make_disjoint_window(window))
                    owners.append(number)
            sums = [0.0] * len(requests)
            found = likelihoods(model, windows, self.max_length)
            for owner, (logp, _) in zip(owners, found, strict=True):
                sums[owner] += logp
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            rows = []
            for request in requests:
                context, wanted = request.args
                settings = drawn_by(wanted, ends)
                rows.append((fitted(self.tok_encode(context), settings.limit, self.max_length), settings))
            return texts(model, rows, asked.batch_size)

    return FedjaxRai()


def prefix(tokenizer: Any) -> int:
    """What stands before a text without context: the beginning-of-sequence token, or the end's where there is none."""
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise InputError(f"tokenizer {tokenizer.name_or_path}: has neither a bos nor an eos token, which lm-eval needs")
    return found


def fitted(ids: Sequence[int], limit: int, longest: int) -> Sequence[int]:
    """A prompt without what of its beginning leaves no room for an answer; raises InputError where there is no room."""
    if not 0 < limit < longest:
        wrong = f"a task asks for answers of up to {limit} tokens (max_gen_toks); must be 1 to {longest - 1}"
        raise InputError(f"{wrong}, as the model takes {longest} with the prompt")
    return ids[-(longest - limit) :]


def likelihoods(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int
) -> Iterator[tuple[float, bool]]:
    """(log p of the continuation, whether each of its tokens is the likeliest) of pairs (context, continuation).

    Tokens; what is longer than the model takes loses its beginning. Raises InputError for a continuation that is longer
    by itself, and where the model gives no numbers.
    """
    most = max((len(text) for _, text in pairs), default=0)
    if most > longest:
        raise InputError(
            f"a continuation of a task has {most} tokens; must be at most {longest}, which the model takes"
        )
    with terminal.progress("scoring", len(pairs), unit="text") as advance:
        for first in range(0, len(pairs), TOGETHER):
            part = pairs[first : first + TOGETHER]
            whole_texts = [[*context, *text][-(longest + 1) :] for context, text in part]
            for (_, text), tokens in zip(part, score(model, whole_texts), strict=True):
                scored = tokens[len(tokens) - len(text) :]
                if not has_numbers(scored):
                    raise InputError("no log p of a text: the logits of the model are no numbers (NaN)")
                total = sum(token.logp for token in scored if token.logp is not None)
                greedy = all(token.top and token.top[0][0] == token.id for token in scored)
                yield float(total), greedy
            advance(steps=len(part))


def drawn_by(wanted: Mapping[str, Any], ends: Sequence[int]) -> Settings:
    """How a task wants an answer drawn; raises InputError for a setting that is not computed here."""
    unknown = [name for name in wanted if name not in ("until", "max_gen_toks", "max_new_tokens", *DRAWN_BY)]
    unknown = [name for name in unknown if wanted[name] not in (None, False, 1)]
    if unknown:
        raise InputError(f"generation_kwargs of a task: {unknown[0]} = {wanted[unknown[0]]!r} is not computed here")
    until = wanted.get("until") or []
    temperature = float(wanted.get("temperature") or 0.0)
    if not wanted.get("do_sample", temperature > 0):
        temperature = 0.0
    elif temperature == 0.0:
        temperature = 1.0 if "temperature" not in wanted else 0.0
    return Settings(
        limit=int(wanted.get("max_gen_toks") or wanted.get("max_new_tokens") or LIMIT),
        temperature=temperature,
        top_p=wanted.get("top_p"),
        top_k=wanted.get("top_k") or None,
        min_p=wanted.get("min_p") or None,
        stop=tuple([until] if isinstance(until, str) else until),
        end_ids=tuple(ends),
    )


def texts(model: Model, wanted: Sequence[tuple[Sequence[int], Settings]], batch_size: int) -> list[str]:
    """The answers to prompts, in their order; raises InputError where the model gives no numbers."""
    found = [""] * len(wanted)
    rows = []
    for number in sorted(range(len(wanted)), key=lambda i: len(wanted[i][0])):
        ids, settings = wanted[number]

        def give(piece: Any, number: int = number) -> None:
            if piece.finish == "lost":
                raise InputError("no answer: the logits of the model are no numbers, or all one number")
            found[number] += piece.text

        rows.append(Row(ids, settings._replace(row=number), give))
    with terminal.progress("answering", len(rows), unit="prompt") as advance:
        while rows:
            count = fitting(rows, batch_size, model.longest)
            answer(model, rows[:count])
            rows = rows[count:]
            advance(steps=count)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is none of its kinds (a function) as text."""
    return json.loads(json.dumps(files.plain(value), default=str))


def report(folder: Path) -> str:
    """The table of results, as lm-eval prints it."""
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    return f"{make_table(files.read_object(folder / RESULTS))}\n{folder}"
