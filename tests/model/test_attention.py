"""Every implementation of attention equals `xla`, values and gradients, and `xla` equals loops in NumPy."""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.aliases import Array
from fedjax_rai.model import attention
from fedjax_rai.model.attention import ATTENTIONS, Attention, Sight, attend, visible

ON_GPU = jax.default_backend() == "gpu"
NO_GPU = "jax has no GPU here, and cuDNN's kernel runs nowhere else"
OPTIONS = {
    "plain": Attention(),
    "scale": Attention(scale=0.7),
    "window": Attention(window=3),
    "softcap": Attention(softcap=0.8),
    "all": Attention(scale=1.3, softcap=1.1, window=5),
}


def sight_of(segment) -> Sight:
    """Self-attention; positions count the tokens of each segment, padding has position 0."""
    segment = np.asarray(segment)
    position = np.zeros_like(segment)
    for row, own in zip(segment, position, strict=True):
        for i in np.unique(row[row > 0]):
            own[row == i] = np.arange((row == i).sum())
    return Sight(*map(jnp.asarray, (segment, position, segment, position)))


def random_sight(length: int, seed: int = 0) -> Sight:
    """Four rows: padded on the left, padded on the right, and two packed, with padding before, between and after."""
    rng = np.random.default_rng(seed)
    slots, segment = np.arange(length), np.zeros((4, length), int)
    segment[0] = slots >= rng.integers(1, length)
    segment[1] = slots < rng.integers(1, length)
    for row in segment[2:]:
        start, number = 0, 0
        while start < length - 2:
            start, number = start + int(rng.integers(0, 3)), number + 1
            end = start + int(rng.integers(1, max(2, length // 2)))
            row[start:end], start = number, end
    return sight_of(segment)


def random_qkv(sight: Sight, heads=4, groups=2, size=8, seed=1, clients: int | None = None, dtype=jnp.float32) -> Any:
    """(q, k, v) for the sight; with `clients`, one more axis in front."""
    (batch, length), slots = sight.query_segment.shape[-2:], sight.key_segment.shape[-1]
    lead, rng = (batch,) if clients is None else (clients, batch), np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return jnp.asarray(2 * rng.standard_normal(lead + shape), dtype)

    return normal(length, heads, size), normal(slots, groups, size), normal(slots, groups, size)


def valid_out(name: str, q, k, v, sight: Sight, options: Attention):
    """The outputs of valid queries; zero elsewhere, so that nothing else has a gradient."""
    out = attend(name, q, k, v, sight, options)
    return jnp.where(sight.query_segment[:, :, None, None] > 0, out, 0)


def value_and_grads(name: str, qkv, sight: Sight, options: Attention):
    """The outputs of valid queries, and the gradients of a random function of them in q, k and v."""
    weight = jnp.asarray(np.random.default_rng(7).standard_normal(qkv[0].shape), qkv[0].dtype)

    def loss(q, k, v):
        out = valid_out(name, q, k, v, sight, options)
        return jnp.sum(out * weight), out

    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*qkv)
    return out, *grads


def check_equal(ours, expected, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()), rtol=0)


def check_equals_xla(name: str, qkv, sight: Sight, options: Attention, tolerance: float = 1e-5) -> None:
    run = jax.jit(value_and_grads, static_argnums=(0, 3))
    check_equal(run(name, qkv, sight, options), run("xla", qkv, sight, options), tolerance)


def naive(q, k, v, sight: Sight, options: Attention) -> np.ndarray:
    """Softmax of what is seen, one query and one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    query_segment, query_position, key_segment, key_position = map(np.asarray, sight)
    scale = q.shape[-1] ** -0.5 if options.scale is None else options.scale
    share = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(*q.shape[:3]):
        if not query_segment[b, t]:
            continue
        seen = []
        for s in range(k.shape[1]):
            past = query_position[b, t] - key_position[b, s]
            if query_segment[b, t] == key_segment[b, s] and 0 <= past < (options.window or np.inf):
                seen.append(s)
        logits = k[b, seen, h // share] @ q[b, t, h] * scale
        if options.softcap is not None:
            logits = options.softcap * np.tanh(logits / options.softcap)
        weight = np.exp(logits - logits.max())
        out[b, t, h] = weight @ v[b, seen, h // share] / weight.sum()
    return out


def check_definition(qkv, sight: Sight, options: Attention) -> None:
    q, k, v = qkv
    ours = jax.jit(valid_out, static_argnums=(0, 5))("xla", q, k, v, sight, options)
    np.testing.assert_allclose(ours, naive(q, k, v, sight, options), atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_xla_is_the_definition(options):
    sight, groups = random_sight(11), {"plain": 1, "scale": 4}.get(options, 2)
    qkv = random_qkv(sight, groups=groups)
    check_definition(qkv, sight, OPTIONS[options])


def plain(q, k, v, sight: Sight, options: Attention) -> Array:
    """The definition with every key head repeated, whose gradients are jax's own."""
    share = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, share, axis=2), jnp.repeat(v, share, axis=2)
    scale = q.shape[-1] ** -0.5 if options.scale is None else options.scale
    logits = jnp.einsum("bthe,bshe->bhts", q, k) * scale
    if options.softcap is not None:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    logits = jnp.where(visible(sight, options.window)[:, None], logits, -1e30)
    return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(logits), v)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_of_xla_are_those_of_the_definition(options):
    """Of all queries, also of padding, which sees padding, and of those that see nothing, whose q gets none."""
    sight, groups = random_sight(11), {"plain": 1, "scale": 4}.get(options, 2)
    sight = sight._replace(query_segment=sight.query_segment.at[0, 3].set(99))
    q, k, v = random_qkv(sight, groups=groups)

    @partial(jax.jit, static_argnums=0)
    def gradients(attended, q, k, v):
        return jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attended(q, k, v))), argnums=(0, 1, 2))(q, k, v)

    ours = gradients(lambda q, k, v: attend("xla", q, k, v, sight, OPTIONS[options]), q, k, v)
    check_equal(ours, gradients(lambda q, k, v: plain(q, k, v, sight, OPTIONS[options]), q, k, v))
    assert not np.asarray(ours[0])[0, 3].any()


@pytest.mark.parametrize("clients", (None, 2))
def test_a_batch_of_one_has_the_gradients_of_the_definition(clients):
    """By itself and mapped over clients; queries against more keys than there are queries."""
    ones = jnp.ones((1, 4), int)
    sight = Sight(ones, 3 + jnp.arange(4)[None], jnp.ones((1, 9), int), jnp.arange(9)[None])
    qkv = random_qkv(sight, clients=clients)

    def gradients(attended):
        function = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attended(q, k, v, sight, Attention()))), argnums=(0, 1, 2))
        return jax.jit(function if clients is None else jax.vmap(function))(*qkv)

    check_equal(gradients(partial(attend, "xla")), gradients(plain))


def test_gradients_in_bfloat16_are_those_of_float32():
    sight = random_sight(21)
    qkv = random_qkv(sight, dtype=jnp.bfloat16)
    ours = value_and_grads("xla", qkv, sight, Attention())
    assert all(x.dtype == jnp.bfloat16 for x in ours)
    exact = value_and_grads("xla", tuple(x.astype(jnp.float32) for x in qkv), sight, Attention())
    check_equal([x.astype(jnp.float32) for x in ours], exact, 2e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), ((jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)))
def test_dividing_last_is_dividing_first(dtype, tolerance):
    """Of large logits, of those of a query that sees nothing, and of one that sees one key."""
    rng = np.random.default_rng(0)
    unseen = 0.5 * jnp.finfo(jnp.float32).min
    logits = jnp.asarray(80 * rng.standard_normal((2, 2, 6, 5)), jnp.float32)
    logits = logits.at[0, 0, 0].set(unseen).at[0, 0, 1, 1:].set(unseen)
    values = jnp.asarray(rng.standard_normal((2, 2, 5, 3)), dtype)
    first = attention._by_probabilities(logits, values)
    last = attention._divided_last(logits, values)
    assert first.dtype == last.dtype == dtype
    first, last, exact = (x.astype(jnp.float32) for x in (first, last, values[0, 0]))
    np.testing.assert_allclose(last, first, atol=tolerance)
    for found in (first, last):
        np.testing.assert_allclose(found[0, 0, :2], [exact.mean(axis=0), exact[0]], atol=tolerance)


@pytest.mark.parametrize(("platform", "divided"), (("cpu", "42x8"), ("cuda", "42x21"), ("tpu", "42x21")))
def test_only_cpus_divide_last(platform, divided):
    """By the sums: what the product with the values gave, or the weights; 8 channels, 21 keys, two heads' queries."""
    sight = random_sight(21)
    qkv = random_qkv(sight, heads=8, groups=4)

    def out(q, k, v):
        return attend("xla", q, k, v, sight, Attention())

    program = jax.jit(out).trace(*qkv).lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"stablehlo.divide .* tensor<([x\d]+)xf32>", program)
    assert found == ["4x4x" + divided]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what other backends lay out is theirs")
def test_no_logits_are_turned():
    """Neither in the forward pass nor in the backward pass: on CPUs those copies took as long as the products."""
    sight = sight_of(np.ones((4, 128), int))
    q, k, v = random_qkv(sight, heads=8, groups=4, size=32)

    def loss(q, k, v):
        return jnp.sum(attend("xla", q, k, v, sight, Attention()) ** 2)

    def turned(function) -> list[int]:
        program = jax.jit(function).lower(q, k, v).compile().as_text() or ""
        shapes = re.findall(r"= f32\[([\d,]+)\]\S* (?:transpose|copy)\(", program)
        return [math.prod(map(int, shape.split(","))) for shape in shapes]

    logits = 4 * 8 * 128 * 128
    assert max(turned(lambda q, k, v: jnp.einsum("bthe,bshe->htsb", q, jnp.repeat(k, 2, axis=2)) ** 2)) == logits
    found = turned(loss) + turned(jax.grad(loss, argnums=(0, 1, 2)))
    assert max(found, default=0) <= q.size < logits


def test_a_window_of_one_sees_only_itself():
    sight = random_sight(9)
    mask = np.asarray(visible(sight, 1))
    valid = np.asarray(sight.query_segment) > 0
    np.testing.assert_array_equal(mask[valid].sum(-1), 1)
    assert np.einsum("btt->bt", mask)[valid].all()


@pytest.mark.parametrize("options", (pytest.param("plain", marks=pytest.mark.slow), "all"))
@pytest.mark.parametrize("name", ATTENTIONS)
def test_equals_xla(name, options):
    """Every key of ATTENTIONS. cuDNN has no soft cap, and bfloat16's precision."""
    options, sight = OPTIONS[options], random_sight(21)
    qkv, tolerance = random_qkv(sight), 1e-5
    if name == "cudnn":
        if not ON_GPU:
            pytest.skip(NO_GPU)
        qkv, tolerance = random_qkv(sight, dtype=jnp.bfloat16), 2e-2
        options = options._replace(softcap=None)
    check_equals_xla(name, qkv, sight, options, tolerance)


@pytest.mark.parametrize("groups", (1, pytest.param(4, marks=pytest.mark.slow)))
@pytest.mark.parametrize("name", (pytest.param("chunked", marks=pytest.mark.slow), "splash"))
def test_one_key_head_or_as_many_as_queries(name, groups):
    sight = random_sight(10)
    check_equals_xla(name, random_qkv(sight, groups=groups), sight, OPTIONS["scale"])


# Several chunks or blocks, and no multiple of their size.
LENGTHS = {"chunked": 2 * attention.CHUNK + 3, "splash": 300}
SLOW_WINDOWS = [pytest.param(window, marks=pytest.mark.slow) for window in (None, 10_000)]


@pytest.mark.parametrize("window", (130, *SLOW_WINDOWS))
@pytest.mark.parametrize("name", LENGTHS)
def test_several_blocks(name, window):
    """Long enough that whole blocks see nothing, and that a window ends inside a block of the past."""
    sight = random_sight(LENGTHS[name], seed=3)
    check_equals_xla(name, random_qkv(sight, heads=2, groups=1, size=4), sight, Attention(window=window))


def decoding_sight(length: int, slots: int) -> Sight:
    """A ragged cache: left padding, a gap of unwritten slots, and `length` new tokens before slots not yet written."""
    segment = np.zeros((3, slots), int)
    segment[0, 2:9], segment[1, 5:8], segment[2, 0:4] = 1, 1, 1
    segment[:, 10 : 10 + length] = 1
    whole = sight_of(segment)
    own = slice(10, 10 + length)
    return Sight(whole.query_segment[:, own], whole.query_position[:, own], whole.key_segment, whole.key_position)


@pytest.mark.parametrize(("length", "slots"), ((1, 20), pytest.param(600, 620, marks=pytest.mark.slow)))
def test_decoding_with_a_cache(length, slots):
    sight, options = decoding_sight(length, slots), OPTIONS["window"]
    qkv = random_qkv(sight)
    check_equals_xla("chunked", qkv, sight, options)
    if length == 1:
        check_definition(qkv, sight, options)


def run_layers(name: str, qkv, sight: Sight, options: Attention):
    """Three layers under `scan`, as in the decoder: each attends with the queries that the last one made."""

    q, k, v = qkv

    def layer(q, scale):
        return q + valid_out(name, scale * q, k, v, sight, options), None

    return jax.lax.scan(layer, q, jnp.linspace(0.5, 1.0, 3).astype(q.dtype))[0]


@pytest.mark.parametrize("shared", (pytest.param(True, marks=pytest.mark.slow), False), ids=("one sight", "own sights"))
@pytest.mark.parametrize("name", ("chunked", "splash"))
def test_clients_and_layers(name, shared):
    """vmap over clients of grad of scan over layers: each client gets what it gets alone from `xla`."""
    sights = [random_sight(12, seed=seed) for seed in range(3)]
    qkv = random_qkv(sights[0], clients=3)
    sight = sights[0] if shared else jax.tree.map(lambda *rows: jnp.stack(rows), *sights)
    options = OPTIONS["all"]

    def grads(name, qkv, sight):
        return jax.grad(lambda qkv: jnp.sum(jnp.sin(run_layers(name, qkv, sight, options))))(qkv)

    ours = jax.jit(jax.vmap(partial(grads, name), in_axes=(0, None if shared else 0)))(qkv, sight)
    alone = jax.jit(partial(grads, "xla"))
    for i in range(3):
        expected = alone(tuple(x[i] for x in qkv), sights[0] if shared else sights[i])
        check_equal(tuple(x[i] for x in ours), expected)


@pytest.mark.parametrize(("name", "options"), (("xla", "all"), ("chunked", "plain"), ("splash", "all")))
def test_padding_is_harmless(name, options):
    """Rows of padding are finite with finite gradients, and what stands in padding slots reaches no valid query."""
    options = OPTIONS[options]
    sight = sight_of([[0] * 12, [0] * 5 + [1] * 7, [1] * 4 + [0] * 3 + [2] * 5])
    qkv = random_qkv(sight)
    valid = np.asarray(sight.key_segment) > 0

    @jax.jit
    def run(qkv):
        """Outputs; gradients of all outputs; gradients of the valid ones."""
        out, pull = jax.vjp(lambda q, k, v: attend(name, q, k, v, sight, options), *qkv)
        return out, pull(out), pull(jnp.where(valid[:, :, None, None], out, 0))

    out, whole, own = run(qkv)
    assert all(np.isfinite(x).all() for x in (out, *whole))
    assert not any(np.asarray(x)[~valid].any() for x in own)
    moved, _, _ = run(tuple(jnp.where(valid[:, :, None, None], x, 50 + 10 * x) for x in qkv))
    np.testing.assert_array_equal(np.asarray(out)[valid], np.asarray(moved)[valid])


@pytest.mark.parametrize(("name", "options"), (("xla", "plain"), ("chunked", "softcap")))
def test_a_query_that_sees_nothing_is_finite(name, options):
    sight = decoding_sight(4, 20)._replace(query_segment=jnp.zeros((3, 4), int), key_segment=jnp.ones((3, 20), int))
    qkv = random_qkv(sight)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def run(q, k, v):
        return jnp.sum(attend(name, q, k, v, sight, OPTIONS[options]) ** 2)

    value, grads = run(*qkv)
    assert not visible(sight, None).any()
    assert all(np.isfinite(x).all() for x in (value, *grads))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_no_probability_is_kept_for_the_backward_pass(stand_in, name):
    """Nor a mask: what is kept is no larger than q, which is far smaller than t * s."""
    sight = random_sight(256)
    qkv = random_qkv(sight, heads=2, groups=1, dtype=jnp.bfloat16)
    kept = jax.eval_shape(
        lambda *qkv: jax.vjp(lambda q, k, v: attend(name, q, k, v, sight, Attention()), *qkv)[1], *qkv
    )
    assert max(leaf.size for leaf in jax.tree.leaves(kept)) <= qkv[0].size


def temporary_bytes(name: str, length: int) -> int:
    """Of forward and backward, as compiled."""
    sight = sight_of(np.ones((1, length), int))
    qkv = random_qkv(sight, heads=2, groups=1)

    def grads(q, k, v, sight):
        return jax.grad(lambda q, k, v: jnp.sum(attend(name, q, k, v, sight, Attention())), argnums=(0, 1, 2))(q, k, v)

    memory = jax.jit(grads).lower(*qkv, sight).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def growth(name: str) -> float:
    """How many times as much is added from 8 to 16 chunks as from 4 to 8; a device's fixed workspace cancels out."""
    short, middle, long = (temporary_bytes(name, count * attention.CHUNK) for count in (4, 8, 16))
    return (long - middle) / (middle - short)


def test_memory_of_chunks_grows_linearly():
    assert 3.8 < growth("xla") < 4.2
    assert growth("chunked") < 2.1


def test_chunks_add_up_gradients_in_float32():
    """In bfloat16, keys that many chunks see get gradients as good as those of one whole product."""
    ones, zeros = jnp.ones((1, 8 * attention.CHUNK), int), jnp.zeros((1, 16), int)
    sight = Sight(ones, ones, zeros + 1, zeros)
    q, k, v = random_qkv(sight, heads=1, groups=1, size=4, dtype=jnp.bfloat16)

    def gradient(name, q, k, v):
        return jax.jit(jax.grad(lambda v: jnp.sum(attend(name, q, k, v, sight, Attention()).astype(jnp.float32))))(v)

    exact = np.asarray(gradient("xla", *(x.astype(jnp.float32) for x in (q, k, v))))
    errors = [np.abs(np.asarray(gradient(name, q, k, v), np.float32) - exact).mean() for name in ("xla", "chunked")]
    assert errors[1] < 1.2 * errors[0]
