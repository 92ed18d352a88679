"""Points of a sweep whose rounds are computed at once are runs by themselves, and compile nothing anew; no round waits.

`runs_beside.py FOLDER`, on one device.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fedjax_rai.config.grid import Point, load_sweep
from fedjax_rai.config.load import dump_config
from fedjax_rai.experiment.round import Federation, play_round
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.fed.base import ServerState
from fedjax_rai.runs import beside, conclude, files, loop
from fedjax_rai.runs.record import METRICS, REVISIONS
from fedjax_rai.runs.run import run
from fedjax_rai.studies import sweep
from tests.conftest import nothing_measured, small_config
from tests.tiny_runs import adapter_bytes, after_rows, dies_when, vary

folder = Path(sys.argv[1])
ROUNDS = 6
compiled: Counter[str] = Counter()
by_seed: list[int] = []
turns: list[int] = []  # in how many lanes each turn was measured
played: list[int] = []  # every round of a run that was dispatched


def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compiled["programs"] += 1


def measured(lanes: Sequence[beside.Lane], *others: Any) -> float:
    """As if two lanes took half of the time; the second of them compiles nothing."""
    before = compiled["programs"]
    MEASURED(lanes, *others)
    assert compiled["programs"] == before, "a turn compiled after the first one"
    turns.append(len(lanes))
    return 1.0 / len(lanes)


def content(run_folder: Path) -> dict[str, Any]:
    """All that a run says but how long it took, and beside how many."""
    rows = files.read_rows(run_folder / METRICS)
    return {
        "adapter": adapter_bytes(run_folder),
        "rows": [{k: v for k, v in row.items() if "seconds" not in k and k != "together"} for row in rows],
        "revisions": files.read_rows(run_folder / REVISIONS),
    }


def points(name: str, seeds: str) -> list[Point]:
    """A sweep of 0, 2 and 5 iterations of each seed."""
    config = vary(small_config(folder / name), federated={"rounds": ROUNDS})
    path = folder / f"{name}.yaml"
    path.write_text(dump_config(config))
    return load_sweep(path, [f"seed={seeds}", "cai.iterations=0,2,5"])


def run_beside(settings: Sequence[Setting]) -> list[Path]:
    """Notes what a seed compiles."""
    before = compiled["programs"]
    found = RUN_BESIDE(settings)
    by_seed.append(compiled["programs"] - before)
    return found


def noted_round(federations: Sequence[Federation], states: Sequence[ServerState], t: int, *others: Any) -> Any:
    """Notes the round of each run that takes part."""
    played.extend([t] * len(federations))
    return play_round(federations, states, t, *others)


MEASURED = beside.measured
RUN_BESIDE = sweep.run_beside
beside.measured = measured
loop.play_round = noted_round
sweep.run_beside = run_beside
beside.os.cpu_count = lambda: 2
conclude.evaluate = nothing_measured
conclude.critique_of = lambda *_: None
jax.monitoring.register_event_duration_secs_listener(count)

whole = points("whole", "0,1")
sweep.run_sweep(whole)
assert by_seed[0] > 0 == by_seed[1], by_seed
assert turns == [1, 2] * 2, turns

killed = points("killed", "0")
with dies_when(after_rows(10)):  # in the turn of two lanes
    sweep.run_sweep(killed)
assert turns[4:] == [1], turns
assert sum(len(files.read_rows(sweep.output(point) / METRICS)) for point in killed) == 10
played.clear()
sweep.run_sweep(killed)
assert len(played) == 3 * ROUNDS - 10, f"rounds that are written down are not done again: {played}"

for point, other in zip(killed, whole[:3], strict=True):
    expected = content(run(vary(point.config, output=str(folder / "alone" / sweep.output(point).name))))
    assert content(sweep.output(point)) == content(sweep.output(other)) == expected, point
    together = [row.get("together") for row in files.read_rows(sweep.output(other) / METRICS)]
    assert together == [None, None, None, 2, 2, 2], together


@jax.jit
def slow(x: jax.Array, times: int) -> jax.Array:
    """Seconds of work."""
    return jax.lax.fori_loop(0, times, lambda _, x: jax.numpy.tanh(x @ x), x)


def after(result: jax.Array, state: ServerState) -> ServerState:
    """The state as it is, but not before the result is there."""
    nothing = 0 * result[0, 0]
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), state)


# A round is dispatched though what it starts from is still to be computed: nothing in it waits for the device.
federation = Federation(Setting(killed[2].config))
state = federation.init()
matrix = jax.numpy.eye(512)
play_round([federation], [after(slow(matrix, 1), state)], 0)
result = slow(matrix, 3000)
((end, *_), _) = play_round([federation], [after(result, state)], 1)
assert not result.is_ready(), "a round waited for the state that it starts from"
jax.block_until_ready(end.state)
