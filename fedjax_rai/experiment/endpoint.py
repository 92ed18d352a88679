"""A language model behind an OpenAI-compatible endpoint: many requests at once, tried again, kept as they are answered.

Only the standard library is used: a request is one POST of `/chat/completions`.
"""

import hashlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from fedjax_rai import terminal
from fedjax_rai.config.schema import EndpointConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.keeping import Replies

LONGEST_WAIT = 120.0
"""Seconds between two tries of a request, at most."""
BYTES_A_TOKEN = 4
"""Of UTF-8: an estimate, good for English (4 letters) and Korean (a syllable and a third)."""
REFUSED = (401, 403, 404)
"""HTTP statuses that tell of a wrong key, address or model: every request would get them."""
FLAGGED = 403
"""That of `REFUSED` which hosts answer as well where moderation flags one request; of these others may succeed."""
AGAIN = (408, 409, 425, 429)
"""HTTP statuses, besides those of the server's own faults, of what may go well another time."""
Message = Mapping[str, str]
"""A turn, as OpenAI's API has it: `role` and `content`."""


class InMemory:
    """Keeps replies while the process lasts."""

    def __init__(self) -> None:
        self._replies: dict[str, str] = {}

    def get(self, digest: str) -> str | None:
        return self._replies.get(digest)

    def keep(self, digest: str, reply: str) -> None:
        self._replies[digest] = reply


class Failed(Exception):
    """A request that has no reply; `again`: it may have one another time; `after`: seconds that the server asks for."""

    def __init__(self, reason: str, again: bool, after: float = 0.0):
        super().__init__(reason)
        self.again = again
        self.after = after


class Endpoint:
    """The model that an entry of `eval.endpoints` names."""

    def __init__(self, config: EndpointConfig, replies: Replies | None = None):
        """Raises InputError where the variable of its key is not set, or its address is none."""
        self.config = config
        self._replies = InMemory() if replies is None else replies
        self._where = f"eval.endpoints: {config.name}"
        self._key = self._read_key()
        self._succeeded = False
        if not config.url.startswith(("http://", "https://")):
            raise InputError(f"{self._where}: url = {config.url!r}: must begin with http:// or https://")

    def _read_key(self) -> str | None:
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key:
            raise InputError(f"{self._where}: the environment variable {name}, which holds its key, is not set")
        return key

    def check(self, messages: Sequence[Message]) -> None:
        """Raises InputError where nobody gives a reply, after one more try."""
        self._succeeded = False
        frozen = _frozen(messages)
        try:
            self._reply(frozen, threading.Event(), min(self.config.retries, 1))
        except Failed as failed:
            raise InputError(f"{self._where}: {self.config.url} gives no reply: {failed}") from None

    def missing(self, asked: Sequence[Sequence[Message]]) -> int:
        """How many requests asking this takes: what is the same, or was answered before, is not asked again."""
        return sum(self._replies.get(self._digest(messages)) is None for messages in {*map(_frozen, asked)})

    def announce(self, asked: Sequence[Sequence[Message]]) -> None:
        """Say what asking this will cost, before it begins."""
        missing = self.missing(asked)
        known = len({*map(_frozen, asked)}) - missing
        terminal.say(f"{self._where}: {self.cost(asked, missing, known)}")

    def cost(self, asked: Sequence[Sequence[Message]], requests: int, kept: int = 0) -> str:
        """So many requests, of texts like `asked`, in words."""
        size = sum(len(message["content"].encode()) for messages in asked for message in messages)
        read = requests * size // max(len(asked), 1) // BYTES_A_TOKEN
        known = f", {kept:,} more are answered from before" if kept else ""
        written = requests * self.config.max_tokens
        return (
            f"{terminal.plural(requests, 'request')} to {self.config.url} ({self.config.model}){known}; about {read:,} "
            f"tokens to read, at most {written:,} to write"
        )

    def ask(self, asked: Sequence[Sequence[Message]], advance: Callable[[], object] = lambda: None) -> list[str | None]:
        """The reply to each conversation; None where there is none after all tries. The same is asked once.

        Each reply is kept as it comes, so that what was interrupted goes on. How many have none is said, with the last
        cause. Raises InputError where the endpoint refuses key, address or model; 403 tells of these only as long as
        no request has succeeded.
        """
        frozen = [_frozen(messages) for messages in asked]
        found: dict[tuple, str | None] = {}
        for messages in frozen:
            found[messages] = self._replies.get(self._digest(messages))
        missing = [messages for messages, reply in found.items() if reply is None]
        self._succeeded |= len(missing) < len(found)
        causes = self._ask_all(missing, found, advance)
        if causes:
            lost = f"{terminal.plural(len(causes), 'request')} of {len(found):,} had no reply"
            terminal.say(f"{self._where}: {lost}, and have no verdict; the last: {causes[-1]}")
        return [found[messages] for messages in frozen]

    def _ask_all(
        self, missing: Sequence[tuple], found: dict[tuple, str | None], advance: Callable[[], object]
    ) -> list[str]:
        """Fill in the replies of what is missing; the causes of those that have none."""
        causes = []
        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="endpoint")
        stop = threading.Event()
        under_way: dict[Future[str], tuple] = {}
        queue = iter(missing)
        try:
            while True:
                for messages in queue:
                    under_way[pool.submit(self._reply, messages, stop, self.config.retries)] = messages
                    if len(under_way) >= 2 * self.config.concurrency:
                        break
                if not under_way:
                    return causes
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    messages = under_way.pop(future)
                    try:
                        found[messages] = future.result()
                        self._replies.keep(self._digest(messages), future.result())
                    except Failed as failed:
                        causes.append(str(failed))
                    advance()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, messages: tuple, stop: threading.Event, retries: int) -> str:
        """The reply to one conversation, after as many tries as it takes; raises Failed, and InputError at once."""
        for attempt in range(retries + 1):
            try:
                return self._post(messages)
            except Failed as failed:
                if not failed.again or attempt == retries or stop.is_set():
                    raise
                pause = min(max(self.config.backoff * 2**attempt, failed.after), LONGEST_WAIT)
                if stop.wait(pause):
                    raise
        raise AssertionError("the last try returns or raises")

    def _post(self, messages: tuple) -> str:
        """One try."""
        body = json.dumps(self._body(messages)).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.config.url.rstrip("/") + "/chat/completions", body, headers)
        if self._key is not None:  # for this address alone, wherever it may redirect to
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
                content = _content(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._of_status(error.code, error.headers.get("Retry-After"), error.read()) from None
        except (OSError, http.client.HTTPException) as error:  # no connection, a broken one, no answer in time
            raise Failed(f"{type(error).__name__}: {error}", again=True) from None
        self._succeeded = True
        return content

    def _of_status(self, status: int, retry_after: str | None, body: bytes) -> Exception:
        """What an HTTP error means."""
        cause = f"HTTP {status}: {_shortened(body)}"
        if status in REFUSED and not (status == FLAGGED and self._succeeded):
            return InputError(f"{self._where}: {self.config.url} refused the request for {self.config.model} ({cause})")
        return Failed(cause, again=status in AGAIN or status >= 500, after=_seconds(retry_after))

    def _body(self, messages: tuple) -> dict[str, Any]:
        turns = [dict(message) for message in messages]
        return {"model": self.config.model, "messages": turns, "max_tokens": self.config.max_tokens, "temperature": 0}

    def _digest(self, messages: tuple) -> str:
        """Of all that a reply depends on: address, model, conversation and settings."""
        stated = {"url": self.config.url, **self._body(messages)}
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _frozen(messages: Sequence[Message]) -> tuple:
    """A conversation as a key."""
    return tuple(tuple(message.items()) for message in messages)


def _content(body: bytes) -> str:
    """The reply's text; raises Failed for a body that is none of the API's, as an HTML page of a proxy is."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise Failed(f"the reply is no completion: {_shortened(body)}", again=True) from None
    if not isinstance(content, str):
        raise Failed(f"the reply has no text: {_shortened(body)}", again=True)
    return content


def _shortened(body: bytes) -> str:
    """The beginning of what was sent, on one line."""
    return " ".join(body[:200].decode(errors="replace").split())


def _seconds(given: str | None) -> float:
    """What `Retry-After` says, in seconds; 0 where it names a date, or nothing."""
    try:
        return max(float(given or 0), 0.0)
    except ValueError:
        return 0.0
