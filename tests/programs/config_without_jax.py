"""A config is loaded from a mapping, and jax is not."""

import sys

import fedjax_rai as rai

assert rai.load_config({"seed": 3}).seed == 3
assert "jax" not in sys.modules
