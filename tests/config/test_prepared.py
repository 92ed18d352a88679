"""Names of prepared sets, where they lie, and what a config that names one is told."""

from pathlib import Path

import pytest

from fedjax_rai.config import prepared
from fedjax_rai.config.files import check_files, digests
from fedjax_rai.config.prepared import check_language, columns_of, folder, language_of, parse
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError


def test_what_is_not_prepared_is_said_with_the_command_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError) as raised:
        folder("tfds:square/square20k_ko")
    command = "to prepare it: fedjax-rai data prepare square20k_ko SOURCE, with SOURCE the folder of SQuARe's files"
    assert str(raised.value).startswith(f"tfds:square/square20k_ko: not prepared in {tmp_path}; {command}")
    with pytest.raises(InputError, match="prepare questions_ko --data-dir b/c SOURCE, .* or question_train.json"):
        folder("tfds:b/c/square/questions_ko")
    with pytest.raises(InputError, match="not prepared in .*; must be a data set that TFDS prepared there"):
        folder("tfds:mnist/plain")


@pytest.mark.parametrize(
    "source", ["tfds:", "tfds:square", "tfds:/square20k_en", "tfds:a/b:one", "square/square20k_en"]
)
def test_another_form_of_name_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="no prepared data set; must be tfds:NAME/CONFIG"):
        parse(source)


def test_names_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/a")
    assert parse("tfds:square/slg20k_ko") == (Path("/home/a/tensorflow_datasets"), "square", "slg20k_ko", None)
    assert parse("tfds:/b/c/other/set:2.0.1") == (Path("/b/c"), "other", "set", "2.0.1")
    assert parse("tfds:/other/set") == (Path("/"), "other", "set", None)
    with pytest.raises(InputError, match="no such corpus; .*; did you mean square20k_en"):
        parse("tfds:square/squar20k_en")
    assert (language_of("tfds:square/slg20k_ko"), language_of("tfds:a/b_ko"), language_of("a_ko")) == ("ko", None, None)


def test_the_newest_version_is_read(tmp_path: Path) -> None:
    for version in ("1.2.0", "1.10.0", "notes", "2.0.0"):
        (tmp_path / "a" / "b" / version).mkdir(parents=True)
        if version != "2.0.0":  # that one was never finished
            (tmp_path / "a" / "b" / version / prepared.INFO).write_text("{}")
    assert folder(f"tfds:{tmp_path}/a/b").name == "1.10.0"
    assert folder(f"tfds:{tmp_path}/a/b:1.2.0").name == "1.2.0"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    """A config that trains on a prepared corpus, which is not prepared yet."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return ExperimentConfig.model_validate({"data": {"train": "tfds:square/square20k_en"}})


def test_a_config_that_names_a_missing_set_is_told_what_to_type(config: ExperimentConfig) -> None:
    with pytest.raises(InputError) as raised:
        check_files(config)
    assert str(raised.value).startswith("data.train = tfds:square/square20k_en: not prepared in ")
    assert "to prepare it: fedjax-rai data prepare square20k_en SOURCE" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_the_digest_of_a_prepared_set_is_of_all_its_files(config: ExperimentConfig, tmp_path: Path) -> None:
    place = tmp_path / "square" / "square20k_en" / "1.0.0"
    place.mkdir(parents=True)
    found = []
    for name in (prepared.INFO, "square-train.array_record-00000-of-00001", "metadata.json"):
        (place / name).write_text(name)
        check_files(config)
        found.append(digests(config)["data.train"])
    assert len(set(found)) == 3
    assert digests(config)["data.train"] == found[-1]


def test_a_corpus_is_read_by_its_columns_in_its_language() -> None:
    assert columns_of("tfds:square/square20k_ko") == "square"
    assert columns_of("tfds:a/square/slg20k_en")["label"] == "verdict"
    assert columns_of("tfds:square/questions_en") is columns_of("a.json") is columns_of("tfds:a/slg20k_en") is None
    check_language("tfds:square/square20k_ko", "ko")
    check_language("a_ko.json", "en")
    with pytest.raises(InputError, match="another language than data.language = 'en'; must be 'ko'"):
        check_language("tfds:square/square20k_ko", "en")
