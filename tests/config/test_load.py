"""The config: what it takes, and that it names everything that is wrong with a file, where it stands."""

import re
from os.path import expanduser
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from fedjax_rai.config.files import check_files
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import CaiConfig, ExperimentConfig, GuardConfig, LoraConfig
from fedjax_rai.errors import InputError, did_you_mean_file
from tests.processes import succeed


def written(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(InputError) as caught:
        load_config(written(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "").split("\n")


def test_what_a_file_does_not_name_is_the_default(tmp_path: Path) -> None:
    expected = ExperimentConfig(output="runs/tiny")
    for text in ("", "# nothing\n", "{}", "lora:\n", "output: null"):
        assert load_config(written(tmp_path, text)) == expected
    loaded = load_config(written(tmp_path, "seed: 3\nlora: {rank: 2, alpha: 1e-3}\ncai:\n  critic: base\n"))
    assert loaded == ExperimentConfig(
        seed=3, output="runs/tiny", lora=LoraConfig(rank=2, alpha=0.001), cai=CaiConfig(critic="base")
    )


def test_the_paper_s_numbers_are_the_defaults() -> None:
    config = ExperimentConfig()
    fed = config.federated
    assert (fed.clients, fed.cohort, fed.rounds, fed.local_steps, fed.batch_size) == (20, 5, 50, 25, 16)
    assert config.cai.iterations == 50


def test_overrides_win_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\nlora: {rank: 4}\ndata: {red: 3}\n")
    overrides = ["lora.rank=5", "lora.rank=6", "seed=2", "lora.targets=[q_proj, v_proj]", "output=a/b=c"]
    config = load_config(path, [*overrides, "data.red=null"])
    assert (config.seed, config.lora.rank, config.output, config.data.red) == (2, 6, "a/b=c", None)
    assert config.lora.targets == ("q_proj", "v_proj")
    assert load_config(written(tmp_path, "lora: {rank: 0}"), ["lora.rank=1"]).lora.rank == 1


def test_overrides_reach_a_mesh_that_is_left_to_the_plan(tmp_path: Path) -> None:
    path = written(tmp_path, "mesh: auto\n")
    assert load_config(path).mesh.auto
    assert not load_config(path, ["mesh.auto=false"]).mesh.auto
    assert load_config(path, ["mesh.auto=false", "mesh.fsdp=4"]).mesh.fsdp == 4
    with pytest.raises(InputError, match=r"mesh\.fsdp.*must be 1, or left out, where mesh\.auto = true"):
        load_config(path, ["mesh.fsdp=4"])


def test_a_dumped_config_loads_back_equal(tmp_path: Path) -> None:
    overrides = ["output='no'", "lora.alpha=1e-5", "lora.targets=[o_proj]", "data.red=7", "data.train='1: # é\"'"]
    config = load_config(written(tmp_path, ""), overrides)
    assert (config.output, config.lora.alpha, config.data.train) == ("no", 1e-5, '1: # é"')
    dumped = dump_config(config)
    assert load_config(written(tmp_path, dumped)) == config
    assert list(yaml.safe_load(dumped)) == list(ExperimentConfig.model_fields)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ExperimentConfig().lora.rank = 3  # pyright: ignore


@pytest.mark.parametrize(
    ("key", "bad", "good"),
    [
        ("seed", "-1", "0"),
        ("seed", str(2**31), str(2**31 - 1)),
        ("lora.rank", "0", "1"),
        ("lora.alpha", "0", "0.1"),
        ("lora.alpha", ".inf", "5"),
        ("lora.alpha", ".nan", "5"),
        ("lora.targets", "[]", "[k_proj]"),
        ("lora.targets", "[k_proj, k_proj]", "[k_proj, q_proj]"),
        ("lora.targets", "k_proj", "[k_proj]"),
        ("model.path", "''", "a"),
        ("model.dtype", "float16", "bfloat16"),
        ("model.remat", "true", "full"),
        ("model.quantize", "int4", "nf4"),
        ("model.attention", "flash", "chunked"),
        ("lora.layers", "[-1]", "[0]"),
        ("lora.rank_pattern", "{q_proj: 0}", "{q_proj: 1}"),
        ("lora.alpha_pattern", "{'(': 1}", "{'(q|k)_proj': 1}"),
        ("mesh.fsdp", "0", "2"),
        ("data.language", "de", "ko"),
        ("data.red", "-1", "0"),
        ("data.max_length", "15", "16"),
        ("data.split", "train", "tune"),
        ("federated.algorithm", "fedporx", "scaffold"),
        ("federated.clients", "4", "5"),
        ("federated.cohort", "21", "20"),
        ("federated.rounds", "-1", "0"),
        ("federated.local_steps", "0", "1"),
        ("federated.batch_size", "0", "1"),
        ("federated.learning_rate", "0", "1e-9"),
        ("federated.clients_per_chunk", "0", "1"),
        ("guard.pairs", "1", "2"),
        ("guard.steps", "-1", "0"),
        ("guard.threshold", "0", "0.01"),
        ("guard.threshold", "1", "0.99"),
        ("guard.harmful_share", "0", "0.3"),
        ("guard.epochs", "0", "0.5"),
        ("guard.held_out", "1", "0.9"),
        ("guard.choose", "recall=2", "recall=0.9"),
        ("guard.label_noise", "0.5", "0.49"),
        ("guard.label_noise", "-0.1", "0"),
        ("filter.enabled", "'yes'", "false"),
        ("cai.iterations", "-1", "0"),
        ("cai.prompts", "0", "1"),
        ("cai.replay", "-1", "0"),
        ("cai.temperature", "-0.1", "0"),
        ("cai.max_new_tokens", "0", "1"),
        ("cai.critic", "guard", "base"),
        ("cai.target", "critique", "response"),
        ("eval.prompts", "0", "1"),
        ("eval.samples", "0", "1"),
        ("eval.temperature", "-1", "0"),
    ],
)
def test_ranges(tmp_path: Path, key: str, bad: str, good: str) -> None:
    path = written(tmp_path, "")
    load_config(path, [f"{key}={good}"])
    with pytest.raises(InputError, match=r" must "):
        load_config(path, [f"{key}={bad}"])


DIGITS = "write it in digits alone, like 1000"
BASE = "YAML would read this in base 8 or 60: write it in base 10, without a leading 0"
TRUTH = "YAML reads unquoted yes, no, on, off as truth values"
GUARD = ", ".join(GuardConfig.model_fields)
PROMPTS = "path, name, split, revision, columns; put it in quotes"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lora: {rank: 1e3}", "lora.rank = '1e3': must be a whole number >= 1; " + DIGITS),
        ("lora: {rank: 3.0}", "lora.rank = 3.0: must be a whole number >= 1; " + DIGITS),
        ("lora: {rank: '3'}", "lora.rank = '3': must be a whole number >= 1; " + DIGITS),
        ("cai: {replay: 3.0}", "cai.replay = 3.0: must be a whole number >= 0; " + DIGITS),
        ("data: {red: 1e3}", "data.red = '1e3': must be a whole number >= 0 or null; " + DIGITS),
        ("seed: 010", "seed = '010': must be a whole number >= 0 and < 2147483648; " + BASE),
        ("federated: {clients: 1:30}", "federated.clients = '1:30': must be a whole number >= 1; " + BASE),
        ("federated: {learning_rate: 1:30.5}", "federated.learning_rate = '1:30.5': must be a number > 0; " + BASE),
        ("data: {red: 0_7}", "data.red = '0_7': must be a whole number >= 0 or null; " + BASE),
        ("lora: {rank: 0o10}", "lora.rank = '0o10': must be a whole number >= 1; " + DIGITS),
        ("lora: {rank: yes}", "lora.rank = true: must be a whole number >= 1; " + TRUTH),
        ("lora: {alpha: on}", "lora.alpha = true: must be a number > 0; " + TRUTH),
        ("output: 2024-01-01", "output = 2024-01-01: must be text, not empty or null; put it in quotes"),
        ("output: no", "output = false: must be text, not empty or null; " + TRUTH),
        ("eval: {advbench: 3}", "eval.advbench = 3: must be text, not empty or a mapping of " + PROMPTS),
        ("guard: {threshold: 2}", "guard.threshold = 2: must be a number > 0 and < 1 or null"),
        ("filter: {enabled: 1}", "filter.enabled = 1: must be true or false"),
        ("data: {language: kr}", "data.language = 'kr': must be one of en, ko"),
        ("cai: {critic: bse}", "cai.critic = 'bse': must be one of policy, base; did you mean base?"),
        ("lora: {rnk: 3}", "lora.rnk: no such key; did you mean lora.rank?"),
        ("rank: 3", "rank: no such key; did you mean lora.rank?"),
        ("fedrated: {clients: 3}", "fedrated: no such key; did you mean federated?"),
        ("prompts: 3", "prompts: no such key; did you mean cai.prompts or eval.prompts?"),
        ("guard: {zzz: 3}", "guard.zzz: no such key; must be one of " + GUARD),
        ("guard: 3", "guard = 3: must be a section of keys: " + GUARD),
        ("data: {on: 3}", "key data.on: YAML reads this as no text; put it in quotes"),
        ("1: 3", "key 1: YAML reads this as no text; put it in quotes"),
    ],
)
def test_what_is_wrong_and_what_is_allowed(tmp_path: Path, line: str, message: str) -> None:
    assert refusal(tmp_path, f"# a comment\n\n{line}\n") == [f"tiny.yaml:3: {message}"]


def test_a_bad_element_of_a_list_is_named(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, "lora:\n  targets:\n  - q_proj\n  - v_prj\n")
    assert line.startswith("tiny.yaml:4: lora.targets[1] = 'v_prj': must be one of q_proj, ")
    assert line.endswith("did you mean v_proj?")


def test_a_cohort_larger_than_the_clients_names_both(tmp_path: Path) -> None:
    reason = "must be at most federated.clients = {}: a cohort is drawn without replacement"
    text = "federated:\n  clients: 4\n  cohort: 6\n"
    assert refusal(tmp_path, text) == [f"tiny.yaml:3: federated.cohort = 6: {reason.format(4)}"]
    text = "seed: 0\nfederated:\n  clients: 4\n"
    assert refusal(tmp_path, text) == [f"tiny.yaml:2: federated.cohort = 5 (the default): {reason.format(4)}"]
    lines = refusal(tmp_path, "", "federated.cohort=21")
    assert lines == [f"override 'federated.cohort=21': federated.cohort = 21: {reason.format(20)}"]


def test_everything_wrong_is_said_at_once_in_order(tmp_path: Path) -> None:
    text = "lora:\n  rank: 3\n  rank: 0\nseed: -1\nsed: 1\ncai: {prompts: 0}\n"
    lines = refusal(tmp_path, text, "x", "guard=3", "guard.steps=[", "eval.samples=0", "lra.rank=2")
    assert [line.split(": ")[0] for line in lines] == [
        "tiny.yaml:3", "tiny.yaml:4", "tiny.yaml:5", "tiny.yaml:6",
        "override 'x'", "override 'guard=3'", "override 'guard.steps=['", "override 'lra.rank=2'",
        "override 'eval.samples=0'",
    ]  # fmt: skip
    assert lines[0] == "tiny.yaml:3: lora.rank: stands twice, first at tiny.yaml:2; must stand once"
    assert "must be written key.path=value" in lines[4]
    assert "guard is a section; must name one of its keys: guard.path, guard.revision, guard.scorer" in lines[5]
    assert "did you mean lora.rank?" in lines[7]


def test_merged_keys_may_be_overridden_wherever_they_are_merged(tmp_path: Path) -> None:
    text = "guard: &steps {batch_size: 8, learning_rate: 1e-3}\nfederated:\n  <<: *steps\n  batch_size: 4\n"
    for order in (text, "federated: &steps {batch_size: 8}\nguard: {<<: *steps, batch_size: 4}\ncai: *steps\n"):
        config = load_config(written(tmp_path, order))
        assert sorted([config.guard.batch_size, config.federated.batch_size]) == [4, 8]


def test_text_that_looks_like_a_number_in_another_base_is_what_is_written(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "output: 010\ncai: {data: 1:30}\n"), ["data.train=007"])
    assert (config.output, config.cai.data, config.data.train) == ("010", "1:30", "007")


def test_a_value_of_an_override_is_taken_whole(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, ""), ["output=runs/exp #1", "cai.data=a: b", "data.train=it's", "data.red= ~"]
    )
    assert (config.output, config.cai.data, config.data.train) == ("runs/exp #1", "a: b", "it's")


@pytest.mark.parametrize("override", ["output=", "data.red=", "seed= ", "lora.targets=\t"])
def test_an_override_without_a_value_is_refused(tmp_path: Path, override: str) -> None:
    key = override.partition("=")[0]
    (line,) = refusal(tmp_path, "", override)
    assert line == f"override {override!r}: {key}: there is no value; null is written null"


@pytest.mark.parametrize("text", ["a\ud800", "\udcff", "a\0b"])
def test_what_is_no_text_is_refused_wherever_it_is_from(tmp_path: Path, text: str) -> None:
    (line,) = refusal(tmp_path, "", f"data.train={text}")
    assert line.startswith("override ") and ": data.train: text holds " in line
    for given in ({"data": {"train": text}}, {"lora": {"rank_pattern": {text: 4}}}, {"output": text}):
        with pytest.raises(InputError, match=r"the given config: [\w.]+: text holds "):
            load_config(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"tiny\.yaml:1:5: not valid YAML"),
        ("seed: 1\nlora: rank: 2", r"tiny\.yaml:2:11: not valid YAML"),
        ("seed: 1\n\tlora: 1", r"tiny\.yaml:2:1: not valid YAML"),
        ("output: 2024-99-99", r"tiny\.yaml:1:9: not valid YAML: month must be in 1..12"),
        ("output: \x01", r"tiny\.yaml:1: not valid YAML: unacceptable character"),
        ("seed: !!python/object:os.x 1", r"tiny\.yaml:1:7: not valid YAML"),
        ("? [a]\n: 3", r"tiny\.yaml:1: key \?: YAML reads this as no text"),
        ("seed: 1\n---\nseed: 2", r"tiny\.yaml:2:1: not valid YAML"),
        ("- seed", r"tiny\.yaml:1: must be a mapping of keys"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named_beside_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "", "tiny_cpu.yaml")
    written(tmp_path, "", "tiny_cup.txt")
    with pytest.raises(InputError, match=rf"tiny_cup\.yaml: no such file; .* did you mean {re.escape(str(path))}\?"):
        load_config(tmp_path / "tiny_cup.yaml")
    with pytest.raises(InputError, match="is a folder; must be a YAML config"):
        load_config(tmp_path)
    with pytest.raises(InputError, match="no such file; must be a YAML config$"):
        load_config(tmp_path / "absent" / "a.yaml")
    path.write_bytes(b"seed: \xff")
    with pytest.raises(InputError, match="byte 6 is not UTF-8"):
        load_config(path)


def test_a_tilde_that_no_shell_has_expanded_is_the_users_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(written(tmp_path, "output: ~/runs\n"), ["cai.constitution=~/own.yaml", "model.path=~/base"])
    paths = config.output, config.cai.constitution, config.model.path
    assert paths == (f"{tmp_path}/runs", f"{tmp_path}/own.yaml", f"{tmp_path}/base")


def test_a_rule_about_a_key_that_is_wrong_itself_is_not_said_too(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, "", "cai.target=response", "cai.method=stf")
    assert "cai.method" in line and "did you mean sft" in line


def test_files_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    check_files(load_config(path))
    keys = ("model.path", "data.train", "guard.path", "cai.constitution", "eval.advbench")
    with pytest.raises(InputError) as caught:
        check_files(load_config(path, [f"{key}={tmp_path}/tiny.yml" for key in keys]))
    lines = str(caught.value).split("\n")
    assert [line.partition(" = ")[0] for line in lines] == list(keys)
    models = ("model.path", "guard.path")
    near = [key for key, line in zip(keys, lines, strict=True) if line.endswith(f"; did you mean {path}?")]
    assert near == [key for key in keys if key not in models] and "did you mean" not in lines[0] + lines[2]
    with pytest.raises(InputError, match=r"model\.path = .*: no Hugging Face folder with a config\.json there"):
        check_files(load_config(path, [f"model.path={tmp_path}"]))
    (tmp_path / "config.json").touch()
    there = [f"{key}={tmp_path if key in models else path}" for key in keys]
    check_files(load_config(path, there))


def test_a_folder_without_what_its_key_needs_is_named_beside_one_that_has_it(tmp_path: Path) -> None:
    for name in ("saved", "saves.sh", "model", "models", "models.sh"):
        (tmp_path / name).mkdir()
    path = written(tmp_path, "")
    for key, name in (("model.path", "model"), ("guard.adapter", "saved")):
        with pytest.raises(InputError, match=rf"^{key} = .*{name}': no .*; must be one[^;]*$"):
            check_files(load_config(path, [f"{key}={tmp_path / name}"]))
    (tmp_path / "models" / "config.json").touch()
    with pytest.raises(InputError, match=rf"\(it holds no config.json\); .*; did you mean {tmp_path}/models\?$"):
        check_files(load_config(path, [f"model.path={tmp_path / 'model'}"]))
    (tmp_path / "saved" / "adapter_config.json").touch()
    with pytest.raises(InputError, match=r"\(it holds no adapter_model.safetensors\); must be one$"):
        check_files(load_config(path, [f"guard.adapter={tmp_path / 'saved'}"]))


def test_an_ending_in_common_makes_no_two_files_alike(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").touch()
    assert did_you_mean_file(tmp_path / "nothere.jsonl") == ""


def test_a_folder_in_common_makes_no_two_files_alike(tmp_path: Path) -> None:
    (tmp_path / "none.json").touch()
    assert did_you_mean_file(tmp_path / "adapter_config.json") == ""
    assert did_you_mean_file(tmp_path / "nome.json") == f"; did you mean {tmp_path / 'none.json'}?"


@pytest.mark.parametrize("section", ["model", "guard"])
def test_a_model_on_the_hub_is_not_looked_for_here_and_alone_has_revisions(tmp_path: Path, section: str) -> None:
    path = written(tmp_path, "")
    check_files(load_config(path, [f"{section}.path=owner/name-1.5_b"]))
    check_files(load_config(path, [f"{section}.path=owner/name", f"{section}.revision=v1"]))
    wrongs = ("tiny", "name", "./owner/name", "../name", "/owner/name", "~/name", "a/b/c", "owner/", "owner/..", "ö/n")
    for wrong in wrongs:
        (line,) = refusal(tmp_path, "", f"{section}.path={wrong}", f"{section}.revision=v1")
        assert line.endswith(
            f"must be null: path = '{expanduser(wrong)}' is not of the form owner/name, so it has no revisions"
        )
        if wrong != "tiny":
            with pytest.raises(InputError, match=rf"{section}\.path = "):
                check_files(load_config(path, [f"{section}.path={wrong}"]))


def test_a_folder_that_is_there_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(InputError, match=r"model\.path = 'owner/name': no Hugging Face folder"):
        check_files(load_config(written(tmp_path, ""), ["model.path=owner/name"]))


def test_a_data_set_on_a_hub_is_not_looked_for_here(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    check_files(load_config(path, ["data.train=owner/name"]))
    with pytest.raises(InputError, match=r"eval\.advbench"):
        check_files(load_config(path, ["data.train=owner/name", "eval.advbench=absent.csv"]))
    for name in ("data/pairs.json", "data/pairs.jsonl", "./absent", "a/b/c", "absent"):
        with pytest.raises(InputError, match=r"data\.train"):
            check_files(load_config(path, [f"data.train={name}"]))


def test_loading_needs_no_jax() -> None:
    succeed("imported_modules", "jax,numpy", "fedjax_rai.config.load")
