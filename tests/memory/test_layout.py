"""Which mesh is chosen for a config that leaves it to the memory plan."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.memory import layout
from fedjax_rai.memory.plan import Plan
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from tests.memory.test_footprint import config_of, decoder, sizes

ROOT = Path(__file__).parents[2]
GIB = 2**30


def planned(config: ExperimentConfig, known: Any) -> Plan:
    """A base of 16 GiB that both axes split, and activations of 2 GiB, that `tensor` does; 1 more with a CAI phase."""
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    activations = 2 + (1 if config.cai.enabled else 0)
    held = {"base": 16 * GIB // (fsdp * tensor)}
    return Plan(held, {"local training": {"activations": activations * GIB // tensor}})


@pytest.mark.parametrize(
    ("gib", "chosen", "why"),
    [
        (21.5, (1, 1), "mesh auto: the base in one part of 8 devices: needs 18.0 GiB a device of 21.5"),
        (21.4, (2, 1), "mesh auto: fsdp=2 of 8 devices: needs 10.0 GiB a device of 21.4; the base in one part 18.0"),
        (15.5, (2, 1), "mesh auto: fsdp=2 of 8 devices: needs 10.0 GiB a device of 15.5; the base in one part 18.0"),
        (5, (8, 1), "mesh auto: fsdp=8 of 8 devices: needs 4.0 GiB a device of 5.0; the base in one part 18.0, fsdp=2"),
        (3.6, (4, 2), "mesh auto: fsdp=4, tensor=2 of 8 devices: needs 3.0 GiB a device of 3.6; the base in one part"),
        (
            2.6,
            (2, 4),
            "mesh auto: fsdp=2, tensor=4 of 8 devices: needs 2.5 GiB a device of 2.6, and a plan may",
        ),
        (1, (2, 4), "mesh auto: fsdp=2, tensor=4 of 8 devices: no mesh fits, and this one needs least, 2.5 GiB a"),
        (None, (1, 1), "mesh auto: the base in one part of 8 devices: nothing says how much memory a device has"),
    ],
)
def test_the_first_mesh_that_fits_is_chosen(monkeypatch, gib, chosen, why):
    """16 / 8 + 2 = 4 GiB by fsdp alone; 16 / 8 + 2 / 2 = 3; with four key heads, eight parts are never tried.

    A mesh is to leave 16 % of a device: 18 GiB of 21.5 do, of 21.4 do not; where none does, the least is taken.
    """
    monkeypatch.setattr(layout, "plan", planned)
    shape = decoder()  # of eight heads and four key heads
    config = config_of(shape, cai={"enabled": False})
    limit = None if gib is None else int(gib * GIB)
    found = layout.choose([(config, sizes(shape, devices=8))], limit)
    assert (found.mesh.fsdp, found.mesh.tensor) == chosen
    assert found.reason.startswith(why), found.reason


def test_arms_that_share_a_base_all_fit(monkeypatch):
    """The arm with a CAI phase needs 16 / 8 + 3 = 5 GiB by fsdp alone, and 16 / 2 + 3 = 11 split in two."""
    monkeypatch.setattr(layout, "plan", planned)
    shape = decoder()
    arms = [config_of(shape, cai={"enabled": enabled}) for enabled in (False, True)]
    for limit, chosen in ((10, 4), (13, 4), (13.2, 2)):
        found = layout.choose([(config, sizes(shape, devices=8)) for config in arms], int(limit * GIB))
        assert (found.mesh.fsdp, found.mesh.tensor) == (chosen, 1)


@pytest.mark.parametrize(("gib", "says"), [(21.4, True), (17.9, False)])
def test_why_a_mesh_that_would_fit_is_not_chosen_is_said(monkeypatch, gib, says):
    monkeypatch.setattr(layout, "plan", planned)
    config = config_of(decoder(), cai={"enabled": False})
    found = layout.choose([(config, sizes(decoder(), devices=8))], int(gib * GIB))
    assert found.mesh.fsdp == 2 and found.reason.endswith("; a plan may be 16% too low") == says


def test_one_device_has_one_mesh(monkeypatch):
    monkeypatch.setattr(layout, "plan", planned)
    found = layout.choose([(config_of(decoder(), cai={"enabled": False}), sizes(decoder()))], 20 * GIB)
    assert found.reason == "mesh auto: one device: needs 18.0 GiB a device of 20.0, and a plan may be 16% too low"


def test_meshes_are_tried_from_the_least_split_on():
    assert list(layout.layouts(4, [1, 2])) == [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]
    assert list(layout.layouts(6, [1])) == [(1, 1), (2, 1), (3, 1), (6, 1)]


def test_columns_are_split_where_each_device_has_whole_heads():
    """15 heads and 5 key heads of 64 channels, 1536 wide in the middle: SmolLM2-360M's, by 5 or 1, not by 2."""
    shape = DecoderConfig(1000, 960, 2560, 2, 15, 5, 64, (LayerKind(plain_rope(64)),))
    assert layout.tensors_of(shape, 10) == [1, 5]
    assert layout.tensors_of(shape, 8) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "gib", "fsdp", "needs"),
    [(8, 15.5, 4, "10.0"), (8, 31, 1, "20.7"), (1, 78, 1, "32.1"), (8, 78, 1, "20.7")],
    ids=["v5e", "v6e", "H100", "H100s"],
)
def test_the_papers_config_fits_four_machines(devices, gib, fsdp, needs):
    """Llama-3.1-8B's shape, pairs of up to 512 tokens; 16 GB chips hold the base in four parts, the others whole."""
    given = yaml.safe_load((ROOT / "configs/paper/llama31_8b_square20k.yaml").read_text())
    config = ExperimentConfig.model_validate(given)
    assert config.mesh.auto
    kinds = (LayerKind(plain_rope(128)),)
    shape = DecoderConfig(128256, 4096, 14336, 32, 32, 8, 128, kinds, tie_word_embeddings=False)
    texts = {"train": 512, "guard_request": 64, "red": 256, "critique": 128, "revision": 128, "asked": 64}
    known = sizes(shape, rank=32, devices=devices, **texts, replay=256, choice=0)
    limit = int(gib * GIB)
    found = layout.choose([(config, known._replace(pairs=20000, red=6000, widens=False))], limit)
    assert (found.mesh.fsdp, found.mesh.tensor) == (fsdp, 1)
    assert f": needs {needs} GiB a device of {gib:.1f}" in found.reason  # as docs/performance.md says


def test_a_config_leaves_the_mesh_to_the_plan():
    assert load_config({"mesh": "auto"}).mesh == load_config({"mesh": {"auto": True}}).mesh
    assert load_config({}, ["mesh.auto=true"]).mesh.auto and not load_config({}).mesh.auto
    with pytest.raises(InputError, match="mesh.tensor = 2: must be 1, or left out, where mesh.auto = true"):
        load_config({"mesh": {"auto": True, "tensor": 2}})
    with pytest.raises(InputError, match="mesh = 'automatic'"):
        load_config({"mesh": "automatic"})
