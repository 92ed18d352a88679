"""Importing the package loads nothing heavy and takes less than a tenth of a second; its names are offered."""

import sys
import time

began = time.process_time()
import fedjax_rai  # noqa: E402

assert time.process_time() - began < 0.1
assert not {"jax", "flax", "numpy", "pydantic", "yaml"} & set(sys.modules)
assert "run" in dir(fedjax_rai)
