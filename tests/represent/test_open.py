"""Encoders by name, and again from a gate."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from offmap.core.encoder import Input
from offmap.core.errors import BundleError, ConfigError, NotAvailableError
from offmap.represent.device import resolve_device
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.open import open_encoder, rebuild
from offmap.represent.patches import Cut, Patches
from offmap.represent.slices import SliceWise

NEEDS = frozenset({"features.last"})


def small_net(seed: int) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=rng)
    return net


SPEC = Input(32, 1, (0.5,), (0.5,))


def test_names_of_the_command_line() -> None:
    assert open_encoder("builtin", layers=["stem"]).layers == ("stem",)
    assert open_encoder("builtin", input=Input(96, 3, (0.5,) * 3, (0.25,) * 3)).input.size == 96
    for spec in ("bultin", "hub:", "classifier:", "builtin:", "pickle:x", "autoencoder:", "diffusion:"):
        with pytest.raises(ConfigError, match="use builtin, hub:NAME_OR_DIR, classifier:FILE, autoencoder:DIR, diffusion:DIR, synth"):
            open_encoder(spec)
    with pytest.raises(ConfigError, match="only the size can change"):
        open_encoder("builtin", input=Input(160, 3, (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(ConfigError, match="goes with a classifier"):
        open_encoder("builtin", head="fc")


def test_a_folder_that_is_not_there() -> None:
    for spec in ("hub:./nowhere", "builtin:./nowhere", "classifier:./nowhere.pt2"):
        with pytest.raises(NotAvailableError):
            open_encoder(spec)


def test_the_built_in_encoder_comes_back_from_the_gate_alone() -> None:
    encoder = open_encoder("builtin", layers=["stages.0", "stages.2"])
    again = rebuild(json.loads(json.dumps(encoder.config())), encoder.state())
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.encode(x, NEEDS)["features.last"], encoder.encode(x, NEEDS)["features.last"])
    assert rebuild(encoder.config(), None, given="builtin").sha256 == encoder.sha256


def test_other_weights_are_refused() -> None:
    encoder = open_encoder("builtin")
    state = encoder.state() or {}
    with pytest.raises(BundleError, match="its scores would mean nothing"):
        rebuild(encoder.config(), state | {"stem.bias": state["stem.bias"] + 1})
    with pytest.raises(BundleError, match="encoder hub was given"):
        rebuild(encoder.config(), state, given="hub:./x")
    with pytest.raises(BundleError, match="cannot be built again"):
        rebuild({"kind": "builtin"}, state)
    with pytest.raises(BundleError, match="kind 'other'"):
        rebuild({"kind": "other"}, state)


def test_a_classifier_is_given_again_and_checked() -> None:
    encoder = open_encoder(small_net(0), input=SPEC)
    assert encoder.state() is None
    config = json.loads(json.dumps(encoder.config()))
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    again = rebuild(config, None, given=small_net(0))
    assert again.layers == encoder.layers
    assert torch.equal(again.encode(x, NEEDS)["features.last"], encoder.encode(x, NEEDS)["features.last"])
    with pytest.raises(BundleError, match="give it again with --encoder"):
        rebuild(config, None)
    with pytest.raises(BundleError, match="its scores would mean nothing"):
        rebuild(config, None, given=small_net(1))


def test_a_gate_never_makes_a_program_trusted(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"anything")
    config = open_encoder(small_net(0), input=SPEC).config()
    with pytest.raises(ConfigError, match=r"no torch\.export program"):
        rebuild(config, None, given=f"classifier:{path}")


def test_encoders_of_volumes_come_back() -> None:
    x = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    for encoder in (SliceWise(BuiltinEncoder.shipped(), ("mean", "std")), Patches(BuiltinEncoder.shipped(), Cut(size=16, view=32))):
        again = rebuild(json.loads(json.dumps(encoder.config())), encoder.state())
        assert torch.equal(again.encode(x, NEEDS)["features.last"], encoder.encode(x, NEEDS)["features.last"])
        broken = encoder.config() | {"pool": ["median"], "cut": {"size": 1}}
        with pytest.raises(BundleError, match="volumes cannot be built again"):
            rebuild(broken, encoder.state())


def test_devices_by_name() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        resolve_device("gpu")
    with pytest.raises(NotAvailableError, match="use --device auto"):
        resolve_device("cuda:63")
