"""docs/config.md says of every key what it means, and is what the schema says today."""

from pathlib import Path

import pytest

from fedjax_rai.config.keys import schemas, sections
from fedjax_rai.tools.config_reference import reference

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    command = "python -m fedjax_rai.tools.config_reference > docs/config.md"
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference(), f"run `{command}`"


@pytest.mark.parametrize("key", schemas())
def test_every_key_has_a_sentence_of_its_own(key: str) -> None:
    sentence = schemas()[key].get("description", "")
    assert sentence and sentence[0].isupper() | (sentence[0] == "`") and sentence.endswith("."), key
    (row,) = [line for line in reference().split("\n") if line.startswith(f"| `{key}` |")]
    assert row.replace("\\|", "").count("|") == 5


def test_every_section_has_a_line() -> None:
    for name, section in sections().items():
        assert section.__doc__ and "\n" not in section.__doc__, name
        assert f"\n## {name}\n\n{section.__doc__}\n" in reference()


def test_values_and_defaults_stand_as_they_would_be_written() -> None:
    page = reference()
    for row in (
        "| `federated.cohort` | `5` | a whole number >= 1 | Clients drawn for each round, without replacement;",
        '| `cai.method` | `"sft"` | one of sft, dpo, sft+dpo, or package.module:attribute | Train on',
        "| `guard.threshold` | `null` | a number > 0 and < 1 or null | An answer is unsafe if",
        '| `data.partition` | `"iid"` | one of iid, dirichlet, category, quantity, harm, natural, or package',
        "| `path` | must be given | tiny, or the path of a file or folder of rows, or data set | A file, a folder,",
        "| `clients` | `null` | a range (0-6), a list ([0, 3, 9]), a percentage (30%), or null: all | Which clients",
        '| `cai.constitution` | `"default"` | default, or the path of a YAML file of principles, or package.',
        "| `data.red` | `null` | a whole number >= 0 or null | Pairs with a harmful answer",
    ):
        assert row in page, row
