import jax
import pytest


@pytest.fixture(autouse=True)
def exact_products():
    """GPUs multiply float32 in TF32 unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield
