"""States on disk: the latest that can be read is what a run goes on from."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.runs.checkpoint import Checkpoints

NOTHING = {"adapter": jnp.zeros((2, 3)), "count": jnp.zeros((), jnp.int32)}


def saved(folder: Path) -> Path:
    """States after rounds 1 to 3 were saved there, each full of its number."""
    checkpoints = Checkpoints(folder)
    for rounds in (1, 2, 3):
        save(checkpoints, rounds)
    checkpoints.close()
    return folder


def save(checkpoints: Checkpoints, rounds: int) -> None:
    checkpoints.save(rounds, {"adapter": jnp.full((2, 3), rounds, jnp.float32), "count": jnp.int32(rounds)})


def restored(folder: Path) -> int:
    """After how many rounds the state is that is restored, all of whose numbers must be this."""
    checkpoints = Checkpoints(folder)
    rounds, state = checkpoints.restore(NOTHING)
    checkpoints.close()
    np.testing.assert_array_equal(state["adapter"], np.full((2, 3), rounds))
    assert int(state["count"]) == rounds
    return rounds


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn(path: Path) -> None:
    """Other bits in the middle of a file of the same length."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)


def blank(path: Path) -> None:
    """As file systems leave files behind that were not written before the power went."""
    path.write_bytes(bytes(path.stat().st_size))


def damage(step: Path, how: Callable[[Path], None], pattern: str) -> None:
    """Do that to the files of a state whose names are like that."""
    hit = [path for path in step.rglob(pattern) if path.is_file() and path.stat().st_size]
    assert hit
    for path in hit:
        how(path)


def test_without_damage_the_latest_is_restored(tmp_path, capsys):
    assert restored(tmp_path / "none") == 0
    assert restored(saved(tmp_path / "some")) == 3
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves coroutines that failed
@pytest.mark.parametrize("how", [cut, Path.unlink, turn, blank])
@pytest.mark.parametrize("pattern", ["*", "_METADATA", "manifest.ocdbt", "[0-9a-f]" * 32])
def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, how, pattern):
    folder = saved(tmp_path / "states")
    damage(folder / "3", how, pattern)
    assert restored(folder) == 2
    assert f"{folder}: the state after round 3 is damaged; going back to round 2" in capsys.readouterr().err
    gc.collect()  # here, and not in a test that does not expect it


@pytest.mark.parametrize("left", [(), ("state",), ("_CHECKPOINT_METADATA",)])
def test_a_state_of_which_little_is_left_is_no_state(tmp_path, left):
    """An empty folder, and one of an empty folder or of one file."""
    folder = saved(tmp_path / "states")
    for path in (folder / "3").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in left:
        (folder / "3" / name).mkdir() if name == "state" else (folder / "3" / name).touch()
    assert restored(folder) == 2


def test_what_is_no_folder_of_states_is_named(tmp_path):
    (tmp_path / "states").touch()
    with pytest.raises(InputError, match=r"states: is no folder; restore it from a copy, remove it to begin anew, or"):
        Checkpoints(tmp_path / "states")
    folder = saved(tmp_path / "others")
    for metadata in folder.rglob("_CHECKPOINT_METADATA"):
        metadata.write_text("[" * 25_000)
    with pytest.raises(InputError, match=r"others: .*; restore it from a copy, remove it to begin anew, or"):
        restored(folder)


def test_a_full_disk_is_named_with_the_folder(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "states")

    def fail(*_, **__):
        raise ValueError("UNAVAILABLE: Error writing: No space left on device [OS error 28: ENOSPC]")

    monkeypatch.setattr(checkpoints._saver, "save_async", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(checkpoints, 1)
    assert caught.value.filename == str(tmp_path / "states")
    checkpoints.close()


def test_the_round_of_a_damaged_state_is_saved_again(tmp_path):
    folder = saved(tmp_path / "states")
    damage(folder / "3", cut, "*")
    checkpoints = Checkpoints(folder)
    checkpoints.restore(NOTHING)
    save(checkpoints, 3)
    checkpoints.close()
    assert restored(folder) == 3
    damage(folder / "3", cut, "*")
    assert restored(folder) == 2


def test_nothing_begins_anew_or_is_deleted_where_all_states_are_damaged(tmp_path):
    folder = saved(tmp_path / "states")
    for step in ("2", "3"):
        damage(folder / step, cut, "*")
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=r"states: no state there can be read \(after round 3, 2\); restore"):
        restored(folder)
    assert sorted(folder.rglob("*")) == before
