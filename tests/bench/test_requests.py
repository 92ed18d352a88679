"""Options with several values, the sizes of a config, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.bench import peers
from fedjax_rai.bench.requests import NAMES, Asked, parse, plan
from fedjax_rai.config.schema import ModelConfig
from fedjax_rai.errors import InputError

CONFIG = """
model: {dtype: float32, remat: full}
lora: {rank: 3, alpha: 5}
mesh: {fsdp: 2}
data: {max_length: 48}
federated: {cohort: 2, local_steps: 3, batch_size: 7, micro_batch: 7, clients_per_chunk: 2, algorithm: fedadam}
cai: {prompts: 9, prompts_per_chunk: 4, max_new_tokens: 11, revisions: 2, iterations: 6, batch_size: 5, critic: base}
eval: {batch_size: 13, max_new_tokens: 12}
"""


def sizes(work: str, config: Path | None = None, **given: str) -> list[dict[str, Any]]:
    return [request["shape"] for request in plan(Asked(work, given, config))]


def test_every_combination_of_values_is_a_request() -> None:
    found = plan(Asked("round", {"clients": "1,5", "batch": "4, 16", "rank": "8", "model": None}))
    assert [(r["shape"]["clients"], r["shape"]["batch"]) for r in found] == [(1, 4), (1, 16), (5, 4), (5, 16)]
    assert {r["lora"]["rank"] for r in found} == {8} and {r["lora"]["alpha"] for r in found} == {16.0}
    assert {r["model"] for r in found} == {"tiny"}


def test_a_job_is_answered_by_the_queue_if_nothing_else_is_asked_for() -> None:
    assert [shape["order"] for shape in sizes("generate", answers="520")] == ["queue"]
    both = sizes("generate", answers="8,520", order="queue,batches")
    assert [(s["answers"], s["order"]) for s in both] == [
        (8, "queue"), (8, "batches"), (520, "queue"), (520, "batches"),
    ]  # fmt: skip


def test_an_adapter_is_merged_into_no_quantised_base() -> None:
    found = sizes("generate", adapter="apart,merged")
    assert [shape["adapter"] for shape in found] == ["apart", "merged"]
    with pytest.raises(
        InputError, match="^--adapter merged: is of no quantised base; must be apart with --quantize nf4"
    ):
        sizes("generate", adapter="merged", quantize="nf4")


def test_a_value_stands_once() -> None:
    assert parse("clients", "5,1,5") == [5, 1]


def test_without_a_config_sizes_are_the_papers() -> None:
    assert sizes("round") == [{"clients": 5, "steps": 25, "batch": 16, "length": 512, "chunk": 1}]
    assert sizes("cai", iterations="0")[0]["iterations"] == 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("round", {"clients": 2, "steps": 3, "batch": 7, "length": 48, "chunk": 2}),
        ("generate", {"rows": 13, "prompt": 64, "new": 12, "answers": None, "order": None, "adapter": None}),
        (
            "cai",
            {
                "prompts": 9,
                "chunk": 4,
                "prompt": 64,
                "request": 32,
                "new": 11,
                "revisions": 2,
                "iterations": 6,
                "batch": 5,
                "adapter": None,
            },
        ),
        ("score", {"pairs": 1000, "length": 48, "batch": 13}),
    ],
)
def test_a_config_has_the_sizes(work: str, expected: dict[str, int], config: Path) -> None:
    assert sizes(work, config) == [expected]


def test_a_config_says_how_it_is_computed_and_options_go_before_it(config: Path) -> None:
    asked = Asked("round", {"dtype": "bfloat16", "clients": "1"}, config, ["cai.critic=policy"])
    (request,) = plan(asked)
    others = {"attention": "xla", "unroll": "none", "quantize": "none", "kv_cache": "model"}
    assert request["computed"] == {"dtype": "bfloat16", "remat": "full", **others}
    assert request["micro_batch"] == 7
    assert request["mesh"] == {"fsdp": 2, "tensor": 1}
    assert (request["lora"]["rank"], request["lora"]["alpha"], request["shape"]["clients"]) == (3, 5.0, 1)
    assert request["federated"]["algorithm"] == "fedadam" and request["cai"]["critic"] == "policy"
    assert request["sections"]["fedadam"]["beta1"] == 0.9
    assert Path(request["model"]).is_dir()


def test_names_are_those_of_the_config() -> None:
    for name, known in NAMES.items():
        assert set(ModelConfig.model_json_schema()["properties"][name]["enum"]) == set(known)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("clients", "1,x", "--clients 1,x: 'x' is no whole number; must be like 16"),
        ("clients", "1,", "--clients 1,: '' is no whole number"),
        ("batch", "1.5", "--batch 1.5: '1.5' is no whole number"),
        ("batch", "4,0", "--batch 4,0: 0 is too small; must be at least 1"),
        ("clients", "-1", "--clients -1: -1 is too small; must be at least 1"),
        ("length", "1", "--length 1: 1 is too small; must be at least 2"),
        ("dtype", "float23", "--dtype float23: must be one of bfloat16, float32; did you mean float32?"),
        ("attention", "XLA", "--attention XLA: must be one of xla, chunked, cudnn, splash; did you mean xla?"),
        ("model", "1b", "or a Hugging Face folder; did you mean 1B?"),
        ("model", "tony", "--model tony: no such shape, and no such folder; must be one of tiny, 135M, 1B, 8B"),
        ("model", "empty", "--model empty: a folder without a config.json; must be one of tiny"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    option: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(InputError) as refused:
        parse(option, text)
    assert message in str(refused.value)


def test_a_micro_batch_divides_the_batch_and_a_split_is_given(config: Path) -> None:
    with pytest.raises(InputError, match="^--micro-batch 3: must divide the batch, 16$"):
        plan(Asked("round", {"micro_batch": "3"}))
    with pytest.raises(InputError, match="^mesh.auto = true: a benchmark takes the split"):
        plan(Asked("generate", {}, config, ["mesh.fsdp=1", "mesh.auto=true"]))


def refusal(request: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        peers.check_same(request, [peers.Side("torch", [], {})])
    return str(refused.value)


def test_peers_are_known_and_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peers.split(["trl,torch", "torch"]) == ["trl", "torch"]
    with pytest.raises(InputError, match=r"--peer torc: must be one of .*; did you mean torch\?"):
        peers.split(["torc"])
    with pytest.raises(InputError, match="--peer trl: measures round, not score; must be torch"):
        peers.chosen(["trl"], "score")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(InputError, match="^--peer torch: needs peft; pip install torch peft$"):
        peers.chosen(["torch"], "round")


def test_peers_measure_what_we_do_or_nothing() -> None:
    (request,) = plan(Asked("round", {}))
    peers.check_same(request, [peers.Side("torch", [], {})])
    computed = request["computed"]
    assert "must be --quantize none" in refusal(request | {"computed": computed | {"quantize": "nf4"}})
    assert "must be --kv-cache model" in refusal(request | {"computed": computed | {"kv_cache": "int8"}})
    assert "must be --devices 1" in refusal(request | {"devices": 2})
    assert "not fedadam; must be" in refusal(request | {"federated": {"algorithm": "fedadam"}})
