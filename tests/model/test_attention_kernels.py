"""What the fused kernels take, and that they lower for the hardware that they are for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from fedjax_rai.errors import InputError
from fedjax_rai.model.attention import Attention, Sight, _fused_and_kept, _fused_gradients, attend
from tests.model.test_attention import OPTIONS, check_equal, decoding_sight, random_qkv, random_sight, value_and_grads


def test_cudnn_says_what_it_takes():
    sight = random_sight(8)
    q, k, v = random_qkv(sight)
    with pytest.raises(InputError, match="bfloat16 or float16, not float32"):
        attend("cudnn", q, k, v, sight, Attention())
    q, k, v = random_qkv(sight, dtype=jnp.bfloat16)
    with pytest.raises(InputError, match=r"no soft cap \(got 0.8\)"):
        attend("cudnn", q, k, v, sight, OPTIONS["softcap"])


def test_splash_refuses_a_cache():
    sight = decoding_sight(4, 20)
    q, k, v = random_qkv(sight)
    with pytest.raises(InputError, match="not 20 keys for 4 queries"):
        attend("splash", q, k, v, sight, Attention())


@pytest.mark.parametrize("length", (pytest.param(12, marks=pytest.mark.slow), 13))
def test_around_the_cudnn_kernel(stand_in, length):
    """What is ours, with XLA in the kernel's place: mask, padding to even sizes, grad, vmap over some arguments."""
    sights = [random_sight(length, seed=seed) for seed in range(3)]
    sight = jax.tree.map(lambda *rows: jnp.stack(rows), *sights)
    q, k, v = random_qkv(sights[0], clients=3, dtype=jnp.bfloat16)
    options = OPTIONS["all"]._replace(softcap=None)
    each = jax.vmap(value_and_grads, in_axes=(None, (0, None, 0), 0, None))
    run = jax.jit(each, static_argnums=(0, 3))
    check_equal(run("cudnn", (q, k[0], v), sight, options), run("xla", (q, k[0], v), sight, options), 2e-2)


def cudnn_without_gpu(monkeypatch) -> None:
    """Lets jax trace its cuDNN primitive where no cuDNN is installed; skips where jax has moved what it asks."""
    try:
        monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000)
    except (AttributeError, ImportError):
        pytest.skip("jax no longer asks for cuDNN's version where this test expects it")


def test_cudnn_lowers_for_cuda(monkeypatch):
    """jax takes our shapes and types: grad, under vmap over clients, lowers to cuDNN's calls with a shared mask."""
    cudnn_without_gpu(monkeypatch)
    sights = [random_sight(13, seed=seed) for seed in range(3)]
    qkv = random_qkv(sights[0], clients=3, dtype=jnp.bfloat16)
    run = jax.vmap(lambda qkv, sight: value_and_grads("cudnn", qkv, Sight(*sight), Attention(window=5)))
    calls = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    checks = [jax.export.DisabledSafetyCheck.custom_call(call) for call in calls]
    exported = jax.export.export(jax.jit(run), platforms=["cuda"], disabled_checks=checks)
    text = exported(qkv, tuple(jnp.stack(rows) for rows in zip(*sights, strict=True))).mlir_module()
    assert all(f"@{call}(" in text for call in calls)
    assert "tensor<12x1x14x14xbf16>" in text  # 3 clients of 4 rows, one mask for all heads, an even length
    assert "CAUSAL" in text  # the kernel skips what nobody sees


def kernels_called(jaxpr: Any) -> list[str]:
    """cuDNN's calls that something uses."""
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    names = [equation.primitive.name for equation in used.eqns]
    return [name.removesuffix("_wrapper") for name in names if name.startswith("dot_product_attention")]


def test_the_backward_pass_runs_no_forward_kernel(monkeypatch):
    """It is given the softmax's statistics and the output. Without them the kernel would make both again."""
    cudnn_without_gpu(monkeypatch)
    sight = random_sight(16)
    q, k, v = random_qkv(sight, dtype=jnp.bfloat16)
    batch, length, heads, _ = q.shape
    out, *kept = jax.eval_shape(partial(_fused_and_kept, options=Attention()), q, k, v, sight)
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((batch, heads, length), jnp.float32), (q.shape, q.dtype)]
    backward = partial(_fused_gradients, options=Attention())
    traced = jax.make_jaxpr(backward)(q, (q, k, v, sight), kept)
    assert kernels_called(traced.jaxpr) == ["dot_product_attention_bwd"]
    monkeypatch.setattr("fedjax_rai.model.attention._made_by_kernel", lambda leaves, q: [])
    again = jax.make_jaxpr(backward)(q, (q, k, v, sight), ())
    assert kernels_called(again.jaxpr) == ["dot_product_attention_fwd", "dot_product_attention_bwd"]


def test_splash_lowers_for_tpu():
    """Not interpreted there: forward and backward lower to TPU kernels, under vmap over clients, without a TPU."""
    sight = random_sight(300)
    qkv = random_qkv(sight, size=64, clients=3, dtype=jnp.bfloat16)
    run = jax.jit(jax.vmap(lambda *qkv: value_and_grads("splash", qkv, sight, Attention(softcap=2.0, window=100))))
    text = jax.export.export(run, platforms=["tpu"])(*qkv).mlir_module()
    assert text.count("@tpu_custom_call(") == 3
