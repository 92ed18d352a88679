"""`fedjax-rai generate` gives transformers' tokens, whatever shares the batch; bad rows are named by file and line."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.mesh import AXES
from fedjax_rai.model import families, peft, weights
from fedjax_rai.model.lora import Lora
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.prompts import prompt, question
from fedjax_rai.text.tokenizer import load_tokenizer
from fedjax_rai.tools import generate as tools
from tests.model.common import FIXTURES, edit_json, edit_tensors, random_adapter
from tests.texts import write_lines

GREEDY = ("--greedy", "--dtype", "float32", "--json")


def generate(model: Any, prompts: Path, *options: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["generate", str(model), "--prompts", str(prompts), *map(str, options)])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(model: Any, prompts: Path, *options: object) -> str:
    done = CliRunner().invoke(app, ["generate", str(model), "--prompts", str(prompts), *map(str, options)])
    assert done.exit_code == 2 and not done.stdout
    return done.stderr.strip()


def given(stdin: bytes | None, *options: object) -> Any:
    """The command's result with these options, and this standard input."""
    return CliRunner().invoke(app, ["generate", *map(str, options)], input=stdin)


@pytest.fixture
def stopping(tmp_path) -> tuple[Path, dict[str, Any]]:
    """A fixture model that stops at a token which its first greedy answer holds, and transformers' numbers."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "models" / "gemma3", folder)
    expected = dict(np.load(folder / "reference.npz"))
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = [int(expected["greedy"][0, 5]), 63]
    (folder / "config.json").write_text(json.dumps(config))
    return folder, expected


def test_greedy_tokens_are_those_of_transformers_up_to_the_end(stopping, tmp_path):
    folder, expected = stopping
    end, longest = int(expected["greedy"][0, 5]), expected["tokens"].shape[1]
    rows = [
        {"token_ids": own[longest - n :].tolist()}
        for own, n in zip(expected["tokens"], expected["lengths"], strict=True)
    ]
    for batch in (1, 16):
        got = generate(folder, write_lines(tmp_path / "p.jsonl", rows), "--max-new", 32, "--batch-size", batch, *GREEDY)
        assert [row["text"] for row in got] == [None] * len(rows)
        for row, greedy in zip(got, expected["greedy"].tolist(), strict=True):
            until = next((i + 1 for i, token in enumerate(greedy) if token in (end, 63)), 32)
            assert row["token_ids"] == greedy[:until]
    assert len(got[0]["token_ids"]) <= 6


def test_prompts_take_the_chat_template_unless_raw(tmp_path):
    tokenizer, text = load_tokenizer("tiny"), "What is 3 plus 4?"
    templated = tokenizer.encode(prompt(tokenizer, question(text)))
    rows = [{"prompt": text}, {"token_ids": templated}, {"token_ids": tokenizer.hf(text)["input_ids"]}]
    path = write_lines(tmp_path / "p.jsonl", rows)
    asked, ids, _ = generate("tiny", path, "--max-new", 6, *GREEDY)
    assert asked == ids and asked["text"] == tokenizer.decode(asked["token_ids"])
    raw, _, plain = generate("tiny", path, "--max-new", 6, "--raw", *GREEDY)
    assert raw == plain != asked


def test_text_is_printed_without_json(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "What is 3 plus 4?"}])
    (row,) = generate("tiny", path, "--max-new", 6, *GREEDY)
    done = CliRunner().invoke(app, ["generate", "tiny", "--prompts", str(path), "--max-new", "6", "--dtype", "fp32"])
    assert done.stdout == row["text"] + "\n"


def test_prompts_come_from_options_a_file_or_standard_input(tmp_path):
    """The same prompts by each way have the same answers, in the order given."""
    texts = ["What is 3 plus 4?", "Who broke it?", "{x} is what?"]
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": text} for text in texts])
    options = ("tiny", "--max-new", 6, *GREEDY)
    by_file = given(None, *options, "--prompts", path)
    assert by_file.exit_code == 0 and len(by_file.stdout.splitlines()) == 3
    by_option = given(None, *options, *(part for text in texts for part in ("--prompt", text)))
    assert by_option.stdout == by_file.stdout
    lines = b'What is 3 plus 4?\n\n  {"prompt": "Who broke it?"}\n{"prompt": "{x} is what?"}'
    by_input = given(lines, *options, "--prompts", "-")
    assert by_input.stdout == by_file.stdout


@pytest.mark.parametrize(
    ("stdin", "options", "message"),
    [
        (None, (), "no prompts: must be one of --prompt TEXT, --prompts FILE, or --prompts - for standard input"),
        (b"a", ("--prompt", "a", "--prompts", "-"), "both --prompt and --prompts: must be one of"),
        (None, ("--prompt", "a", "--prompt", " "), "--prompt (number 2): is empty; must be the text of a prompt"),
        (None, ("--prompt", ""), "--prompt: is empty"),
        (b"", ("--prompts", "-"), "standard input: holds no prompts"),
        (b"\n \n", ("--prompts", "-"), "standard input: holds no prompts"),
        (b"a\n{b", ("--prompts", "-"), "standard input:2:2: not valid JSON"),
        (b"a\n{}", ("--prompts", "-"), 'standard input:2: must be an object with either "prompt"'),
        (b"a\n\xff", ("--prompts", "-"), "standard input:2: byte 2 is not UTF-8; must be a text file"),
        (b'{"prompt": "\\ud800"}', ("--prompts", "-"), "standard input:1: field 'prompt' holds half of a character"),
    ],
)
def test_bad_sources_of_prompts_are_refused(stdin, options, message):
    done = given(stdin, "tiny", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.slow
def test_samples_depend_on_the_seed_and_on_nothing_else(tmp_path):
    rows = [{"prompt": "Tell me about the town."}, {"prompt": "Who broke it?"}, {"prompt": "Why is that, and where?"}]
    path = write_lines(tmp_path / "p.jsonl", rows)
    options = ("--max-new", 8, "--temperature", 1.5, "--top-p", 0.95, "--json")
    once = generate("tiny", path, *options)
    assert generate("tiny", path, "--batch-size", 1, *options) == once
    assert generate("tiny", path, "--seed", 1, *options) != once


@pytest.mark.slow
def test_each_bound_on_sampling_is_applied(tmp_path):
    """One that keeps the likeliest token alone is greedy; one that keeps all tokens changes no sample."""
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "Tell me about the town."}, {"prompt": "Who broke it?"}])
    options = ("--max-new", 8, "--json")
    greedy = generate("tiny", path, "--greedy", *options)
    drawn = generate("tiny", path, "--temperature", 3, *options)
    assert drawn != greedy
    for bound, tight, loose in (("--top-k", 1, 2**40), ("--min-p", 0.9999, 0), ("--top-p", 1e-6, 1)):
        assert generate("tiny", path, bound, tight, *options) == greedy
        assert generate("tiny", path, "--temperature", 3, bound, loose, *options) == drawn
    assert generate("tiny", path, "--top-k", 2**40, *options) == generate("tiny", path, "--temperature", 1, *options)


def test_a_base_is_cut_by_a_number_that_divides_it(monkeypatch):
    """Of six devices two or three; 256 channels and their kernels are cut by two, and by three or six not at all."""
    config = families.read_config(resolve("tiny"))
    monkeypatch.setattr(tools.jax, "device_count", lambda: 6)
    whole = tools.base_bytes(config, AbstractMesh((6, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3))
    cuts = {}
    for share in (2, 1.9, 0.9):
        monkeypatch.setattr(tools, "device_limit", lambda limit=int(share * whole): limit)
        cuts[share] = tools.least_split(config)
    assert cuts == {2: 1, 1.9: 2, 0.9: 2}


@pytest.mark.slow
def test_a_base_that_takes_more_than_half_of_a_device_lies_on_several(tmp_path, monkeypatch):
    """On two devices; the answers are those of a base that each of them has whole."""
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "Tell me about the town."}, {"prompt": "Who broke it?"}])
    loaded = []

    def load_base(*given):
        loaded.append(weights.load_base(*given))
        return loaded[-1]

    monkeypatch.setattr(tools, "load_base", load_base)

    def answered(limit: int | None) -> list[dict[str, Any]]:
        monkeypatch.setattr(tools, "device_limit", lambda: limit)
        return generate("tiny", path, "--max-new", 8, *GREEDY)

    unlimited = answered(None)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded[0]))
    assert unlimited == answered(2 * held) == answered(2 * held - 1)
    parts = [base["layers"]["qkv_proj"].addressable_shards[0].data.shape[1] for base in loaded]
    assert parts == [parts[0], parts[0], parts[0] // 2]


def test_an_adapter_changes_the_answer(tmp_path):
    folder = FIXTURES / "models" / "phi3"
    config = families.read_config(folder)
    own = Lora(config.targets, 2, 8.0, rank_pattern=(("o_proj", 1),))
    peft.save_adapter(tmp_path / "adapter", config, own, random_adapter(config, own), str(folder))
    path = write_lines(tmp_path / "p.jsonl", [{"token_ids": [1, 2, 3]}])
    plain = generate(folder, path, "--max-new", 32, *GREEDY)
    adapted = generate(folder, path, "--max-new", 32, "--adapter", tmp_path / "adapter", *GREEDY)
    assert plain != adapted
    assert adapted == generate(folder, path, "--max-new", 32, "--adapter", tmp_path / "adapter", "--merged", *GREEDY)
    assert generate(folder, path, "--max-new", 125, *GREEDY)
    assert "p.jsonl:1: 3 tokens; must be at most 2, as" in refused(folder, path, "--max-new", 126)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "p.jsonl:2:2: not valid JSON"),
        ("[1, 2]", 'p.jsonl:2: must be an object with either "prompt" (text) or "token_ids" (a list of ids)'),
        ('{"prompt": "a", "token_ids": [1]}', "p.jsonl:2: must be an object with either"),
        ('{"text": "a"}', "p.jsonl:2: must be an object with either"),
        ('{"prompt": 3}', "p.jsonl:2: prompt is 3, must be text"),
        ('{"token_ids": []}', "p.jsonl:2: must have at least one token, each a whole number"),
        ('{"token_ids": [1.5]}', "p.jsonl:2: must have at least one token, each a whole number"),
        ('{"token_ids": [1024]}', "p.jsonl:2: token 1024 is none of this model's; must be 0 to 1023"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(line, message, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"token_ids": [1]}\n' + line + "\n")
    assert message in refused("tiny", path)


def test_what_is_not_there_or_contradicts_itself_is_refused(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    assert "absent.jsonl: no such file; must be JSON lines" in refused("tiny", tmp_path / "absent.jsonl")
    assert "no such folder" in refused(tmp_path / "absent", path)
    for bound in (("--top-p", 0.5), ("--top-k", 3), ("--min-p", 0)):
        assert "--greedy samples nothing" in refused("tiny", path, "--greedy", *bound)
    assert "--dtype float16: must be one of bfloat16, bf16, float32, fp32" in refused(
        "tiny", path, "--dtype", "float16"
    )
    assert "--dtype int8: must be one of bfloat16, bf16, float32" in refused("tiny", path, "--dtype", "int8")
    assert "--top-p 0: must be greater than 0" in refused("tiny", path, "--top-p", 0)
    assert "--min-p 1: must be at least 0, less than 1" in refused("tiny", path, "--min-p", 1)
    assert "--top-k" in refused("tiny", path, "--top-k", 0) and "--min-p" in refused("tiny", path, "--min-p", -0.1)
    assert "this model has no tokenizer; give token_ids" in refused(FIXTURES / "models" / "phi3", path)
    assert "adapter_config.json: no such file" in refused("tiny", path, "--adapter", tmp_path)
    assert "holds no prompts" in refused("tiny", write_lines(tmp_path / "e.jsonl", []))
    assert resolve("tiny").is_dir()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT uses what transformers is about to rename
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_the_command_equals_transformers_generate(family, tmp_path):
    """Ragged prompts in any order, ends of generation_config.json, a random PEFT adapter: the same new tokens."""
    torch = pytest.importorskip("torch", reason="the parity extra (torch, peft) is not installed")
    library = pytest.importorskip("peft", reason="the parity extra (torch, peft) is not installed")
    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    model = make["build"](family, make["random_config"](family, 31), 31)
    draw = np.random.default_rng(5)
    vocabulary = model.config.vocab_size
    model.generation_config.eos_token_id = [int(i) for i in draw.choice(vocabulary, 3, replace=False)]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path / "base")
    config = families.read_config(tmp_path / "base")
    own = Lora(config.targets, 2, 2.0)
    peft.save_adapter(tmp_path / "adapter", config, own, random_adapter(config, own), str(tmp_path / "base"))
    model = library.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    rows = [draw.integers(0, vocabulary, n).tolist() for n in (17, 3, 40, 9)]
    path = write_lines(tmp_path / "p.jsonl", [{"token_ids": ids} for ids in rows])
    got = generate(tmp_path / "base", path, "--adapter", tmp_path / "adapter", "--max-new", 24, *GREEDY)
    ends = set(model.generation_config.eos_token_id)
    for row, ids in zip(got, rows, strict=True):
        asked = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones((1, len(ids)), dtype=torch.long)}
        with torch.no_grad():
            out = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, len(ids) :]
        assert row["token_ids"] == out.tolist()
        assert len(out) == 24 or out[-1].item() in ends


def copied(folder: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(resolve("tiny"), folder))


def test_prompt_and_answer_are_not_longer_than_the_model_was_made_for(tmp_path):
    folder = copied(tmp_path / "short")
    edit_json(folder / "config.json", max_position_embeddings=32)
    path = write_lines(tmp_path / "p.jsonl", [{"token_ids": [1] * 20}])
    assert len(generate(folder, path, "--max-new", 12, *GREEDY)) == 1
    refusal = refused(folder, path, "--max-new", 13)
    assert "p.jsonl:1: 20 tokens; must be at most 19, as this model takes 32 for prompt and answer" in refusal
    assert "(max_position_embeddings)" in refusal


def test_a_model_whose_first_logits_are_no_numbers_is_refused(tmp_path):
    folder = copied(tmp_path / "large")
    edit_tensors(folder / "model.safetensors", overflowing)
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "What is 3 plus 4?"}])
    refusal = refused(folder, path, "--max-new", 2)
    assert f"p.jsonl:1: no answer: the logits of {folder} are no numbers (NaN or infinity), or all" in refusal


def test_a_model_whose_logits_are_all_one_number_is_refused(tmp_path):
    """Of 1e25 in every channel the sum of squares overflows, so that the last norm gives zeros, which are finite."""
    folder = copied(tmp_path / "huge")
    edit_tensors(folder / "model.safetensors", huge)
    refusal = refused(folder, write_lines(tmp_path / "p.jsonl", [{"prompt": "Who are you?"}]), "--max-new", 2)
    assert f"p.jsonl:1: no answer: the logits of {folder} are no numbers (NaN or infinity), or all one" in refusal


def huge(tensors: dict[str, Any]) -> None:
    name = "model.embed_tokens.weight"
    tensors[name] = np.full(tensors[name].shape, 1e25, np.float32)


def overflowing(tensors: dict[str, Any]) -> None:
    """Weights that are all finite, and logits that are not."""
    for name in tensors:
        tensors[name] = tensors[name].astype(np.float32)
    tensors["model.norm.weight"][:] = 3e38


def test_what_is_asked_for_and_not_done_is_named_once(tmp_path):
    folder = copied(tmp_path / "asking")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "suppress_tokens": [5, 6]}')
    done = given(None, folder, "--prompt", "What is 3 plus 4?", "--prompt", "Who are you?", "--max-new", 2)
    assert done.exit_code == 0
    assert done.stderr.count("asks for what is not computed: suppress_tokens [5, 6]") == 1


def test_an_adapter_of_another_base_is_named_and_used(tmp_path):
    config = families.read_config(resolve("tiny"))
    shape = Lora(("q_proj",), 2, 2.0)
    for name in ("tiny", "another/model"):
        peft.save_adapter(tmp_path / "adapter", config, shape, random_adapter(config, shape), name)
        done = given(None, "tiny", "--prompt", "Who are you?", "--max-new", 2, "--adapter", tmp_path / "adapter")
        assert done.exit_code == 0
        named = f"{tmp_path / 'adapter'}: is an adapter of another/model, not of tiny\n"
        assert (named in done.stderr) == (name == "another/model")
