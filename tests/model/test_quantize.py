"""A quantised kernel is near the kernel, packed as it says, and may be fused, stacked, mapped, scanned and sharded."""

import runpy
from functools import partial
from math import gcd
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.model import quantize as q
from fedjax_rai.model.quantize import QUANTIZATIONS, Quantized
from tests.processes import succeed

FIXTURES = Path(__file__).parents[1] / "fixtures"
quantize = jax.jit(q.quantize, static_argnames="kind")
every_kind = pytest.mark.parametrize("kind", QUANTIZATIONS)


@pytest.fixture(autouse=True)
def exact_products():
    """GPUs multiply float32 in TF32 unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


def random_kernel(*shape: int, seed: int = 0):
    """Normal, and no two columns of one size."""
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=shape) * np.exp(draw.normal(size=shape[:-2] + (1, shape[-1]))), jnp.float32)


def in_blocks(array, block: int) -> np.ndarray:
    """[..., in, out] -> [..., in / block, block, out], float64."""
    array = np.asarray(array, np.float64)
    return array.reshape(*array.shape[:-2], -1, block, array.shape[-1])


def restored(quantized: Quantized, block: int) -> np.ndarray:
    return in_blocks(q.dequantize(quantized, jnp.float32), block)


def assert_identical(got: Quantized, expected: Quantized) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), got, expected)


# --- near the kernel ---


def int8_error(multiples: np.ndarray) -> np.ndarray:
    return np.full_like(multiples, 0.5)


def nf4_error(multiples: np.ndarray) -> np.ndarray:
    return np.abs(multiples[..., None] - q.NF4_LEVELS.astype(np.float64)).min(-1)


ERRORS = {"int8": int8_error, "nf4": nf4_error}
"""The largest error allowed, in scales: half a step; the distance to the nearest level."""


@every_kind
@pytest.mark.parametrize("shape", [(128, 6), (96, 5), (10, 3), (2, 3, 64, 4)], ids=str)
def test_a_kernel_comes_back_as_near_as_its_kind_allows(kind, shape):
    kernel, block = random_kernel(*shape), gcd(shape[-2], 64)
    quantized = quantize(kernel, kind)
    blocks, scales = in_blocks(kernel, block), np.asarray(quantized.scales, np.float64)[..., None, :]
    assert quantized.scales.shape == (*shape[:-2], shape[-2] // block, shape[-1])
    error = np.abs(restored(quantized, block) - blocks) / scales
    assert (error <= ERRORS[kind](blocks / scales) + 1e-4).all()


@every_kind
def test_the_largest_entry_of_a_block_is_exact(kind):
    kernel = random_kernel(192, 7)
    largest = np.abs(in_blocks(kernel, 64)).max(axis=1)
    np.testing.assert_allclose(np.abs(restored(quantize(kernel, kind), 64)).max(axis=1), largest, rtol=1e-6)


@every_kind
def test_blocks_of_zeros_and_of_extreme_sizes(kind):
    """[zeros, tiny] over [subnormal, huge]: no NaN on the way, even; a subnormal block may be flushed to zero."""
    size = np.repeat([[0.0, 1e-30], [1e-40, 1e37]], 64, axis=0)
    kernel = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size.shape) * size, jnp.float32)
    with jax.debug_nans(True):
        quantized = q.quantize(kernel, kind)
    got = np.asarray(q.dequantize(quantized, jnp.float32))
    assert np.isfinite(got).all()
    assert not got[:64, 0].any()
    np.testing.assert_allclose(got[:64, 1] / 1e-30, kernel[:64, 1] / 1e-30, atol=0.16)
    np.testing.assert_allclose(got[64:, 1] / 1e37, kernel[64:, 1] / 1e37, atol=0.16)


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    """arXiv 2305.14314, section 3: 8 non-negative and 8 non-positive levels that share zero, the outermost at 1."""
    from scipy.stats import norm

    outermost = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = norm.ppf(np.linspace(outermost, 0.5, 9))
    below = -norm.ppf(np.linspace(outermost, 0.5, 8))
    levels = np.union1d(above, below) / above[0]
    np.testing.assert_allclose(q.NF4_LEVELS, levels, atol=1e-6)


def test_nf4_refuses_an_odd_input_size():
    with pytest.raises(ValueError, match="input size 15 is odd"):
        quantize(random_kernel(15, 4), "nf4")


@every_kind
def test_a_bfloat16_kernel_is_quantised_in_float32(kind):
    kernel = random_kernel(64, 4).astype(jnp.bfloat16)
    assert_identical(quantize(kernel, kind), quantize(kernel.astype(jnp.float32), kind))
    whole = q.dequantize(quantize(kernel, kind), jnp.float32)
    rounded = q.dequantize(quantize(kernel, kind), jnp.bfloat16)
    np.testing.assert_array_equal(rounded, whole.astype(jnp.bfloat16))


def check_qwix(kernel: np.ndarray, kind: str, expected: np.ndarray, scales: np.ndarray) -> None:
    """The same scales, and the same codes but where two are equally near within rounding."""
    quantized = quantize(jnp.asarray(kernel), kind)
    np.testing.assert_allclose(quantized.scales, scales, rtol=1e-6)
    kernel, expected, ours = in_blocks(kernel, 64), in_blocks(expected, 64), restored(quantized, 64)
    scale = scales[:, None].astype(np.float64)
    assert (np.abs(ours - expected) > 1e-4 * scale).mean() < 1e-3
    assert (np.abs(np.abs(ours - kernel) - np.abs(expected - kernel)) < 1e-4 * scale).all()


@every_kind
def test_equals_qwix_on_the_fixture(kind):
    """qwix 0.1.8, float32 scales, tiles of 64 along `in`. Its int8 scale is absmax / 127.5 by default; the fixture
    asks it for absmax / 127. It stores nf4 codes one a uint4, so values are compared and not bytes."""
    with np.load(FIXTURES / "quantized.npz") as arrays:
        check_qwix(arrays["kernel"], kind, arrays[kind], arrays[f"{kind}_scales"])


@every_kind
@pytest.mark.parity
def test_equals_qwix_live(kind):
    """As on the fixture, on random kernels."""
    pytest.importorskip("qwix")
    reference = runpy.run_path(str(FIXTURES / "make_quantized.py"))["reference"]
    for seed in range(5):
        kernel = np.asarray(random_kernel(64 * (seed + 1), 40, seed=seed))
        check_qwix(kernel, kind, *reference(kernel, kind))


# --- packed as it says ---


@every_kind
def test_bytes_per_parameter(kind):
    expected = {"int8": 1 + 4 / 64, "nf4": 0.5 + 4 / 64}
    quantized = quantize(random_kernel(3, 128, 6), kind)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(quantized)) == expected[kind] * 3 * 128 * 6
    assert quantized.scales.dtype == jnp.float32


def test_int8_values_are_the_codes_themselves():
    kernel = jnp.concatenate([jnp.arange(-127.0, 0)[:32], jnp.arange(96.0, 128)])[:, None] * 0.25
    quantized = quantize(kernel, "int8")
    assert quantized.values.dtype == jnp.int8
    np.testing.assert_array_equal(quantized.values, 4 * kernel)
    np.testing.assert_array_equal(quantized.scales, [[0.25]])


def test_nf4_packs_the_even_row_low_and_the_odd_row_high():
    codes = np.array([[15, 3], [0, 15], [7, 4], [9, 0]])
    quantized = quantize(jnp.asarray(q.NF4_LEVELS[codes]) * jnp.array([[2.0, 0.5]]), "nf4")
    assert quantized.values.dtype == jnp.uint8
    np.testing.assert_array_equal(quantized.values, [[15 + 16 * 0, 3 + 16 * 15], [7 + 16 * 9, 4 + 16 * 0]])
    np.testing.assert_array_equal(quantized.scales, [[2.0, 0.5]])


@every_kind
@pytest.mark.parametrize("shape", [(128, 6), (2, 96, 5)], ids=str)
def test_abstract_says_what_quantize_returns(kind, shape):
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), quantize(jnp.ones(shape), kind))
    assert jax.tree.map(str, q.abstract(shape, kind)) == jax.tree.map(str, expected)


# --- fused, stacked, sliced ---


@every_kind
def test_fusing_columns_commutes_with_quantising(kind):
    parts = [random_kernel(128, width, seed=width) for width in (6, 2, 3)]
    fused = quantize(jnp.concatenate(parts, axis=1), kind)
    apart = [quantize(part, kind) for part in parts]
    assert_identical(fused, jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *apart))


@every_kind
def test_stacking_layers_commutes_with_quantising(kind):
    layers = random_kernel(3, 96, 5)
    apart = [quantize(layer, kind) for layer in layers]
    assert_identical(quantize(layers, kind), jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart))
    kernels = jnp.stack([q.dequantize(layer, jnp.float32) for layer in apart])
    np.testing.assert_array_equal(q.dequantize(quantize(layers, kind), jnp.float32), kernels)


# --- products ---


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_and_its_gradient_are_those_of_the_dequantised_kernel(kind, dtype):
    quantized = quantize(random_kernel(128, 6), kind)
    kernel = q.dequantize(quantized, dtype)
    x = random_kernel(5, 128, seed=1).astype(dtype)

    def loss(x, multiply):
        return jnp.sum(jnp.sin(multiply(x).astype(jnp.float32)))

    assert jax.jit(q.matmul)(x, quantized).dtype == dtype
    got = jax.jit(jax.value_and_grad(partial(loss, multiply=lambda x: q.matmul(x, quantized))))(x)
    expected = jax.jit(jax.value_and_grad(partial(loss, multiply=lambda x: x @ kernel)))(x)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(theirs, np.float32), rtol=tolerance, atol=tolerance
        )


@every_kind
def test_mapped_over_x_is_looped(kind):
    quantized, x = quantize(random_kernel(64, 6), kind), random_kernel(3, 5, 64, seed=1)
    mapped = jax.jit(jax.vmap(q.matmul, in_axes=(0, None)))(x, quantized)
    kernel = np.asarray(q.dequantize(quantized, x.dtype))
    looped = np.stack([each @ kernel for each in np.asarray(x)])
    np.testing.assert_allclose(mapped, looped, rtol=1e-5, atol=1e-5)


def deep(x, adapter, kernels: Quantized):
    """x through a scan over layers: tanh(x @ kernel + x * a)."""

    def layer(x, own):
        kernel, a = own
        return jnp.tanh(q.matmul(x, kernel) + x * a), None

    return jax.lax.scan(layer, x, (kernels, adapter))[0]


@every_kind
def test_scanned_over_layers_is_looped(kind):
    kernels = quantize(random_kernel(3, 64, 64) / 8, kind)
    adapter, x = random_kernel(3, 1, 64, seed=1), random_kernel(5, 64, seed=2)

    def looped(x, adapter):
        for layer in range(3):
            kernel = q.dequantize(jax.tree.map(lambda leaf, at=layer: leaf[at], kernels), x.dtype)
            x = jnp.tanh(x @ kernel + x * adapter[layer])
        return x

    def both(f):
        return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(jnp.square(f(*args))), argnums=(0, 1)))

    got = both(lambda x, adapter: deep(x, adapter, kernels))(x, adapter)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, both(looped)(x, adapter))


@every_kind
def test_the_backward_pass_keeps_neither_kernels_nor_copies_of_codes(kind):
    """What the compiled gradient needs beside its arguments grows, a layer, by less than half a layer's codes."""
    size, tokens = 512, 2

    def temporary(layers: int) -> int:
        arguments = (
            jax.ShapeDtypeStruct((tokens, size), jnp.float32),
            jax.ShapeDtypeStruct((layers, 1, size), jnp.float32),
            q.abstract((layers, size, size), kind),
        )
        program = jax.jit(jax.grad(lambda *args: jnp.sum(deep(*args)), argnums=(0, 1)))
        analysis = program.lower(*arguments).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    codes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(q.abstract((size, size), kind)))
    assert temporary(16) - temporary(2) < 14 * codes / 2
    # Nor does it hold many kernels at once: one dequantised, and one on its way there.
    assert temporary(2) < 3 * size * size * 4


@pytest.mark.slow
def test_eight_devices_are_one_device():
    succeed("sharded_kernels", devices=8)
