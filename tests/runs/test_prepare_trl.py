"""TRL takes a prepared set as it is, and makes the very tokens of it that we train on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.prepare import prepare
from fedjax_rai.text.hub import resolve

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ABSENT = "the parity extra (torch, trl) is not installed"
PLAIN: dict[str, Any] = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}


@pytest.fixture
def made(config, tmp_path) -> tuple[ExperimentConfig, Any]:
    """(a config that trains on a set of the tiny base's revisions, the set as `datasets` reads it)."""
    for library in ("torch", "trl"):
        pytest.importorskip(library, reason=ABSENT)
    import datasets

    config = config.model_copy(update={"cai": config.cai.model_copy(update={"temperature": 2.0})})
    out = prepare(config, tmp_path / "set", 8)
    files: dict[str, Any] = {"data_files": str(out / "pairs-*.jsonl"), "cache_dir": str(tmp_path / "cache")}
    own = config.cai.model_copy(update={"data": str(out)})
    return config.model_copy(update={"cai": own}), datasets.load_dataset("json", **files, split="train")


def tiny() -> dict[str, Any]:
    """Model and tokenizer, as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return {"model": model, "processing_class": AutoTokenizer.from_pretrained(folder)}


def ours(side: Any) -> list[tuple[list[int], list[int]]]:
    """(tokens, those that are targets) of each row."""
    columns = [np.asarray(column) for column in (side.tokens, side.valid, side.loss_mask)]
    return [(ids[valid].tolist(), ids[mask].tolist()) for ids, valid, mask in zip(*columns, strict=True)]


def test_the_preference_trainer_takes_the_rows(made, tmp_path):
    trl = pytest.importorskip("trl", reason=ABSENT)
    config, rows = made
    trainer = trl.DPOTrainer(
        args=trl.DPOConfig(str(tmp_path / "t"), max_steps=1, **PLAIN), train_dataset=rows, **tiny()
    )
    prepared = Setting(config).revising.prepared
    for name, side in (("chosen_ids", prepared.chosen), ("rejected_ids", prepared.rejected)):
        theirs = [(own["prompt_ids"] + own[name], own[name]) for own in trainer.train_dataset]
        assert theirs == ours(side) and len(theirs) > 2
    assert np.isfinite(trainer.train().training_loss)


def test_the_fine_tuning_trainer_takes_prompt_and_chosen(made, tmp_path):
    """As the module says."""
    trl = pytest.importorskip("trl", reason=ABSENT)
    config, rows = made
    rows = rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
    args = trl.SFTConfig(str(tmp_path / "t"), max_steps=1, shuffle_dataset=False, **PLAIN)
    trainer = trl.SFTTrainer(args=args, train_dataset=rows, **tiny())
    theirs = [(own["input_ids"], [label for label in own["labels"] if label >= 0]) for own in trainer.train_dataset]
    assert theirs == ours(Setting(config).revising.prepared.chosen)
    assert np.isfinite(trainer.train().training_loss)


def test_the_data_utilities_take_the_rows_but_not_with_messages(made):
    from trl.data_utils import apply_chat_template, is_conversational  # pyright: ignore[reportMissingImports]

    config, rows = made
    tokenizer = tiny()["processing_class"]
    (path,) = Path(config.cai.data).glob("pairs-*.jsonl")
    for own, raw in zip(rows, files.read_rows(path), strict=True):
        assert own == raw and is_conversational(own)
        text = apply_chat_template(own, tokenizer)
        assert text["prompt"].endswith("<|assistant|>") and text["chosen"] == f"{raw['chosen'][0]['content']}<|end|>"
        with pytest.raises(KeyError, match="Invalid keys"):
            apply_chat_template(own | {"messages": own["prompt"] + own["chosen"]}, tokenizer)
