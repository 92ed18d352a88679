"""GGUF files become the folder that they were made from: tensors, config and positions, or a clear no."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.model import gguf
from fedjax_rai.model.families import read_config
from fedjax_rai.tools.import_gguf import import_gguf
from tests.gguf_files import byte_level, head_dim, sentencepiece, write_gguf
from tests.model.common import read_tensors

pytest.importorskip("gguf")
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_has_the_tensors_that_the_file_was_made_from(arch: str, tied: bool, tmp_path: Path) -> None:
    vocabulary = sentencepiece() if arch in ("gemma3", "phi3") else byte_level()
    written = write_gguf(tmp_path / "a.gguf", arch, vocabulary, tied)
    import_gguf(written.path, tmp_path / "out", "float32")
    found = read_tensors(tmp_path / "out" / "model.safetensors")
    assert found.keys() == written.tensors.keys()
    for name, values in written.tensors.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-7)  # Gemma's norms have had 1 added
    config = read_config(tmp_path / "out")
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, head_dim(arch))
    assert config.tie_word_embeddings is tied
    assert config.rms_norm_eps == 1e-5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_pairs_side_by_side_become_halves_of_a_head() -> None:
    """Two heads of four channels: pairs (0, 2) and (1, 3) of each."""
    interleaved = np.array([0, 2, 1, 3, 10, 12, 11, 13])[:, None]
    assert gguf.halves(interleaved, 2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_quantised_weights_are_what_their_blocks_stand_for(tmp_path: Path) -> None:
    """Q8_0: 32 whole numbers and their scale, the largest number over 127, in half precision."""
    written = write_gguf(tmp_path / "a.gguf", "qwen2", quantized="Q8_0")
    import_gguf(written.path, tmp_path / "out", "float32")
    found = read_tensors(tmp_path / "out" / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    block = written.tensors["model.layers.0.self_attn.o_proj.weight"][0]
    scale = np.abs(block).max() / np.float32(127)
    expected = np.round(block / scale) * np.float32(np.float16(scale))
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("F16", 11), ("BF16", 8)])
def test_halves_of_either_kind_are_read(kind: str, bits: int, tmp_path: Path) -> None:
    """Numbers are within half a unit in the last of so many binary places."""
    written = write_gguf(tmp_path / "a.gguf", quantized=kind)
    import_gguf(written.path, tmp_path / "out", "float32")
    found = read_tensors(tmp_path / "out" / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"]
    expected = written.tensors["model.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_allclose(found, expected, rtol=2.0**-bits, atol=1e-7)
    assert (found != expected).any()


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "a.gguf")
    import_gguf(written.path, tmp_path / "out")
    found = read_tensors(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    bits = written.tensors["model.norm.weight"].view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    np.testing.assert_array_equal(found.view(np.uint16), nearest.astype(np.uint16))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []

    def read(name: str) -> np.ndarray:
        assert not [ref for ref in alive if ref() is not None]
        values = np.full((4, 8), float(name), np.float32)
        alive.append(weakref.ref(values))
        return values

    gguf.write_safetensors(tmp_path / "model.safetensors", {str(i): (4, 8) for i in range(5)}, "float32", read)
    found = read_tensors(tmp_path / "model.safetensors")
    assert [found[str(i)][3, 7] for i in range(5)] == [0, 1, 2, 3, 4]


# ---- positions


def llama3_divisors(factor: float, low: float, high: float, original: int, theta: float, width: int) -> np.ndarray:
    """What Llama 3.1's frequencies are divided by, from Meta's own description of it."""
    divisors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * theta ** (i / width)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(("factor", "theta", "width"), [(8.0, 5e5, 128), (32.0, 5e5, 64)])
def test_llama3_scaling_is_found_in_its_frequencies(factor: float, theta: float, width: int, tmp_path: Path) -> None:
    divisors = llama3_divisors(factor, 1.0, 4.0, 8192, theta, width)
    written = write_gguf(tmp_path / "a.gguf", extra={"rope_freqs.weight": divisors})
    file = gguf.open_gguf(written.path)
    found = gguf.llama3_scaling(file, divisors.astype(np.float64), {"head_dim": width, "rope_theta": theta})
    assert found == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_frequencies_of_no_known_form_are_refused(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "a.gguf", extra={"rope_freqs.weight": np.array([1, 3, 2, 5], np.float32)})
    with pytest.raises(InputError, match="rope_freqs.weight is no scaling of Llama 3's form"):
        import_gguf(written.path, tmp_path / "out")


def test_linear_scaling_and_gemmas_windows(tmp_path: Path) -> None:
    fields = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0, "gemma3.rope.freq_base": 1e6}
    fields |= {"gemma3.attention.sliding_window_pattern": 2}
    written = write_gguf(tmp_path / "a.gguf", "gemma3", sentencepiece(), fields=fields)
    import_gguf(written.path, tmp_path / "out")
    config = read_config(tmp_path / "out")
    local, whole = (config.kinds[i] for i in config.layer_kinds)
    assert (local.window, whole.window) == (64, None)
    assert local.rope is not None and whole.rope is not None
    assert local.rope.frequencies[1] == pytest.approx(10_000 ** (-2 / 256))
    assert whole.rope.frequencies[1] == pytest.approx(1e6 ** (-2 / 256) / 8)
    assert config.query_scale == 256**-0.5


def test_long_ropes_factors_lie_in_tensors(tmp_path: Path) -> None:
    fields = {"phi3.rope.scaling.original_context_length": 256, "phi3.attention.sliding_window": 0}
    factors = {"short": np.array([1, 1.5, 2, 3], np.float32), "long": np.array([1, 2, 4, 8], np.float32)}
    extra = {f"rope_factors_{side}.weight": values for side, values in factors.items()}
    written = write_gguf(tmp_path / "a.gguf", "phi3", sentencepiece(), fields=fields, extra=extra)
    import_gguf(written.path, tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config.longest == 256
    assert config.kinds[0].window is None
    assert config.kinds[0].rope is not None
    expected = [20_000 ** (-2 * i / 8) / factors["short"][i] for i in range(4)]
    assert config.kinds[0].rope.frequencies == pytest.approx(expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not read, only: llama"),
        ({"general.architecture": "qwen"}, "did you mean qwen"),
        ({"split.count": 3}, "one of 3 parts of a model"),
        ({"llama.expert_count": 8}, "a mixture of 8 experts"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "rope scaling 'yarn'"),
        ({"llama.rope.dimension_count": 4}, "4 of 8 channels of a head are rotated"),
        ({"llama.attention.head_count": None}, "has no llama.attention.head_count"),
        ({"llama.attention.head_count_kv": [2, 1]}, "differs between layers"),
        ({"llama.block_count": 3}, "missing: blk.2.attn_k.weight"),
        ({"llama.block_count": 1}, "surplus: blk.1.attn_k.weight"),
        ({"llama.feed_forward_length": 32}, "shape of blk.0.ffn_down.weight"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert', only: gpt2, llama"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id is 9999, but the vocabulary has 264 tokens"),
    ],
)
def test_what_is_not_computed_is_refused_and_nothing_is_written(fields: dict, message: str, tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "a.gguf", fields=fields)
    with pytest.raises(InputError, match=message):
        import_gguf(written.path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_broken_numbers_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    broken = write_gguf(tmp_path / "a.gguf", extra={"rope_freqs.weight": np.array([1, np.nan, 1, 1], np.float32)})
    with pytest.raises(InputError, match="rope_freqs.weight holds values that are no numbers"):
        import_gguf(broken.path, tmp_path / "out")
    unknown = write_gguf(tmp_path / "b.gguf", extra={"blk.0.attn_sinks.weight": np.zeros(4, np.float32)})
    with pytest.raises(InputError, match="surplus: blk.0.attn_sinks.weight"):
        import_gguf(unknown.path, tmp_path / "out")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "a.gguf").path.read_bytes()
    (tmp_path / "short.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gguf").write_text("gguf\n")
    (tmp_path / "lfs.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, message in (
        ("short", "cut short"),
        ("text", "does not begin as a GGUF"),
        ("lfs", "git lfs pull"),
        ("absent", "no such"),
    ):
        with pytest.raises(InputError, match=message):
            import_gguf(tmp_path / f"{name}.gguf", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(InputError, match="is not an empty folder"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "full")
