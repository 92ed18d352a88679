"""lm-evaluation-harness over the endpoint: its client's likelihoods and answers are those of our own `LM` class."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fedjax_rai.runs.target import read_target
from fedjax_rai.text.hub import resolve
from fedjax_rai.tools import harness, serve

PAIRS = [
    ("What is 3 plus 4?", " It is 7."), ("The town ", "is old"), ("", "Nobody knows."), ("3 더하기 4는", " 7 <b>"),
    ("Once upon a time " * 30, "it rained."),
]  # fmt: skip
QUESTIONS = ["What is 3 plus 4?", "Who broke it?"]
LONG = ["The town is old. " * 6]
LONGEST = 48
SENT_BESIDES = 2
"""Tokens that its client counts and our class does not: one that it has generated, one for which no log p is asked."""


@pytest.fixture
def url() -> Iterator[str]:
    """The tiny model at a free port."""
    options = serve.Options(port=0, dtype="float32", max_length=LONGEST + SENT_BESIDES)
    bound = serve.bind(options.host, options.port)
    bound.service = serve.load("tiny", options)
    thread = threading.Thread(target=bound.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{bound.server_address[1]}/v1/completions"
    bound.shutdown()
    bound.server_close()
    bound.service.stop()


def instances(arguments: list[tuple]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.mark.parity
def test_its_client_gets_what_our_class_computes(url):
    """Tokens one by one, and texts by twos; too long, empty, rolled; with stop strings."""
    for package in ("lm_eval", "aiohttp", "requests", "tenacity"):
        pytest.importorskip(package)
    from lm_eval.models.openai_completions import LocalCompletionsAPI  # pyright: ignore[reportMissingImports]

    asked = harness.Request(read_target("tiny"), (), dtype="float32", max_length=LONGEST)
    ours = harness.language_model(*harness.load(asked), asked)
    expected = ours.loglikelihood(instances(PAIRS), disable_tqdm=True)
    rolled = ours.loglikelihood_rolling(instances([(text,) for text in LONG]), disable_tqdm=True)
    wanted = [(text, {"until": ["."], "max_gen_toks": 8, "do_sample": False}) for text in QUESTIONS]
    answers = ours.generate_until(instances(wanted))
    assert any(answers)
    for settings in ({}, {"tokenized_requests": False, "batch_size": 2}):
        theirs = LocalCompletionsAPI(
            base_url=url,
            model="tiny",
            tokenizer=str(resolve("tiny")),
            max_length=LONGEST + SENT_BESIDES,
            max_retries=1,
            **settings,
        )
        got = theirs.loglikelihood(instances(PAIRS), disable_tqdm=True)
        assert [logp for logp, _ in got] == pytest.approx([logp for logp, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        texts = instances([(text,) for text in LONG])
        assert theirs.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(rolled, abs=1e-4)
        assert theirs.generate_until(instances(wanted), disable_tqdm=True) == answers
