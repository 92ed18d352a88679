"""An OpenAI-compatible endpoint over our sampler, by the standard library alone: chat, completions, log p, streams."""

import errno
import ipaddress
import json
import queue
import re
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from fedjax_rai import __version__, terminal
from fedjax_rai.errors import InputError
from fedjax_rai.reading import one_line
from fedjax_rai.runs.target import read_target
from fedjax_rai.text.prompts import prompt
from fedjax_rai.text.tokenizer import encode_text, stop_ids
from fedjax_rai.tools import generate
from fedjax_rai.tools import openai_responses as responses
from fedjax_rai.tools.batching import FAILED, LOOK, Batcher
from fedjax_rai.tools.openai_requests import Asked, BadRequest, Text, read_chat, read_completion
from fedjax_rai.tools.openai_responses import Choice, Head, Usage
from fedjax_rai.tools.sampler import Model, Piece, Row, Settings, Token, has_numbers

LARGEST_BODY = 32 * 2**20
MOST_DROPPED = 16 * LARGEST_BODY
MOST_DIGITS = 18
"""Of a length that is read: `int` refuses thousands."""
PART = 2**20
IDLE_SECONDS = 600
HUNG_UP = (BrokenPipeError, ConnectionResetError, TimeoutError)
NO_NUMBERS = "no answer: the logits of the model are no numbers (NaN or infinity), or all one number"
COMPLETIONS = {"/v1/chat/completions": True, "/v1/completions": False}
ENDPOINTS = "/v1/models, /v1/chat/completions, /v1/completions"


class Options(NamedTuple):
    """Where and how a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str | None = None
    """None: a run's own, else bfloat16."""
    revision: str | None = None
    merged: bool = False
    max_new: int = 512
    """Tokens of an answer whose request names no limit, at most."""
    max_length: int = 4096
    """Tokens of prompt and answer together, at most; the model may take fewer."""
    batch_size: int = 16
    """Answers that are computed at once, at most."""


class Service:
    """What is served, by values in and out: knows nothing of HTTP."""

    def __init__(self, name: str, model: Model, text_ends: Sequence[int], options: Options):
        """`text_ends`: the tokens that end a continued text."""
        self.name = name
        self.model = model
        self.created = int(time.time())
        self._text_ends = tuple(text_ends)
        self._options = options
        self._batcher = Batcher(model, options.batch_size)

    def stop(self) -> None:
        """Ends what computes."""
        self._batcher.stop()

    def begin(self, body: Any, chat: bool) -> "UnderWay":
        """A request, checked and given to the sampler; raises BadRequest."""
        asked = read_chat(body) if chat else read_completion(body)
        if asked.model != self.name:
            wrong = f"model = {asked.model!r}: no such model; must be {self.name!r}"
            raise BadRequest(wrong, "model", 404, "model_not_found")
        prompts = self._prompts(asked)
        limits = [self._limit(ids, asked) for ids in prompts]
        return UnderWay(self, asked, prompts, limits)

    def rows(self, under_way: "UnderWay") -> list[Row]:
        """The answers that a request asks for; their random keys are those of `generate` for each prompt n times."""
        asked = under_way.asked
        seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        rows = []
        for ids, limit in zip(under_way.prompts, under_way.limits, strict=True):
            for _ in range(asked.choices):
                settings = Settings(
                    limit=limit,
                    temperature=asked.temperature,
                    top_p=asked.top_p,
                    top_k=asked.top_k,
                    min_p=asked.min_p,
                    seed=seed,
                    row=len(rows),
                    stop=asked.stop,
                    end_ids=self._ends(asked),
                    logprobs=asked.tops is not None,
                )
                rows.append(Row(ids, settings, under_way.taker(len(rows)), self._gone(under_way)))
        return rows

    def start(self, under_way: "UnderWay") -> None:
        """Gives what is asked for to the sampler."""
        if under_way.asked.limit != 0:
            self._batcher.answer(self.rows(under_way))

    def echoed(self, under_way: "UnderWay") -> list[tuple[str, list[Token]]]:
        """(text, tokens with log p where they are asked for) of each prompt that is to be given back; waits.

        Raises BadRequest, of status 500, where the model gives no numbers.
        """
        asked = under_way.asked
        if not asked.echo:
            return [("", [])] * len(under_way.prompts)
        texts = [self.decode_all(ids) for ids in under_way.prompts]
        if asked.tops is None:
            return [(text, []) for text in texts]
        scored = self._batcher.score(under_way.prompts, max(asked.tops, 1), under_way.look)
        if not all(map(has_numbers, scored)):
            raise BadRequest(NO_NUMBERS, status=500)
        return list(zip(texts, scored, strict=True))

    def decode(self, token: int) -> str:
        """The text of one token, special ones included."""
        return self.decode_all([token])

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return self.model.tokenizer.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _ends(self, asked: Asked) -> tuple[int, ...]:
        """The tokens that end an answer. A special one is part of no text: as a stop string alone it would end none."""
        tokenizer = self.model.tokenizer
        ends = tokenizer.end_ids if asked.conversation is not None else self._text_ends
        asked_for = [tokenizer.specials[stop] for stop in asked.stop if stop in tokenizer.specials]
        return tuple(dict.fromkeys([*ends, *asked_for]))

    def _gone(self, under_way: "UnderWay"):
        return lambda: under_way.gone.is_set() or self._batcher.stopping.is_set()

    def _prompts(self, asked: Asked) -> list[list[int]]:
        tokenizer = self.model.tokenizer
        if asked.conversation is not None:
            try:
                text = prompt(tokenizer, asked.conversation)
            except InputError as error:
                raise BadRequest(f"messages: {error}", "messages") from None
            return [self._checked(tokenizer.encode(text), "messages")]
        several = len(asked.texts) > 1
        return [self._ids(text, f"prompt[{i}]" if several else "prompt") for i, text in enumerate(asked.texts)]

    def _ids(self, text: Text, place: str) -> list[int]:
        ids = encode_text(self.model.tokenizer.hf, text) if isinstance(text, str) else text
        return self._checked(ids, place)

    def _checked(self, ids: list[int], place: str) -> list[int]:
        if not ids:
            raise BadRequest(f"{place}: has no tokens; must have at least one", place)
        if wrong := [i for i in ids if not 0 <= i < self.model.vocabulary]:
            raise BadRequest(f"{place}: token {wrong[0]} is none; must be 0 to {self.model.vocabulary - 1}", place)
        return ids

    def _limit(self, ids: list[int], asked: Asked) -> int:
        """The most tokens of an answer; raises BadRequest where prompt and answer are longer than is taken."""
        longest = self.model.longest or self._options.max_length
        room = longest - len(ids)
        limit = min(self._options.max_new, room) if asked.limit is None else asked.limit
        if limit > room or (limit < 1 and asked.limit is None):
            # clients look for the first six words
            wrong = (
                f"this model's maximum context length is {longest} tokens, of prompt and answer together: the prompt "
                f"has {len(ids)} and its answer at most {max(limit, 1)}; shorten the prompt or lower max_tokens"
            )
            raise BadRequest(wrong, "messages" if asked.conversation else "prompt", code="context_length_exceeded")
        return limit


class UnderWay:
    """A request that is being answered: what comes to its answers, in order of coming."""

    def __init__(self, service: Service, asked: Asked, prompts: list[list[int]], limits: list[int]):
        self.asked = asked
        self.prompts = prompts
        self.limits = limits
        self.gone = threading.Event()
        self.hung_up: Callable[[], bool] = lambda: False
        kind = "chatcmpl" if asked.conversation is not None else "cmpl"
        name = f"{kind}-{secrets.token_hex(12)}"
        self.head = Head(name, int(time.time()), service.name, asked.conversation is not None)
        self._service = service
        self._came: queue.SimpleQueue[tuple[int, Piece]] = queue.SimpleQueue()

    @property
    def answers(self) -> int:
        """How many there will be."""
        return len(self.prompts) * self.asked.choices

    def taker(self, index: int):
        """What takes the pieces of an answer."""
        return lambda piece: self._came.put((index, piece))

    def look(self) -> None:
        """Raises ConnectionResetError where nobody waits any more."""
        if self.hung_up():
            raise ConnectionResetError

    def _next(self) -> tuple[int, Piece]:
        while True:
            try:
                return self._came.get(timeout=LOOK)
            except queue.Empty:
                self.look()

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """(answer, what came to it) until all have ended; raises BadRequest, of status 500, for one that has none."""
        left = 0 if self.asked.limit == 0 else self.answers
        while left:
            index, piece = self._next()
            if piece.finish in ("lost", FAILED):
                raise BadRequest(NO_NUMBERS if piece.finish == "lost" else piece.text, status=500)
            left -= piece.finish is not None
            yield index, piece

    def whole(self) -> dict[str, Any]:
        """The response that is not streamed; waits for all answers."""
        self._service.start(self)
        echoed = self._service.echoed(self)
        texts = [""] * self.answers
        tokens: list[list[Token]] = [[] for _ in texts]
        ended: list[Piece] = [Piece("", (), "length")] * self.answers
        for index, piece in self.pieces():
            texts[index] += piece.text
            tokens[index] += piece.tokens
            ended[index] = piece
        choices = []
        for index, last in enumerate(ended):
            before, before_tokens = echoed[index // self.asked.choices]
            choices.append(Choice(index, texts[index], tokens[index], last.finish, before, before_tokens, last.end))
        usage = Usage(self.read_tokens, sum(last.count for last in ended))
        return responses.whole(self.head, choices, usage, self.asked.tops, self._service.decode)

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The chunks of a stream, as they come."""
        self._service.start(self)
        offsets = [0] * self.answers
        count = 0
        if self.head.chat:
            yield from (responses.opening(self.head, index) for index in range(self.answers))
        for index, piece in self.pieces():
            count += piece.count
            choice = Choice(index, piece.text, piece.tokens, piece.finish, end=piece.end)
            yield responses.chunk(self.head, choice, self.asked.tops, self._service.decode, offsets[index])
            if self.asked.tops is not None:
                offsets[index] += sum(len(self._service.decode(token.id)) for token in piece.tokens)
        if self.asked.usage:
            yield responses.closing(self.head, Usage(self.read_tokens, count))

    @property
    def read_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(map(len, self.prompts))


# --- HTTP -------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """HTTP around a service: a thread for each connection, which waits while the sampler's thread computes."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    service: Service

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(str(self.server_address[0]))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version = f"fedjax-rai/{__version__}"
    sys_version = ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:  # noqa: N802
        self._answering(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._answering(self._post)

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing is said of each request."""

    def _answering(self, act) -> None:
        try:
            self._check_host()
            act()
        except BadRequest as wrong:
            self._send(wrong.status, responses.error(wrong))
        except HUNG_UP:
            self.close_connection = True
        except Exception as error:
            self.close_connection = True
            self._send(500, responses.error(self._fault(error)))

    def _fault(self, error: Exception) -> BadRequest:
        """A fault of ours: who asked is told, and others are still served."""
        terminal.say(f"{self.path}: {one_line(error)}")
        return BadRequest(one_line(error), status=500)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself (a method, a line that is too long), in OpenAI's shape."""
        self.close_connection = True
        self._send(code, responses.error(BadRequest(message or HTTPStatus(code).phrase, status=code)))

    def _check_host(self) -> None:
        """Raises BadRequest for a page in a browser whose name was made to point at this machine."""
        for host in self.headers.get_all("Host", []):
            if self.server.is_local and not is_loopback(_name(host)):
                self.close_connection = True
                wrong = f"Host {host}: must be localhost, 127.0.0.1 or [::1]; serve --host lets others ask"
                raise BadRequest(wrong, status=403)

    def _get(self) -> None:
        service = self.server.service
        path = urlsplit(self.path).path
        if path == "/v1/models":
            return self._send(200, responses.models(service.name, service.created))
        if path == "/health":
            return self._send(200, {"status": "ok"})
        if unquote(path) == f"/v1/models/{service.name}":
            return self._send(200, responses.model(service.name, service.created))
        self._refuse_path(path)

    def _post(self) -> None:
        path = urlsplit(self.path).path
        body = self._body()
        if path not in COMPLETIONS:
            self._refuse_path(path)
        under_way = self.server.service.begin(_parsed(body), COMPLETIONS[path])
        under_way.hung_up = self._hung_up
        try:
            if under_way.asked.stream:
                self._stream(under_way)
            else:
                self._send(200, under_way.whole())
        finally:
            under_way.gone.set()

    def _hung_up(self) -> bool:
        """Whether the other end has closed the connection."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return bool(selector.select(0)) and not self.connection.recv(1, socket.MSG_PEEK)

    def _refuse_path(self, path: str) -> None:
        if path in COMPLETIONS:
            raise BadRequest(f"{self.command} {path}: must be POST", status=405)
        raise BadRequest(f"{self.command} {path}: no such endpoint; must be one of {ENDPOINTS}", status=404)

    def _body(self) -> bytes:
        """All of it, so that the connection can be gone on with."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal():
            self.close_connection = True
            raise BadRequest("Content-Length: must be given", status=411)
        if len(size) > MOST_DIGITS or int(size) > LARGEST_BODY:
            self.close_connection = True
            self._drop(int(size[:MOST_DIGITS]))
            shown = size if len(size) <= MOST_DIGITS else f"{size[:MOST_DIGITS]}..."
            raise BadRequest(f"the body has {shown} bytes; must be at most {LARGEST_BODY}", status=413)
        body = self.rfile.read(int(size))
        kind = self.headers.get_content_type()
        if kind != "application/json":  # which a page in a browser cannot send here unasked
            raise BadRequest(f"Content-Type {kind}: must be application/json", status=415)
        return body

    def _drop(self, size: int) -> None:
        """Reads a body that is refused: who is still writing it reads no answer."""
        left = min(size, MOST_DROPPED)
        while left > 0:
            part = self.rfile.read(min(left, PART))
            if not part:
                return
            left -= len(part)

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        body = _written(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":  # whose client takes a body for the next answer
            self.wfile.write(body)

    def _stream(self, under_way: UnderWay) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in under_way.chunks():
                self._event(_written(chunk))
        except HUNG_UP:
            raise
        except Exception as error:  # too late for a status
            wrong = error if isinstance(error, BadRequest) else self._fault(error)
            self._event(_written(responses.error(wrong)))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.flush()


def _written(content: Mapping[str, Any]) -> str:
    """JSON in ASCII: half of a character, as the name of a field may have it, is no UTF-8."""
    return json.dumps(content, allow_nan=False)


def _parsed(body: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number in JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None


def bind(host: str, port: int) -> Server:
    """A server that listens there; raises InputError where it cannot."""
    try:
        return Server((host, port), Handler)
    except OverflowError:
        raise InputError(f"--port {port}: must be 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port {port}: another process listens there already; name another one (0 takes any that is free)"
            ) from None
        key = f"--port {port}" if error.errno == errno.EACCES else f"--host {host}"
        raise InputError(f"{key}: cannot be listened at ({error.strerror or error}); name another one") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """The name or address in a header `Host`, without its port."""
    found = re.fullmatch(r"(?:\[(.*)\]|([^:]*))(?::\d*)?", host.strip())
    return "" if found is None else (found[1] or found[2] or "").lower()


def load(target: str, options: Options) -> Service:
    """What a target names, read and ready to answer; raises InputError."""
    named = read_target(target, revision=options.revision)
    request = generate.of_target(named, options.dtype, options.merged)
    files = generate.read_model(request)
    if files.tokenizer is None:
        raise InputError(f"{target}: this model has no tokenizer, so it cannot be served")
    lm, adapter = generate.load(request, files)
    longest = min(files.config.longest or options.max_length, options.max_length)
    model = Model(lm, adapter, files.tokenizer, request.dtype, longest)
    return Service(target, model, stop_ids(files.folder), options)


def serve(target: str, options: Options) -> None:
    """Serves a target until it is interrupted; raises InputError for what is wrong with it, or with the address."""
    server = bind(options.host, options.port)
    try:
        server.service = load(target, options)
        address = f"http://{options.host}:{server.server_address[1]}/v1"
        if not is_loopback(options.host):
            terminal.say(f"whoever can reach {options.host} can ask this model: there is no password")
        terminal.say(f"serving {target} at {address} (Ctrl-C ends)")
        signal.signal(signal.SIGTERM, _interrupt)
        server.serve_forever()
    except KeyboardInterrupt:
        terminal.say("\nended")
    finally:
        server.server_close()
        if hasattr(server, "service"):
            server.service.stop()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
