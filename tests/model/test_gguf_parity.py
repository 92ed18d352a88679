"""A folder made from a GGUF file is the model that transformers reads from that file."""

from pathlib import Path

import numpy as np
import pytest

from fedjax_rai.tools.import_gguf import import_gguf
from tests.gguf_files import byte_level, sentencepiece, write_gguf

pytestmark = pytest.mark.parity
TEXTS = ("hell wor a", "It's 2024,\n\n  and hell\tyes!", "caf\u00e9 \ud55c\uad6d\uc5b4", "<|user|>hell<|end|> a")


@pytest.fixture(autouse=True)
def needs_their_reader():
    pytest.importorskip("gguf")
    pytest.importorskip("torch")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arch", "quantized"),
    [("llama", None), ("llama", "Q8_0"), ("qwen2", None), ("qwen3", "Q4_0"), ("gemma3", None), ("phi3", None)],
)
def test_logits_and_tokens_are_those_of_transformers_reader(arch: str, quantized: str | None, tmp_path: Path) -> None:
    """Mistral is not among them: transformers has no name for its tensors."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    vocabulary = sentencepiece() if arch in ("gemma3", "phi3") else byte_level("qwen2")
    written = write_gguf(tmp_path / "a.gguf", arch, vocabulary, tied=arch != "phi3", quantized=quantized)
    import_gguf(written.path, tmp_path / "out", "float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = torch.arange(2 * 150).reshape(2, 150) * 7 % len(vocabulary["tokens"])  # longer than Gemma's window
    with torch.no_grad():
        expected = theirs(tokens).logits.numpy()
        found = ours(tokens).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
    assert np.abs(expected).max() > 0.1

    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    our_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        expected_ids = their_tokenizer.encode(text, add_special_tokens=False)
        assert our_tokenizer.encode(text, add_special_tokens=False) == expected_ids
        assert our_tokenizer.decode(expected_ids) == their_tokenizer.decode(expected_ids)
    assert our_tokenizer.eos_token_id == their_tokenizer.eos_token_id
    assert our_tokenizer.chat_template == their_tokenizer.chat_template
