"""Two programs, kept as the commands keep theirs; prints how many were compiled and how many found."""

import json
from collections import Counter

import jax
import jax.numpy as jnp

from fedjax_rai.runs.compiled import keep_compiled

events: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
keep_compiled()
x = jnp.arange(8.0)
assert float(jax.jit(lambda x: (x * x).sum())(x)) == 140.0
assert float(jax.jit(lambda x: jnp.cumsum(x)[-1])(x)) == 28.0
print(json.dumps({"found": events["cache_hits"], "compiled": events["cache_misses"]}))
