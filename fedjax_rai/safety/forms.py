"""The table of guards' forms, and which of them a checkpoint is asked in."""

import re
from collections.abc import Iterator
from pathlib import Path

from fedjax_rai.config.names import look_up
from fedjax_rai.errors import InputError
from fedjax_rai.safety.form import GuardForm, Signs
from fedjax_rai.safety.form_file import is_form_file, load_form
from fedjax_rai.safety.released import RELEASED
from fedjax_rai.text.prompts import GUARD_REQUEST, SAFE, UNSAFE, USER, Turn
from fedjax_rai.text.tokenizer import Tokenizer

AUTO = "auto"
KEY = "guard.form"
REQUEST = GuardForm("request", (Turn(USER, GUARD_REQUEST),), safe=(SAFE,), unsafe=(UNSAFE,), cut_start=True)
"""Our own request to any chat model: a user's turn, answered by `safe` or `unsafe`, in this one spelling."""
FORMS = {form.name: form for form in (REQUEST, *RELEASED)}
"""By the name that `guard.form` takes."""

# What says that a checkpoint is a guard, though not which: its name, categories in its template, tokens for verdicts.
HINTS = Signs(r"guard|judge|shield|moderat|harmbench", r"content\s+categories|unsafe\s+categories")
_VERDICT_TOKEN = re.compile(r"<\|?/?(UN)?SAFE\b|<\|?/?(UN)?SAFE[-_|>]", re.IGNORECASE)


def form_for(tokenizer: Tokenizer, checkpoint: str | None, chosen: str = AUTO) -> GuardForm:
    """The form in which a checkpoint is asked.

    `checkpoint`: its path, or `owner/name`; None: its name says nothing. `chosen`: what `guard.form` says, a name of
    FORMS, a YAML file, a `package.module:attribute`, or `auto`: the form that the checkpoint's name, chat template or
    tokens tell, else our own request to a chat model.

    Raises InputError for a checkpoint that looks like a guard's and is none that is known, and for a chosen form where
    the checkpoint tells another.
    """
    told = told_form(tokenizer, checkpoint)
    if chosen == AUTO:
        if told is not None:
            return told
        hint = next(_hints(tokenizer, checkpoint), None)
        if hint is not None:
            raise InputError(
                f"{KEY} = {AUTO}: {checkpoint or tokenizer.name} looks like a guard ({hint}), but of no known form; "
                f"must be one of {', '.join(FORMS)}, or a YAML file of its form; `request` asks in our own words"
            )
        return REQUEST
    form = load_form(Path(chosen), FORMS) if is_form_file(chosen) else look_up(FORMS, chosen, KEY, GuardForm)
    family = form.family or form.name
    if told is not None and family in FORMS and family != told.name:
        raise InputError(
            f"{KEY} = {chosen}: {checkpoint or tokenizer.name} is asked in the form {told.name}, as its name, chat "
            f"template or tokens say; must be {AUTO}, {told.name}, or a YAML file of a form of its own"
        )
    return form


def told_form(tokenizer: Tokenizer, checkpoint: str | None) -> GuardForm | None:
    """The form that a checkpoint's name tells, else its chat template, else its tokens; None where none does."""
    name = _last_part(checkpoint)
    template = chat_template(tokenizer)
    tokens = _added(tokenizer)
    by_name = [form for form in RELEASED if _matches(form.signs.name, name)]
    by_template = [form for form in RELEASED if _matches(form.signs.template, template)]
    by_tokens = [form for form in RELEASED if form.signs.tokens and tokens.issuperset(form.signs.tokens)]
    for found in (by_name, by_template, by_tokens):
        if found:
            return found[0]
    return None


def chat_template(tokenizer: Tokenizer) -> str:
    """A tokenizer's chat template; empty where it has none."""
    return "" if tokenizer.hf.chat_template is None else tokenizer.template


def _hints(tokenizer: Tokenizer, checkpoint: str | None) -> Iterator[str]:
    """What says that a checkpoint is a guard."""
    name = _last_part(checkpoint)
    if _matches(HINTS.name, name):
        yield f"its name is {name}"
    if _matches(HINTS.template, chat_template(tokenizer)):
        yield "its chat template lists categories"
    verdicts = sorted(token for token in _added(tokenizer) if _VERDICT_TOKEN.match(token))
    if verdicts:
        yield f"it has tokens for verdicts, {verdicts[0]}"


def _last_part(checkpoint: str | None) -> str:
    return "" if checkpoint is None else Path(checkpoint).name


def _matches(pattern: str, text: str) -> bool:
    return bool(pattern) and re.search(pattern, text, re.IGNORECASE) is not None


def _added(tokenizer: Tokenizer) -> set[str]:
    """The texts of a tokenizer's added tokens."""
    return {token.content for token in tokenizer.hf.added_tokens_decoder.values()}
