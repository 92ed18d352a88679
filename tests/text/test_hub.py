"""Folders and names on the hub: which files are fetched, when, and what each refusal says."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.text import hub
from fedjax_rai.text.prompts import answered, chat
from fedjax_rai.text.tokenizer import has_tokenizer, load_tokenizer, stop_ids
from fedjax_rai.tools.generate import Request, answers, prompts_of_texts
from tests.chat_models import FAMILIES, huggingface, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    huggingface(FAMILIES["gemma"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(("named", "ids"), [(None, []), (3, [3]), ([7, 5], [5, 7])])
def test_a_local_folder_needs_no_network_and_its_generation_config_adds_ends(folder, no_network, named, ids):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named} if named else {}))
    (folder / "config.json").write_text('{"eos_token_id": 9}')  # which counts where there is no generation config
    assert has_tokenizer(folder) and not has_tokenizer(folder.parent)
    own = load_tokenizer(str(folder))
    assert own.end_of_turn == "<end_of_turn>" and own.end_ids == (own.end_id, *ids, own.hf.eos_token_id)
    turns = answered("How?", "So é.")
    assert own.encode_segments(chat(own, turns)) == tokenizer("gemma").encode_segments(chat(tokenizer("gemma"), turns))


def test_the_models_config_names_the_ends_where_there_is_no_generation_config(folder):
    assert stop_ids(folder) == ()
    (folder / "config.json").write_text('{"eos_token_id": [9, 8]}')
    assert stop_ids(folder) == (9, 8)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id = 'x': must be a token id or a list"),
        ("generation_config.json", "[", "not valid JSON"),
        ("generation_config.json", "[]", "not a JSON object"),
        ("tokenizer.json", "{}", "no tokenizer that transformers can read"),
    ],
)
def test_a_broken_folder_is_named(folder, file, text, says):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=rf"{folder}.*{says}"):
        load_tokenizer(str(folder))


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Makes the hub answer with a snapshot, or raise; returns what it was asked for."""
    hub._snapshot.cache_clear()
    asked = []

    def answer(result=None):
        def snapshot_download(name, **options):
            asked.append((name, options))
            if isinstance(result, Exception):
                raise result
            return str(tmp_path / "models--owner--name" / "snapshots" / "0a1b2c")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    yield answer
    hub._snapshot.cache_clear()


def test_a_hub_name_is_fetched_once_and_its_commit_is_known(download):
    asked = download()
    found = {hub.resolve("owner/name", "v1", weights) for weights in (False, True, True, False)}
    assert [hub.commit(folder) for folder in found] == ["0a1b2c"]
    assert [(name, options["revision"]) for name, options in asked] == [("owner/name", "v1"), ("owner/name", "0a1b2c")]
    files = [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja",
        "merges.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "consolidated.safetensors", "original/params.json", "onnx/x.json", "README.md",
    ]  # fmt: skip
    keys = "allow_patterns", "ignore_patterns"
    fetched = [
        list(huggingface_hub.utils.filter_repo_objects(files, **{key: options[key] for key in keys}))
        for _, options in asked
    ]
    assert fetched == [[*files[:6], files[7]], [files[6]]]


def test_weights_are_fetched_only_once_the_config_was_read(download, tmp_path):
    folder = tmp_path / "models--owner--name" / "snapshots" / "0a1b2c"
    huggingface(FAMILIES["gemma"]).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    asked = download()
    with pytest.raises(InputError, match="model_type 't5' is not supported"):
        own = Setting(ExperimentConfig.model_validate({"model": {"path": "owner/name"}}))
        own.check()
    with pytest.raises(InputError, match="model_type 't5' is not supported"):
        list(answers(Request("owner/name", max_new=1), prompts_of_texts(["a"])))
    assert asked and not any("*.safetensors" in options["allow_patterns"] for _, options in asked)


def test_a_folder_goes_before_the_hub_and_has_no_revisions(folder, no_network, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "owner" / "name").mkdir(parents=True)
    assert hub.resolve("owner/name") == Path("owner/name") and hub.commit(folder) is None
    assert hub.resolve("tiny").name == "tiny"
    for path in ("owner/name", "tiny", str(folder)):
        with pytest.raises(InputError, match="is a folder here and has no revision 'v1'"):
            hub.resolve(path, "v1")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert hub.resolve("~/model") == folder


@pytest.mark.parametrize("path", ["absent", "./a/b", "../a", "/a/b", "~/a", "a/b/c", "a/b/", "", "a b/c"])
def test_what_looks_like_a_path_never_reaches_the_hub(no_network, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path / "..")
    if path:
        with pytest.raises(InputError, match="no such folder; must be a Hugging Face folder"):
            hub.resolve(path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file, not a folder"):
        hub.resolve(str(tmp_path / "file"))


def _made(kind):
    """An error of that kind, as the hub's client raises it."""
    if issubclass(kind, errors.HfHubHTTPError):
        return kind("m", response=SimpleNamespace(headers={}, status_code=404, request=None))  # pyright: ignore
    return kind("m")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            errors.GatedRepoError,
            "is gated: ask for access at https://huggingface.co/owner/name, then log in",
        ),
        (errors.RepositoryNotFoundError, "no such folder here, and no such model on the hub; if it is private"),
        (errors.RevisionNotFoundError, "no revision 'v9' on the hub; must be a branch, tag or commit"),
        (errors.HFValidationError, "no such folder here, and no name that the hub allows"),
        (errors.OfflineModeIsEnabled, "offline mode is on .* unset HF_HUB_OFFLINE"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached .* give the folder of a local copy"),
        (ConnectionError, "the hub cannot be reached"),
        (OSError, r"cannot be fetched from the hub \(OSError: m\)"),
    ],
)
def test_each_refusal_of_the_hub_says_what_to_do(download, monkeypatch, error, says):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    download(_made(error))
    with pytest.raises(InputError, match=f"^owner/name: .*{says}"):
        load_tokenizer("owner/name", "v9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    download(_made(errors.LocalEntryNotFoundError))
    with pytest.raises(InputError, match="offline mode is on"):
        hub.resolve("owner/name", "v9")
