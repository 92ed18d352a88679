"""Prepared sets: a row depends on seed and number alone, a folder is one set's, and runs train on it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from fedjax_rai.cai.options import make_sampling
from fedjax_rai.cai.programs import generate_rollout
from fedjax_rai.cai.revise import examples
from fedjax_rai.cli import app
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data import order
from fedjax_rai.data.sources import read_preferences
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.phase import make_options
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory.plan import first_text, ring_slots
from fedjax_rai.mesh import ways
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.peft import save_adapter
from fedjax_rai.runs import files as written_files
from fedjax_rai.runs import prepare
from fedjax_rai.runs.conversations import Conversation
from fedjax_rai.runs.prepare import Writer
from fedjax_rai.train import queue
from tests import small
from tests.tiny_runs import vary

ROOT = Path(__file__).parents[2]
SOME = 10  # conversations: pairs and degenerate ones are among them


@pytest.fixture
def warm(config) -> ExperimentConfig:
    """The tiny base answers the same thing twice unless it is hot."""
    return vary(config, cai={"temperature": 2.0, "revisions": 2})


@pytest.fixture(autouse=True)
def setting(warm, arm, monkeypatch) -> Setting:
    """All tests share what their configs agree in."""
    monkeypatch.setattr(prepare, "Setting", lambda config, *_, **__: arm(config))
    return arm(warm)


def save(folder: Path, setting: Setting, adapter: Any) -> None:
    model, lora = setting.shapes
    save_adapter(folder, model, lora, adapter, "tiny")


def files(out: Path, *kinds: str) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for kind in kinds or ("pairs", "dropped") for path in sorted(out.glob(f"{kind}-*"))
    }


def rows(out: Path, *kinds: str) -> list[dict[str, Any]]:
    return [json.loads(line) for text in files(out, *kinds).values() for line in text.splitlines()]


def by_number(out: Path) -> list[dict[str, Any]]:
    return sorted(rows(out), key=lambda row: row["id"])


def test_a_set_holds_every_conversation_once(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 4)
    out = prepare.prepare(warm, tmp_path / "set", SOME)
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "versions.json", "set.json", "progress.jsonl", "summary.json",
        *(f"{kind}-0000{i}.jsonl" for kind in ("pairs", "dropped") for i in range(3)),
    }  # fmt: skip
    assert sorted(row["id"] for row in rows(out)) == list(range(SOME))
    for name, text in files(out).items():
        numbers = [json.loads(line)["id"] for line in text.splitlines()]
        assert numbers == sorted(numbers) and all(number // 4 == int(name[-11:-6]) for number in numbers)
    pairs, dropped = rows(out, "pairs"), rows(out, "dropped")
    assert len(pairs) > 2 and len(dropped) > 0, "both kinds are tested here"
    summary = written_files.read_json(out / "summary.json")
    assert (summary["conversations"], summary["pairs"]) == (SOME, len(pairs))
    assert sum(summary["dropped"].values()) == len(dropped) and summary["generated_tokens"] > 5 * SOME
    for split in ("principles", "categories"):
        assert sum(own["pairs"] for own in summary[split].values()) >= len(pairs)
    assert sum(own["conversations"] for own in summary["categories"].values()) == SOME
    shown = prepare.report(out)
    assert f"{len(pairs)} pairs of {SOME} conversations; dropped: " in shown and "SYNTHETIC" in shown
    assert load_config(out / "config.yaml") == vary(warm, output=str(out))


def test_rows_are_the_conversations(warm, setting, tmp_path):
    out = prepare.prepare(warm, tmp_path / "set", SOME)
    writer = Writer(setting, warm, setting.fresh_adapter("adapter"), SOME)
    asks = {principle.name: principle for principle in setting.revising.constitution.principles}
    generated = writer.generate(writer.shard(0), print)
    assert generated.tokens == written_files.read_json(out / "summary.json")["generated_tokens"] > 5 * SOME
    for (i, own), row in zip(generated.conversations, by_number(out), strict=True):
        roles, texts = zip(*((turn["role"], turn["content"]) for turn in row["turns"]), strict=True)
        assert roles == ("user", "assistant") * 5 and row["id"] == i
        assert texts[:2] == (own.prompt, own.response)
        assert [*texts[3::4]] == own.critiques and [*texts[5::4]] == own.revisions
        assert [*texts[2::4]] == [asks[name].critique for name in own.principles]
        assert [*texts[4::4]] == [asks[name].revision for name in own.principles]
        assert (row["principles"], row["category"], row["seed"]) == (own.principles, own.category, warm.seed)
        assert row.get("cause") == prepare.cause(own) and ("chosen" in row) == ("cause" not in row)
        if "cause" not in row:
            assert (row["prompt"], row["rejected"], row["chosen"]) == (
                row["turns"][:1], row["turns"][1:2], row["turns"][-1:],
            )  # fmt: skip


def test_degenerate_conversations_are_dropped_and_no_others(warm, tmp_path):
    out = prepare.prepare(warm, tmp_path / "set", SOME)
    assert {row["cause"] for row in rows(out, "dropped")} <= {"cut_off", "empty", "equal"}
    for pair in read_preferences(out):
        assert pair.chosen and pair.rejected and pair.chosen != pair.rejected


@pytest.mark.parametrize(
    ("response", "revision", "degenerate", "expected"),
    [
        ("bad", "good", None, None),
        ("bad", "good", "cut_off", "cut_off"),
        ("", "good", None, "empty"),
        ("bad", "", None, "empty"),
        ("", "", None, "empty"),
        ("good", "good", None, "equal"),
    ],
)
def test_pairs_of_empty_or_equal_texts_are_degenerate_too(response, revision, degenerate, expected):
    """Tokens may differ where texts do not: white space at an end, another split into tokens."""
    own = Conversation("q", "", ["a", "b"], response, ["", ""], ["first", revision], True, degenerate)
    assert prepare.cause(own) == expected


KILLED = [small.slow("dropped-00001.jsonl"), "pairs-00001.jsonl", small.slow("summary.json")]


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", KILLED)
def test_killed_and_gone_on_with_is_uninterrupted(warm, tmp_path, monkeypatch, killed_at):
    monkeypatch.setattr(prepare, "SHARD", 4)
    whole = prepare.prepare(warm, tmp_path / "whole", SOME)
    written, out = written_files.write_text, tmp_path / "set"

    def killed(path, text):
        if path.name == killed_at:
            raise KeyboardInterrupt
        written(path, text)

    monkeypatch.setattr(written_files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(warm, out, SOME)
    monkeypatch.setattr(written_files, "write_text", written)
    assert not (out / killed_at).exists()
    with pytest.raises(InputError, match="unfinished set"):
        read_preferences(out)
    numbers, generate = [], Writer.generate
    monkeypatch.setattr(Writer, "generate", lambda self, ids, told: numbers.extend(ids) or generate(self, ids, told))
    assert prepare.prepare(warm, out, SOME) == out
    left = [] if killed_at == "summary.json" else list(range(4, SOME))
    assert numbers == left, "what was written is not generated again"
    assert files(out) == files(whole)
    ends = [written_files.read_json(own / "summary.json") | {"seconds": 0} for own in (whole, out)]
    assert ends[0] == ends[1] and len(written_files.read_json(out / "versions.json")) == 1


@pytest.mark.slow
def test_neither_batches_nor_shards_change_a_row(warm, tmp_path, monkeypatch):
    whole = by_number(prepare.prepare(warm, tmp_path / "a", SOME))
    other = vary(warm, cai={"prompts": 9, "prompts_per_chunk": 3})
    assert by_number(prepare.prepare(other, tmp_path / "b", SOME)) == whole
    assert by_number(prepare.prepare(warm, tmp_path / "c", SOME // 2)) == whole[: SOME // 2]
    monkeypatch.setattr(prepare, "SHARD", 3)
    assert by_number(prepare.prepare(warm, tmp_path / "d", SOME)) == whole


@pytest.mark.slow
def test_shards_share_their_programs(warm, tmp_path, monkeypatch):
    """One for each length that texts are padded to, whether rows have just begun or were served before."""
    monkeypatch.setattr(prepare, "SHARD", 6)
    shapes, traced = [], []
    serve, as_computed = queue.serve, queue.as_computed

    def seen(lm, adapter, rows, given, decoding):
        shapes.append((given.follow_ups is None, given.prompts.tokens.shape, rows.state.valid.shape))
        return serve(lm, adapter, rows, given, decoding)

    monkeypatch.setattr(queue, "serve", seen)
    monkeypatch.setattr(queue, "as_computed", lambda *given: traced.append(given) or as_computed(*given))
    prepare.prepare(vary(warm, cai={"prompts": 2}), tmp_path / "set", 15)
    assert len(traced) <= len(set(shapes)) < len(shapes) / 3


def test_each_pass_is_a_permutation_of_its_own():
    taken = order.passes(7, 20, 0)
    assert all(sorted(taken[i : i + 7]) == list(range(7)) for i in (0, 7))
    assert len(set(taken[14:])) == 6 and taken[:7].tolist() != taken[7:14].tolist()
    assert order.passes(7, 9, 0).tolist() == taken[:9].tolist()
    assert order.passes(7, 20, 1).tolist() != taken.tolist()


def test_a_question_asked_again_has_new_draws(warm, setting):
    writer = Writer(setting, warm, setting.fresh_adapter("adapter"), 20)
    writer.rows = np.zeros(20, int)
    batch = writer.batch(np.arange(20))
    assert np.all(np.asarray(batch.prompts.tokens) == np.asarray(batch.prompts.tokens[0]))
    assert len({tuple(key) for key in np.asarray(jax.random.key_data(batch.keys))}) == 20
    assert len({tuple(drawn) for drawn in np.asarray(batch.principles)}) > 4, "of 9"


def test_a_finished_set_is_left_alone(warm, tmp_path):
    out = prepare.prepare(warm, tmp_path / "set", 4)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    prepare.prepare(warm, out, 4)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_a_folder_of_something_else_is_refused_and_untouched(warm, setting, tmp_path):
    out = prepare.prepare(warm, tmp_path / "set", 4)
    save(tmp_path / "own", setting, setting.fresh_adapter("adapter"))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    for message, other, arguments in (
        ("cai.temperature: 2.0 there, 1.0 now", vary(warm, cai={"temperature": 1.0}), (4, None)),
        ("prompts: 4 there, 5 now", warm, (5, None)),
        ("prompts: 4 there, 2000 now", warm, (None, None)),
        ("adapter: None there, 'sha256:", warm, (4, tmp_path / "own")),
    ):
        with pytest.raises(InputError, match=f"holds another set[^ ]*; name another folder, or undo\n  {message}"):
            prepare.prepare(other, out, *arguments)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (tmp_path / "mine").mkdir()
    for name in ("thesis.tex", "config.yaml"):
        (tmp_path / "mine" / name).write_text((out / "config.yaml").read_text())
        with pytest.raises(InputError, match="mine: exists and is not a prepared set; name another folder"):
            prepare.prepare(warm, tmp_path / "mine", 4)
    with pytest.raises(InputError, match="exists and is not a prepared set"):
        prepare.prepare(warm, tmp_path / "mine" / "thesis.tex", 4)


@pytest.mark.slow
def test_the_adapter_is_the_policy(warm, setting, tmp_path):
    base = by_number(prepare.prepare(warm, tmp_path / "base", SOME))
    fresh = setting.fresh_adapter("another")
    save(tmp_path / "fresh", setting, fresh)
    same = prepare.prepare(warm, tmp_path / "a", SOME, tmp_path / "fresh")
    assert by_number(same) == base, "a fresh adapter is the base"
    save(tmp_path / "own", setting, jax.tree.map(lambda leaf: leaf + 0.1, fresh))
    other = prepare.prepare(warm, tmp_path / "b", SOME, tmp_path / "own")
    assert by_number(other) != base
    merged = prepare.prepare(vary(warm, model={"answering": "merged"}), tmp_path / "c", SOME, tmp_path / "own")
    assert by_number(merged) == by_number(other), "whether it stands beside the base or in its kernels"
    assert all(a["turns"][0] == b["turns"][0] for a, b in zip(by_number(other), base, strict=True))


def test_the_critic_is_who_the_config_says(warm, setting):
    adapter = setting.fresh_adapter("adapter")
    for name, expected in (("policy", adapter), ("base", None)):
        policy, critic = Writer(setting, vary(warm, cai={"critic": name}), adapter, SOME)._speakers
        assert policy.adapter is adapter and critic.adapter is expected


def test_progress_counts_what_several_devices_have_at_once(warm, setting):
    """Two devices have three rows each where five were asked for."""
    writer = Writer(setting, vary(warm, cai={"prompts": 5}), setting.fresh_adapter("adapter"), 12)
    devices = ways(setting.models.mesh)
    assert writer.at_once == {1: 5, 2: 6}[devices]
    told = []
    writer.generate(writer.shard(0), told.append)
    assert len(told) == writer._programs([0])


def test_what_is_wrong_is_said_before_anything_is_written(warm, setting, tmp_path, monkeypatch):
    out = tmp_path / "set"
    save(tmp_path / "own", setting, setting.fresh_adapter("adapter"))
    fields = written_files.read_json(tmp_path / "own" / "adapter_config.json")
    written_files.write_json(tmp_path / "own" / "adapter_config.json", fields | {"lora_alpha": 32})
    with pytest.raises(InputError, match="is of another shape\n  lora.alpha: 32.0 there, 4.0 in the config"):
        prepare.prepare(warm, out, 4, tmp_path / "own")
    with pytest.raises(InputError, match="--adapter .*absent: no adapter_config.json there"):
        prepare.prepare(warm, out, 4, tmp_path / "absent")
    with pytest.raises(InputError, match="cai.data = .*: must be 'online' to prepare a set"):
        prepare.prepare(vary(warm, cai={"data": str(tmp_path)}), out, 4)
    monkeypatch.setattr(DecoderConfig, "longest", 150)
    with pytest.raises(InputError, match="cai.max_new_tokens = 24: gives sequences of .* this model takes 150"):
        prepare.prepare(warm, out, 4)
    # what the ring of a set takes, and one less
    known = sizes.preparing(setting)
    most = ring_slots(warm, known.lengths, first_text(warm, known.lengths))
    monkeypatch.setattr(DecoderConfig, "longest", most - 1)
    with pytest.raises(InputError, match=f"cai.revisions = 2: gives sequences of {most} tokens"):
        prepare.prepare(warm, out, 4)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore")
def test_datasets_loads_a_set(warm, tmp_path, monkeypatch):
    """Shards are of one type, also beside one without a pair."""
    import datasets

    monkeypatch.setattr(prepare, "SHARD", 4)
    out = prepare.prepare(warm, tmp_path / "set", SOME)
    (out / "pairs-00009.jsonl").write_text("")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "json", data_files=str(out / "pairs-*.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    text, whole = datasets.Value("string"), datasets.Value("int64")
    turns = datasets.List({"role": text, "content": text})
    assert loaded.features == {
        "id": whole, "prompt": turns, "chosen": turns, "rejected": turns, "turns": turns,
        "principles": datasets.List(text), "category": text, "seed": whole,
    }  # fmt: skip
    assert list(loaded) == rows(out, "pairs")


@pytest.fixture
def prepared(warm, tmp_path) -> ExperimentConfig:
    """A config that trains on a set."""
    return vary(warm, cai={"data": str(prepare.prepare(warm, tmp_path / "set", SOME))})


def test_a_set_has_the_tokens_that_the_online_phase_trains_on(prepared, warm, setting, tmp_path):
    """Where encoding undoes decoding: not for answers that began or ended with white space, or that were not split
    into tokens as the tokenizer would, nor where question and answer together exceed `data.max_length`."""
    writer = Writer(setting, warm, setting.fresh_adapter("adapter"), SOME)
    numbers = {row["id"]: place for place, row in enumerate(rows(tmp_path / "set", "pairs"))}
    own = Setting(prepared).revising.prepared
    sampling = make_sampling(warm.cai)
    options = make_options(setting, writer.shard_config)
    batch = writer.batch(np.arange(SOME))
    rollout = generate_rollout(setting.lm, options, writer.adapter, batch, setting.revising.requests, sampling)
    compared = 0
    for answers, side in ((rollout.last, own.chosen), (rollout.response, own.rejected)):
        online = examples(batch.prompts, answers)
        for i in numbers:
            tokens = np.asarray(answers.tokens[i])[np.asarray(answers.valid[i])]
            text = setting.models.tokenizer.decode(tokens[:-1])
            if setting.models.tokenizer.encode(text.strip()) == tokens[:-1].tolist():
                compared += 1
                np.testing.assert_array_equal(_kept(side, numbers[i]), _kept(online, i))
    assert compared > len(numbers), "most of them go back and forth"


def _kept(part, row: int) -> np.ndarray:
    """(token, whether it is a target) of all that is no padding."""
    valid = np.asarray(part.valid[row])
    return np.stack([np.asarray(part.tokens[row])[valid], np.asarray(part.loss_mask[row])[valid]])


def test_the_command_prepares_a_set_and_says_how_to_go_on(warm, tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(dump_config(warm))
    arguments = ["cai", "generate", str(tmp_path / "a.yaml"), str(tmp_path / "set"), "cai.prompts=3", "--prompts", "5"]
    monkeypatch.setattr("sys.argv", ["fedjax-rai", *arguments])
    generate = Writer.generate

    def killed(self, ids, advance):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "generate", killed)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130 and f"to go on: fedjax-rai {' '.join(arguments)}" in result.output
    monkeypatch.setattr(Writer, "generate", generate)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "of 5 conversations" in result.stdout
    assert load_config(tmp_path / "set" / "config.yaml").cai.prompts == 3
    assert CliRunner().invoke(app, [*arguments[:-1], "0"]).exit_code == 2


@pytest.mark.slow
def test_real_questions_are_prepared(warm, shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "Setting", Setting)
    real = vary(warm, data={"train": str(shared_data / "square" / "response_dev.json"), "max_length": 512, "red": None})
    real = vary(real, data={"acceptable": None}, cai={"constitution": str(ROOT / "configs/constitutions/square.yaml")})
    out = prepare.prepare(real, tmp_path / "set", 4)
    asked = {own["question_en"].strip() for own in json.loads(Path(real.data.train).read_text(encoding="utf-8"))}
    assert len(rows(out)) == 4 and {row["turns"][0]["content"] for row in rows(out)} <= asked
    assert written_files.read_json(out / "summary.json")["synthetic"] == ["model"]


def test_a_set_that_another_process_works_at_is_not_written_to(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(Writer, "check", lambda _: None)
    (tmp_path / "set").mkdir()
    with written_files.alone(tmp_path / "set"), pytest.raises(InputError, match="another process is at work there"):
        prepare.prepare(warm, tmp_path / "set", 4)
    assert not any((tmp_path / "set").iterdir())
