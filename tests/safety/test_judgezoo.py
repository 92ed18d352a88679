"""Forms beside the package judgezoo: the same request for the same pair, and the same score where it reads it alike."""

import copy
import importlib
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedjax_rai.model import families, peft, weights
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.safety.form import GuardForm, bound
from fedjax_rai.safety.forms import FORMS
from fedjax_rai.safety.guard import Guard, request_length, scored
from tests.guard_models import imitated
from tests.model.common import FIXTURES
from tests.safety.test_form_parity import PAIRS, SIZES

ASKED = [pair for pair in PAIRS if all(pair)]  # judgezoo gives no score where a text is empty
HARMBENCH = {"harmbench_llama": "LLAMA_2_13B", "harmbench_mistral": "MISTRAL_7B"}


class Recorder:
    """In place of a classifier: what it is asked, token by token, and a torch model's answer where there is one."""

    device = "cpu"

    def __init__(self, model: Any = None) -> None:
        self.model = model
        self.asked: list[list[int]] = []

    def __call__(self, **encoded: Any) -> Any:
        self.asked += encoded["input_ids"].tolist()
        return self.model(**encoded)

    def generate(self, **encoded: Any) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        self.asked += encoded["input_ids"].tolist()
        return SimpleNamespace(scores=[torch.zeros(1, 2**16)])


def judge_of(module: str, name: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """A judge of judgezoo on our imitated tokenizer, whose classifier is the recorder."""
    pytest.importorskip("judgezoo", reason="the parity extra (judgezoo) is not installed")
    found = importlib.import_module(f"judgezoo.{module}")
    hf = copy.deepcopy(imitated(name).hf)
    hf.pad_token = hf.eos_token
    monkeypatch.setattr(found, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=lambda *_, **__: recorder))
    monkeypatch.setattr(found, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda *_, **__: hf))
    kinds = {"harmbench": "HarmBenchJudge", "md_judge": "MDJudge", "strong_reject": "StrongRejectJudge"}
    return getattr(found, kinds[module])(**options)


def chats(pair: tuple[str, str]) -> list[list[dict[str, str]]]:
    """A pair as judgezoo takes it."""
    return [[{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]]


def text_of(name: str, ids: list[int]) -> str:
    """What the tokens say, without white space: judgezoo's templates lose the line breaks that the cards have.

    Nor with the first token, which it puts there twice.
    """
    hf = imitated(name).hf
    return "".join(hf.decode(ids).replace(hf.bos_token, "").split())


def ours(name: str, form: GuardForm, pair: tuple[str, str]) -> str:
    """Our request."""
    return text_of(name, bound(imitated(name), form).request_ids(*pair))


@pytest.mark.parity
@pytest.mark.parametrize("name", [*HARMBENCH])
def test_harmbench_is_asked_as_judgezoo_does(name, monkeypatch):
    """Scores differ by the line breaks that are lost there; how they are read is held beside transformers."""
    recorder = Recorder()
    pytest.importorskip("judgezoo", reason="the parity extra (judgezoo) is not installed")
    classifier = importlib.import_module("judgezoo.harmbench").HarmBenchClassifier
    judge = judge_of("harmbench", name, recorder, monkeypatch, classifier=classifier[HARMBENCH[name]])
    judge.yes_token_id, judge.no_token_id = 0, 1
    for pair in ASKED:
        judge.judge(chats(pair))
    assert [text_of(name, ids) for ids in recorder.asked] == [ours(name, FORMS[name], pair) for pair in ASKED]


@pytest.mark.parity
def test_md_judge_is_asked_as_judgezoo_does(monkeypatch):
    """With the policy that judgezoo has, which a user's file gives to our form."""
    recorder = Recorder()
    version = pytest.importorskip("judgezoo.md_judge", reason="judgezoo is not installed").MDJudgeVersion.V0_1
    judge = judge_of("md_judge", "md_judge", recorder, monkeypatch, version=version)
    written = judge.CLS_CONVERSATION[0]["content"]
    policy = "O1: " + written.partition("O1: ")[2].partition("\n<END UNSAFE CONTENT CATEGORIES>")[0]
    form = FORMS["md_judge"]._replace(policy=policy)
    for pair in ASKED:
        judge.judge(chats(pair))
    assert [text_of("md_judge", ids) for ids in recorder.asked] == [ours("md_judge", form, pair) for pair in ASKED]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT uses what transformers is about to rename
def test_strong_reject_is_asked_and_read_as_judgezoo_does(tmp_path, monkeypatch):
    """The expectation of the marks, within 1e-4: a Gemma 1 with an adapter, which transformers finds as released."""
    name = "strong_reject"
    folder = released_adapter(name, tmp_path)
    recorder = Recorder(from_adapter(folder))
    judge = judge_of(name, name, recorder, monkeypatch)
    rubric = judge.SR_CLS_PROMPT.partition("{response}\n\n")[2].partition("\n\n### Answer")[0]
    request = str(FORMS[name].request).removeprefix("{bos}")  # which the imitated tokenizer does not put by itself
    form = FORMS[name]._replace(policy=rubric, request=request)
    hf = imitated(name).hf
    judge.score_token_ids = [hf.convert_tokens_to_ids(hf.tokenize(grade)[-1]) for grade in form.grades]
    found = [judge.judge(chats(pair))["p_harmful"][0] for pair in ASKED]
    assert [text_of(name, ids) for ids in recorder.asked] == [ours(name, form, pair) for pair in ASKED]
    adapted = scored(guard_of(name, form, folder), ASKED).scores
    np.testing.assert_allclose(adapted, found, atol=1e-4)
    base = scored(guard_of(name, form, folder)._replace(adapter=None), ASKED).scores
    assert np.abs(base - adapted).min() > 1e-3


def released_adapter(name: str, folder: Path) -> Path:
    """The folder of a random adapter as PEFT writes it, on a random Gemma 1 with one head of keys, which it names."""
    pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    pytest.importorskip("judgezoo", reason="the parity extra (judgezoo) is not installed")
    library = pytest.importorskip("peft", reason="the parity extra (peft) is not installed")
    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    sizes = {**SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True}
    kwargs = {**sizes, "vocab_size": len(imitated(name).hf), "rope_parameters": make["PLAIN"]}
    model = make["build"]("gemma", kwargs, 0)
    model.save_pretrained(folder / "gemma-2b")
    model.name_or_path = str(folder / "gemma-2b")
    lora = library.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False
    )
    library.get_peft_model(model, lora).save_pretrained(folder / "strongreject-15k-v1")
    return folder / "strongreject-15k-v1"


def from_adapter(folder: Path) -> Any:
    """The model of a folder that has an adapter alone, as judgezoo has transformers load it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def guard_of(name: str, form: GuardForm, folder: Path) -> Guard:
    """The same adapter on its base, asked in a form of ours."""
    named = peft.base_of(folder)
    assert named is not None
    base = Path(named[0])
    config = families.read_config(base)
    lora, adapter = peft.load_adapter(folder, config)
    lm = LM(Decoder(config, lora), weights.load_base(base, config))
    own = imitated(name)
    return Guard(lm, adapter, own, request_length(own, form) + 64, 2, "guard.path", form)
