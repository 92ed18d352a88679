"""Keys by name, arithmetic on trees, rows in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import rng, trees


def bits(key):
    return jax.random.key_data(key).tolist()


def test_a_stream_depends_on_names_and_not_on_their_order():
    root = jax.random.key(0)
    assert bits(rng.stream(root, "x", round=1, client=2)) == bits(rng.stream(root, "x", client=2, round=1))
    others = [rng.stream(root, "x", round=2, client=1), rng.stream(root, "y", round=1, client=2), rng.stream(root, "x")]
    keys = [bits(key) for key in [rng.stream(root, "x", round=1, client=2), *others]]
    assert len({tuple(key) for key in keys}) == 4


def test_host_streams_do_the_same():
    def draw(seed, name, **ids):
        return rng.host(seed, name, **ids).integers(1 << 60)

    assert draw(0, "x", round=1, client=2) == draw(0, "x", client=2, round=1)
    assert len({draw(0, "x", a=1), draw(0, "x", a=2), draw(1, "x", a=1), draw(0, "y", a=1), draw(0, "x", b=1)}) == 5


def test_select_does_not_leak_the_branch_not_taken():
    picked = trees.select(False, {"x": jnp.array([jnp.nan])}, {"x": jnp.array([1.0])})
    assert picked["x"].tolist() == [1.0]


def test_norm_and_finite():
    tree = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    assert float(trees.norm(tree)) == 5.0
    assert bool(trees.all_finite(tree)) and not bool(trees.all_finite(tree | {"c": jnp.array([jnp.inf])}))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_chunks_keep_every_row_of_every_leaf_in_its_place(chunk):
    """The last one is filled up with the first row; each is laid out on its way in and on its way out."""
    rows = {"a": jnp.arange(10.0).reshape(5, 2), "b": jax.random.split(jax.random.key(0), 5)}
    laid: list[tuple[int, ...]] = []

    def constrain(tree):
        laid.extend(leaf.shape[:1] for leaf in jax.tree.leaves(tree))
        return tree

    def double(own):
        return 2 * own["a"], jax.random.uniform(own["b"][0], own["a"].shape)

    doubled, drawn = trees.in_chunks(double, rows, chunk, constrain)
    np.testing.assert_array_equal(doubled, 2 * rows["a"])
    assert drawn.shape == (5, 2)
    assert laid == 4 * [(chunk,)]
