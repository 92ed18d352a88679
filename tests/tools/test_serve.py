"""The endpoint answers as `fedjax-rai generate` does, whatever shares the batch; log p are our own likelihoods."""

import json
import math
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.evals.choice import likelihoods
from fedjax_rai.evals.open_ended import Subject
from fedjax_rai.runs.target import Target
from fedjax_rai.tools import batching, sampler, serve
from fedjax_rai.tools.generate import Request, answers, of_target, prompts_of_texts
from fedjax_rai.tools.openai_requests import MOST_STOPS
from fedjax_rai.tools.sampler import Model, Piece, Token
from tests.small import compilations

QUESTIONS = ["What is 3 plus 4?", "Who broke it?", "Tell me about the town."]
TOKENS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[serve.Server]:
    """The tiny model, served in float32 at any free port."""
    options = serve.Options(port=0, dtype="float32", max_length=96, batch_size=4)
    bound = serve.bind(options.host, options.port)
    bound.service = serve.load("tiny", options)
    thread = threading.Thread(target=bound.serve_forever, daemon=True)
    thread.start()
    yield bound
    bound.shutdown()
    bound.server_close()
    bound.service.stop()


def ask(server: serve.Server, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    """(status, what came back) of a request; GET without a body."""
    connection = HTTPConnection(*server.server_address[:2], timeout=300)  # pyright: ignore[reportArgumentType]
    sent = body if isinstance(body, bytes) or body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, sent, {"Content-Type": kind})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.headers.get_content_type() == "text/event-stream":
        events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
        assert events[-1] == "[DONE]"
        return response.status, [json.loads(event) for event in events[:-1]]
    return response.status, json.loads(text)


def chat(server: serve.Server, question: str, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
    status, response = ask(server, "/v1/chat/completions", body)
    assert status == 200, response
    return response


def complete(server: serve.Server, **fields: Any) -> Any:
    status, response = ask(server, "/v1/completions", {"model": "tiny", "temperature": 0, **fields})
    assert status == 200, response
    return response


def text_of(response: Any) -> str:
    (choice,) = response["choices"]
    return choice["message"]["content"]


def generated(questions: list[str], **settings: Any) -> list[str]:
    request = Request("tiny", dtype="float32", max_new=TOKENS, **settings)
    return [answer.text or "" for answer in answers(request, prompts_of_texts(questions))]


@pytest.mark.slow
def test_the_endpoint_answers_as_our_own_sampler_does(server):
    """Greedy and by seed, alone and together, whole and streamed; log p are the likelihoods of evaluations."""
    expected = generated(QUESTIONS)
    alone = [chat(server, question, max_tokens=TOKENS) for question in QUESTIONS]
    assert [text_of(response) for response in alone] == expected
    programs = compilations(sampler.go_on)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda question: text_of(chat(server, question, max_tokens=TOKENS)), QUESTIONS * 2))
    assert together == expected * 2
    # by the seed of the command: three answers to one prompt are those to the prompt three times
    warm = chat(server, QUESTIONS[2], max_tokens=TOKENS, temperature=1.5, seed=3, n=3)
    drawn = generated(QUESTIONS[2:] * 3, temperature=1.5, seed=3)
    assert [choice["message"]["content"] for choice in warm["choices"]] == drawn and len({*drawn}) == 3
    colder = chat(server, QUESTIONS[2], max_tokens=TOKENS - 3, temperature=0.5, seed=4, n=3)
    assert len(colder["choices"]) == 3
    assert compilations(sampler.go_on) <= programs + 2  # rows of two and of four: numbers compile nothing

    asked = chat(server, QUESTIONS[0], max_tokens=TOKENS, logprobs=True, top_logprobs=2)
    tokens = asked["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == text_of(asked) == expected[0]
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] for token in tokens)  # greedy
    model = server.service.model
    subject = Subject(model.lm, model.adapter, model.tokenizer, 96, 2)
    (expected_logp,) = likelihoods(subject, [(QUESTIONS[0], expected[0])]).logps
    ends = asked["choices"][0]["finish_reason"] == "stop"
    assert asked["usage"]["completion_tokens"] == len(tokens) + ends
    text = model.tokenizer.render([*turns(QUESTIONS[0]), *turns(expected[0], "assistant")])
    ids = model.tokenizer.encode(text.removesuffix(model.tokenizer.trailer))
    echoed = complete(server, prompt=ids, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    answer = len(tokens) + 1  # with its end
    np.testing.assert_allclose(sum(echoed["token_logprobs"][-answer:]), expected_logp, atol=1e-4)
    np.testing.assert_allclose(echoed["token_logprobs"][-answer:-1], [token["logprob"] for token in tokens], atol=1e-4)
    assert echoed["token_logprobs"][0] is None and len(echoed["tokens"]) == len(ids)

    whole = complete(server, prompt=ids[:8], max_tokens=TOKENS, logprobs=1, stop=["e"])["choices"][0]
    assert "e" not in whole["text"]
    events = complete(server, prompt=ids[:8], max_tokens=TOKENS, stop=["e"], stream=True)
    assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]
    assert events[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    counted = {"include_usage": True}
    events = chat(server, QUESTIONS[1], max_tokens=TOKENS, stream=True, n=2, stream_options=counted)
    for index in (0, 1):
        deltas = [event["choices"][0]["delta"] for event in events[:-1] if event["choices"][0]["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == expected[1]
    assert events[-1]["usage"]["total_tokens"] > 2 * len(expected[1].split())
    refusals(server)


def turns(text: str, role: str = "user") -> list:
    from fedjax_rai.text.prompts import Turn

    return [Turn(role, text)]


def refusals(server: serve.Server) -> None:
    """Errors have a status, a place and what is allowed; the server goes on."""
    good = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    for path, body, status, words in (
        ("/v1/chat/completions", b"{", 400, "not valid JSON"),
        ("/v1/chat/completions", b'{"temperature": NaN}', 400, "NaN is no number"),
        ("/v1/chat/completions", {**good, "model": "other"}, 404, "must be 'tiny'"),
        ("/v1/chat/completions", {**good, "max_tokens": 96}, 400, "maximum context length is 96 tokens"),
        ("/v1/completions", {"model": "tiny", "prompt": ""}, 400, "has no tokens"),
        ("/v1/completions", {"model": "tiny", "prompt": [10**6]}, 400, "token 1000000 is none"),
        ("/v1/embeddings", {}, 404, "no such endpoint"),
        ("/v1/completions", None, 405, "must be POST"),
    ):
        got, response = ask(server, path, body)
        assert got == status and words in response["error"]["message"], response
    assert ask(server, "/v1/completions", {"model": "tiny"}, kind="text/plain")[0] == 415
    assert ask(server, "/v1/models")[1]["data"][0]["id"] == "tiny"
    assert ask(server, "/v1/models/tiny")[0] == ask(server, "/health")[0] == 200


@pytest.mark.parity
def test_the_openai_client_reads_what_is_served(server):
    openai = pytest.importorskip("openai")
    host, port = server.server_address[:2]
    client = openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0)
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0}
    whole = client.chat.completions.create(**asked, max_tokens=TOKENS, logprobs=True, top_logprobs=3)
    assert whole.choices[0].message.content == generated(QUESTIONS[:1])[0]
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    streamed = client.chat.completions.create(**asked, max_completion_tokens=TOKENS, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.choices[0].message.content
    text = client.completions.create(model="tiny", prompt="Once", max_tokens=3, echo=True, logprobs=2, temperature=0)
    assert text.choices[0].text.startswith("Once") and text.choices[0].logprobs.token_logprobs[0] is None
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.BadRequestError, match="frequency_penalty = 1: is not computed here") as refused:
        client.chat.completions.create(**asked, frequency_penalty=1)
    assert refused.value.param == "frequency_penalty"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(**{**asked, "model": "gpt"})


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False)]
)
def test_who_can_reach_an_address(host, here):
    assert serve.is_loopback(host) is here


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("LOCALHOST", 200), ("localhost:1", 200), ("[::1]:8000", 200), ("[::1]", 200),
        ("evil.example", 403), ("evil.example:8000", 403), ("10.0.0.1", 403), ("127.0.0.1.evil.example", 403),
        ("[::2]", 403), ("a@127.0.0.1", 403), ("localhost:evil.example", 403), ("", 403),
    ],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(unasked, host, status):
    got, response = raw(unasked, host, "GET", "/v1/models")
    assert got == status and (got == 200 or "must be localhost" in response["error"]["message"])


def test_an_address_that_others_can_reach_has_any_name(unasked, monkeypatch):
    monkeypatch.setattr(serve.Server, "is_local", False)
    assert raw(unasked, "box.example", "GET", "/v1/models")[0] == 200


def test_an_echo_without_numbers_is_an_error(unasked, monkeypatch):
    """NaN is never -9999, which is log 0."""
    asked = {"model": "fake", "prompt": [1, 2], "echo": True, "logprobs": 1, "max_tokens": 0}
    for logp, status in ((math.nan, 500), (-math.inf, 200), (-1.0, 200)):
        monkeypatch.setattr(
            batching, "score", lambda model, texts, tops, logp=logp: iter([[Token(1), Token(2, logp)] for _ in texts])
        )
        got, response = ask(unasked, "/v1/completions", asked)
        assert got == status and (got == 200 or response["error"]["message"] == serve.NO_NUMBERS)
        assert got == 500 or response["choices"][0]["logprobs"]["token_logprobs"] == [None, max(logp, -9999.0)]


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_answered_no_more(unasked, monkeypatch, stream):
    began = threading.Event()
    gone = threading.Event()

    def answer(model: Any, rows: Any) -> None:
        began.set()
        while not (rows[0].gone() or gone.wait(0.005)):
            pass
        gone.set()

    monkeypatch.setattr(batching, "answer", answer)
    monkeypatch.setattr(serve, "LOOK", 0.01)
    connection = HTTPConnection(*unasked.server_address[:2], timeout=20)
    body = json.dumps({"model": "fake", "prompt": [1, 2], "max_tokens": 4, "stream": stream})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    assert began.wait(20) and not gone.wait(0.05)
    connection.close()
    noticed = gone.wait(5)
    gone.set()
    assert noticed


def test_a_body_that_is_too_large_is_read_to_its_end_before_it_is_refused(unasked, monkeypatch):
    """Who is still writing it would read no answer."""
    monkeypatch.setattr(serve, "LARGEST_BODY", 2**10)
    monkeypatch.setattr(serve, "PART", 2**20)
    got, response = ask(unasked, "/v1/completions", b" " * 2**25)
    assert got == 413 and response["error"]["message"] == "the body has 33554432 bytes; must be at most 1024"
    assert ask(unasked, "/health")[0] == 200


@pytest.mark.parametrize(("method", "path", "status"), [("PUT", "/v1/models", 501), ("GET", "/" + "a" * 70_000, 414)])
def test_what_the_standard_library_refuses_has_the_shape_of_openai(unasked, method, path, status):
    got, response = raw(unasked, "localhost", method, path)
    assert got == status and {*response["error"]} == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"\ud800": 1}),
        ("chat/completions", {"model": "fake", "messages": [{"role": "user", "content": "a", "\ud800": 1}]}),
    ],
)
def test_half_of_a_character_in_a_name_is_named_in_the_answer(unasked, path, body):
    got, response = ask(unasked, f"/v1/{path}", body)
    assert got == 400 and "\ud800: " in response["error"]["message"]


def test_a_length_of_thousands_of_digits_is_too_large(unasked, monkeypatch):
    monkeypatch.setattr(serve, "MOST_DROPPED", 0)
    got, response = raw(unasked, "localhost", "POST", "/v1/completions", **{"Content-Length": "9" * 5000})
    assert got == 413 and response["error"]["message"].startswith("the body has 999999999999999999... bytes; must be")


def test_the_answer_to_head_has_no_body(unasked):
    with socket.create_connection(unasked.server_address[:2], timeout=20) as connection:
        connection.sendall(b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 501 ") and answer.partition(b"\r\n\r\n")[2] == b""


def test_a_fault_within_a_stream_is_an_event_of_it(unasked, monkeypatch, capsys):
    """Not a second response in its middle."""
    monkeypatch.setattr(batching, "answer", lambda model, rows: rows[0].give(Piece("a", (), "stop", 1)))

    def fails(*_: Any) -> Any:
        raise ValueError("a fault")

    monkeypatch.setattr(serve.responses, "chunk", fails)
    got, events = ask(unasked, "/v1/completions", {"model": "fake", "prompt": [1, 2], "max_tokens": 4, "stream": True})
    assert got == 200 and [event["error"]["message"] for event in events] == ["a fault"]
    assert "a fault" in capsys.readouterr().err


def test_a_stop_string_that_is_a_special_token_ends_an_answer_as_that_token(unasked):
    """It is never part of a text, so that as a text it would end nothing."""
    service = unasked.service
    under_way = service.begin({"model": "fake", "prompt": [1, 2], "max_tokens": 4, "stop": ["b", "<end>"]}, chat=False)
    (row,) = service.rows(under_way)
    assert row.settings.end_ids == (7,) and row.settings.stop == ("b", "<end>")


@pytest.mark.parametrize("ends", [(), (7,), tuple(range(MOST_STOPS + 3))])
def test_end_tokens_have_one_width_so_that_none_compiles(ends):
    """Whatever stop strings are special tokens; what fills them up is no token, so it ends nothing."""
    padded = sampler.padded_ends([ends, ()])
    assert padded.shape == (2, sampler.ENDS)
    assert (*padded[0, : len(ends)],) == ends
    assert (padded[0, len(ends) :] == sampler.NO_TOKEN).all() and (padded[1] == sampler.NO_TOKEN).all()


def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_know(unasked):
    """litellm reads the message, Inspect the code."""
    asked = {"model": "fake", "prompt": [1] * 12}
    got, response = ask(unasked, "/v1/completions", {**asked, "max_tokens": 5})
    assert got == 400 and "this model's maximum context length is 16 tokens" in response["error"]["message"]
    assert "the prompt has 12 and its answer at most 5" in response["error"]["message"]
    assert response["error"]["code"] == "context_length_exceeded" and response["error"]["param"] == "prompt"


@pytest.mark.parametrize(("text", "ids"), [("ab", [0, 2]), ("<s>ab", [5])])
def test_a_text_that_begins_with_bos_gets_no_other(unasked, text, ids):
    """As a client writes it that put the chat template on by itself."""
    assert unasked.service.begin({"model": "fake", "prompt": text, "max_tokens": 4}, chat=False).prompts == [ids]


@pytest.fixture
def unasked() -> Iterator[serve.Server]:
    """A server without a model."""
    hf = SimpleNamespace(
        decode=lambda ids, **_: "a" * len(ids),
        encode=lambda text, add_special_tokens, **_: [0] * add_special_tokens + [len(text)],
        bos_token="<s>",
    )
    tokenizer = SimpleNamespace(hf=hf, decode=lambda ids: "", specials={"<s>": 0, "<end>": 7})
    lm = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vocab_size=8)))
    options = serve.Options(port=0)
    bound = serve.bind(options.host, options.port)
    bound.service = serve.Service("fake", Model(lm, None, tokenizer, "float32", 16), (), options)  # pyright: ignore
    thread = threading.Thread(target=bound.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield bound
    bound.shutdown()
    bound.server_close()
    bound.service.stop()


def raw(server: serve.Server, host: str, method: str, path: str, **headers: str) -> tuple[int, Any]:
    """(status, what came back) of a request by this name."""
    connection = HTTPConnection(*server.server_address[:2], timeout=20)  # pyright: ignore[reportArgumentType]
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


def test_an_adapter_of_a_base_in_few_bits_is_not_merged(tmp_path, monkeypatch):
    """Nothing is read but the run's config, which says what its base is in."""
    (tmp_path / "config.yaml").write_text("model: {quantize: nf4}\n")
    target = Target("a run", "tiny", None, tmp_path / "adapter", tmp_path)
    monkeypatch.setattr(serve, "read_target", lambda *_, **__: target)
    with pytest.raises(InputError, match="--merged: the base of a run is in nf4; must be left out"):
        serve.load("a run", serve.Options(merged=True))
    assert of_target(target).quantize == "nf4"


def test_a_port_that_is_taken_is_named():
    bound = serve.bind("127.0.0.1", 0)
    try:
        with pytest.raises(
            InputError, match=r"--port \d+: another process listens there already; name another one \(0 "
        ):
            serve.bind("127.0.0.1", bound.server_address[1])
    finally:
        bound.server_close()
