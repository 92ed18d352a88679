import jax
import pytest


@pytest.fixture(autouse=True)
def exact_products():
    """GPUs multiply float32 in TF32 unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def stand_in(monkeypatch):
    """Where there is no GPU, XLA's attention in the place of cuDNN's kernel: all that is ours around it still runs."""
    if jax.default_backend() != "gpu":
        real = jax.nn.dot_product_attention

        def by_xla(*args, **options):
            return real(*args, **options | {"implementation": "xla"})

        monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
