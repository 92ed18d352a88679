"""The peer vLLM, by a module that takes what its offline engine takes and refuses everything else; no GPU is here."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedjax_rai.bench import peers, vllm_peer
from fedjax_rai.bench.random_inputs import random_prompts
from fedjax_rai.bench.requests import Asked, plan
from fedjax_rai.bench.shapes import DecodingShape
from fedjax_rai.errors import InputError
from tests.model.common import FIXTURES

SHAPE = DecodingShape(rows=3, prompt=5, new=4)


class SamplingParams:
    """As vllm.SamplingParams: keywords, of which these are used."""

    def __init__(self, *, temperature: float, max_tokens: int, ignore_eos: bool, detokenize: bool):
        assert (temperature, ignore_eos, detokenize) == (0.0, True, False)
        self.max_tokens = max_tokens


class LLM:
    """As vllm.LLM: keywords, a folder with a config, prompts as token ids; it answers with zeros."""

    made: list["LLM"] = []
    shorter = 0  # by so many tokens the last answer ends early

    def __init__(
        self,
        *,
        model: str,
        skip_tokenizer_init: bool,
        load_format: str,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        gpu_memory_utilization: float,
        enable_prefix_caching: bool,
        seed: int,
    ):
        self.config = json.loads((Path(model) / "config.json").read_text())
        self.weights = load_format
        assert (skip_tokenizer_init, enable_prefix_caching, seed) == (True, False, 0)
        assert max_model_len <= self.config["max_position_embeddings"] and 0 < gpu_memory_utilization < 0.5
        self.dtype = dtype
        self.room = (max_num_seqs, max_model_len)
        self.asked: list[list[int]] = []
        LLM.made.append(self)

    def generate(self, prompts: list[dict[str, list[int]]], sampling_params: SamplingParams, *, use_tqdm: bool) -> Any:
        assert not use_tqdm
        self.asked = [prompt["prompt_token_ids"] for prompt in prompts]
        lengths = [sampling_params.max_tokens] * len(prompts)
        lengths[-1] -= self.shorter
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * length)]) for length in lengths]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[LLM]:
    """The engines that are made."""
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "some GPU")
    torch = SimpleNamespace(__version__="9.1", cuda=cuda)
    module = SimpleNamespace(__version__="0.99", LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM.made


def request(model: str = "tiny") -> dict[str, Any]:
    given = {"model": model, "rows": "3", "prompt": "5", "new": "4", "dtype": "float32"}
    (found,) = plan(Asked("generate", given))
    return found


def test_it_answers_our_prompts_with_as_many_tokens(engines) -> None:
    prepared = vllm_peer.prepare(request())
    prepared.run()
    (engine,) = engines
    ours = np.asarray(random_prompts(4096, SHAPE).tokens)
    assert engine.asked == ours.tolist() and len({tuple(prompt) for prompt in engine.asked}) == 3
    assert (engine.room, engine.dtype, engine.weights) == ((3, 9), "float32", "dummy")
    assert (engine.config["model_type"], engine.config["num_hidden_layers"]) == ("llama", 6)
    known = prepared.ready()
    assert known["versions"].startswith("vllm 0.99, torch 9.1, ") and known["device"] == "some GPU"
    assert prepared.end() == {}, "its memory is what it takes for itself"


def test_a_folder_with_weights_is_read(engines) -> None:
    vllm_peer.prepare(request(str(FIXTURES / "models" / "phi3")))
    assert engines[0].weights == "auto" and engines[0].config["model_type"] == "phi3"


def test_answers_of_other_lengths_are_refused(engines, monkeypatch) -> None:
    prepared = vllm_peer.prepare(request())
    monkeypatch.setattr(LLM, "shorter", 1)
    with pytest.raises(InputError, match=r"^--peer vllm: gave 3 answers of \[3, 4\] tokens, not 4$"):
        prepared.run()


def test_what_it_lacks_is_said(monkeypatch) -> None:
    """No package; no GPU; another work; an environment that is none."""
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "vllm" else name)
    with pytest.raises(InputError, match="^--peer vllm: needs vllm; pip install vllm in an environment of its own"):
        peers.chosen(["vllm"], "generate")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(peers, "_run", lambda *_: subprocess.CompletedProcess([], 1))
    with pytest.raises(InputError, match="^--peer vllm: torch sees no GPU here; must be a machine with one"):
        peers.chosen(["vllm"], "generate")
    with pytest.raises(InputError, match="^--peer vllm: measures generate, not round; must be torch or trl or flower$"):
        peers.chosen(["vllm"], "round")
    monkeypatch.undo()
    with pytest.raises(InputError, match="^--vllm-python absent: does not run; must be the Python of an environment$"):
        peers.chosen(["vllm"], "generate", {"vllm": "absent"})


def test_on_a_machine_with_a_gpu_its_environment_is_used(monkeypatch) -> None:
    monkeypatch.setattr(peers, "_run", lambda *_: subprocess.CompletedProcess([], 0, stdout=""))
    (side,) = peers.chosen(["vllm"], "generate", {"vllm": "/venv/python", "flower": None})
    assert side.command == ["/venv/python", "-m", "fedjax_rai.bench.vllm_peer"]
    assert side.environment["VLLM_NO_USAGE_STATS"] == "1"


def test_a_job_has_no_peer() -> None:
    (found,) = plan(Asked("generate", {"answers": "520"}))
    with pytest.raises(InputError, match="^--peer vllm: has no answers of these lengths; --answers must be left out$"):
        peers.check_same(found, [peers.Side("vllm", [], {})])
