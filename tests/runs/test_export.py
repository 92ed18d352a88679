"""An exported run is what was evaluated, as an adapter or merged, with all that others need beside it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.model import families, peft, weights
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.runs import files
from fedjax_rai.text.hub import resolve
from tests.model.common import assert_trees_equal, edit_tensors, logits

TOKENS = np.random.default_rng(0).integers(0, 1024, (2, 30))


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run without rounds, its adapter then made to do something."""
    done = tmp_path / "run"
    shutil.copytree(finished_run, done)
    edit_tensors(done / "adapter" / peft.WEIGHTS, lambda own: own.update({k: v + 0.05 for k, v in own.items()}))
    return done


def export(*arguments: object) -> None:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exit_code == 0, done.output


def test_an_adapter_and_a_merged_model_are_the_run(folder, tmp_path):
    shape = families.read_config(resolve("tiny"))
    lora, adapter = peft.load_adapter(folder / "adapter", shape)
    base = weights.load_base(resolve("tiny"), shape)
    expected = logits(Decoder(shape, lora), base, adapter, TOKENS)
    assert np.abs(expected - logits(Decoder(shape), base, None, TOKENS)).max() > 1e-2

    export(folder, tmp_path / "adapter")
    assert_trees_equal(peft.load_adapter(tmp_path / "adapter", shape)[1], adapter)
    export(folder, tmp_path / "merged", "--merged", "--dtype", "float32")
    merged = families.read_config(tmp_path / "merged")
    got = logits(Decoder(merged), weights.load_base(tmp_path / "merged", merged), None, TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    export(folder, tmp_path / "half", "--merged", "--dtype", "bf16")
    raw = json.loads((tmp_path / "half" / "config.json").read_text())
    assert raw["dtype"] == "bfloat16" and raw["eos_token_id"] == 2

    for out in ("adapter", "merged"):
        assert (tmp_path / out / "tokenizer.json").read_bytes() == (resolve("tiny") / "tokenizer.json").read_bytes()
        assert "chat_template" in (tmp_path / out / "tokenizer_config.json").read_text() or list(
            (tmp_path / out).glob("chat_template*")
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "half", "merged", "run"]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_base_in_few_bits_is_no_longer_what_was_evaluated(folder, tmp_path, quantize):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("quantize: none", f"quantize: {quantize}"))
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out"), "--merged"])
    assert done.exit_code == 0, done.output
    assert ("the run's base was in nf4" in done.output) == (quantize == "nf4")
    adapter = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "adapter")])
    assert adapter.exit_code == 0 and "the run's base" not in adapter.output


def test_the_card_says_what_was_trained_and_measured(folder, tmp_path):
    export(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    summary = files.read_json(folder / "summary.json")
    assert "library_name: peft" in card and "**Synthetic**: model, data, AdvBench prompts." in card
    assert "fedavg: 0 rounds, 2 of 4 clients" in card and "rank 2, alpha 4" in card
    assert f"| harmless | {summary['rates']['harmless']['mean']:.1f} |" in card
    assert "guard filter: off" in card


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(folder, tmp_path):
    def refused(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["export", *map(str, arguments)])
        assert done.exit_code == 2
        return done.stderr

    assert "no such folder" in refused(tmp_path / "absent", tmp_path / "out")
    assert "not the folder of a finished run" in refused(tmp_path, tmp_path / "out")
    assert "--dtype half: must be one of" in refused(folder, tmp_path / "out", "--dtype", "half")
    assert "exists and is not an empty folder" in refused(folder, folder)
    edit_tensors(folder / "adapter" / peft.WEIGHTS, lambda own: own.popitem())
    assert "tensors do not fit the model" in refused(folder, tmp_path / "out", "--merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_an_export_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "save_safetensors", lambda path, tensors: (_ for _ in ()).throw(OSError("disk full")))
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out"), "--merged"])
    assert isinstance(done.exception, OSError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT uses what transformers is about to rename
def test_transformers_and_peft_load_the_export(folder, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra (torch, peft) is not installed")
    library = pytest.importorskip("peft", reason="the parity extra (torch, peft) is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(folder, tmp_path / "adapter")
    export(folder, tmp_path / "merged", "--merged", "--dtype", "fp32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(resolve("tiny"), dtype="float32")
    wrapped = library.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        both = [own(torch.tensor(TOKENS)).logits.numpy() for own in (merged, wrapped)]
    np.testing.assert_allclose(*both, atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert "<|user|>Hello<|end|>" in asked
