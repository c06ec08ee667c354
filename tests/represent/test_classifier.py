"""The user's own network: hooks against a forward pass written out."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, NotAvailableError, SignalError
from offmap.represent.classifier import ClassifierEncoder, default_input
from offmap.represent.digest import file_sha256
from offmap.represent.open import open_encoder
from offmap.represent.program import _read_note

SPEC = Input(64, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class Net(nn.Module):
    """A stem, two stages, dropout and a head, as residual networks are laid out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.neck, self.fc = nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1)
        out: Tensor = self.fc(self.drop(torch.relu(self.neck(x))))
        return out


def drawn(net: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=rng)
    return net


@pytest.fixture(scope="module")
def net() -> Net:
    torch.set_num_threads(1)
    return drawn(Net()).train()  # type: ignore[return-value]


def images(n: int = 3, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def program(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    net.eval()
    exported = torch.export.export(net, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    note = {"mean": SPEC.mean, "std": SPEC.std, "classes": [f"class {i}" for i in range(net.fc.out_features)]}
    torch.export.save(exported, path, extra_files={"offmap.json": json.dumps(note)})
    net.train()
    return path


def oracle(net: Net, x: Tensor) -> dict[str, Tensor]:
    net.eval()
    with torch.no_grad():
        pixels = (x - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[:, None, None]
        stem = net.stem(pixels)
        one = net.layer1(stem)
        two = net.layer2(one)
        neck = torch.relu(net.neck(two.mean(dim=(2, 3))))
        logits = net.fc(neck)
    net.train()
    return {"stem": stem, "layer1": one, "layer2": two, "penultimate": neck, "logits": logits}


def check(encoder: ClassifierEncoder, net: Net) -> None:
    x = images()
    signals, expected = encoder.encode(x, encoder.provides), oracle(net, x)
    for name in ("stem", "layer1", "layer2"):
        maps = expected[name]
        torch.testing.assert_close(signals[f"feature_map.{name}"], maps)
        torch.testing.assert_close(signals[f"features.{name}"], torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))], dim=1))
    torch.testing.assert_close(signals["features.penultimate"], expected["penultimate"])
    torch.testing.assert_close(signals["features.last"], expected["penultimate"])
    torch.testing.assert_close(signals["logits"], expected["logits"])
    rebuilt = signals["features.penultimate"] @ signals["head.weight"].T + signals["head.bias"]
    torch.testing.assert_close(rebuilt, expected["logits"])
    assert torch.equal(signals["feature_map.last"], signals["feature_map.layer2"])


def test_signals_of_a_module_equal_its_own_forward_pass(net: Net) -> None:
    encoder = ClassifierEncoder(net, spec=SPEC)
    assert encoder.layers == ("stem", "layer1", "layer2", "penultimate")
    check(encoder, net)


def test_signals_of_a_program_equal_those_of_its_module(net: Net, program: Path) -> None:
    encoder = open_encoder(f"classifier:{program}", trust_classifier=True)
    assert encoder.input == SPEC
    assert encoder.sha256 == file_sha256(program)
    check(encoder, net)  # type: ignore[arg-type]


def test_one_image_gives_what_it_gives_in_its_batch(net: Net, program: Path) -> None:
    for encoder in (ClassifierEncoder(net, spec=SPEC), ClassifierEncoder.open(program, trust=True)):
        whole = encoder.encode(images(40), encoder.provides)
        one = encoder.encode(images(40)[33:34], encoder.provides)
        torch.testing.assert_close(one["logits"], whole["logits"][33:34], rtol=0, atol=1e-5)
        torch.testing.assert_close(one["features.layer1"], whole["features.layer1"][33:34], rtol=0, atol=1e-5)


def test_modes_weights_and_hooks_of_the_module_are_left_alone(net: Net) -> None:
    net.train()
    net.stem[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    encoder = ClassifierEncoder(net, spec=SPEC)
    encoder.encode(images(), encoder.provides)
    assert [m.training for m in (net, net.drop, net.stem[0], net.stem[1])] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    net.train()


def test_layers_and_head_by_name(net: Net) -> None:
    encoder = ClassifierEncoder(net, spec=SPEC, layers=["layer1.0", "neck"], head="fc")
    assert encoder.layers == ("layer1.0", "neck", "penultimate")
    signals = encoder.encode(images(), frozenset({"features.*"}))
    assert {k: tuple(v.shape) for k, v in signals.items()} == {
        "features.layer1.0": (3, 12),
        "features.neck": (3, 5),
        "features.penultimate": (3, 5),
        "features.last": (3, 5),
    }
    with pytest.raises(ConfigError, match=r"no layer 'layer3'.*did you mean 'layer"):
        ClassifierEncoder(net, spec=SPEC, layers=["layer3"])
    with pytest.raises(ConfigError, match=r"head = 'layer1' is no linear layer.*there are: neck, fc"):
        ClassifierEncoder(net, spec=SPEC, head="layer1")


def test_logits_are_read_before_a_softmax(net: Net) -> None:
    encoder = ClassifierEncoder(nn.Sequential(net, nn.Softmax(dim=1)), spec=SPEC)
    torch.testing.assert_close(encoder.encode(images(), frozenset({"logits"}))["logits"], oracle(net, images())["logits"])


def test_without_a_head_there_are_features_only(net: Net) -> None:
    encoder = ClassifierEncoder(nn.Sequential(net.stem, net.layer1), spec=SPEC)
    assert not {"logits", "head.weight"} & encoder.provides
    assert encoder.layers == ("0", "1")
    signals = encoder.encode(images(), encoder.provides)
    torch.testing.assert_close(signals["feature_map.last"], oracle(net, images())["layer1"])
    flat = ClassifierEncoder(nn.Sequential(net.stem, nn.AdaptiveAvgPool2d(1), nn.Flatten()), spec=SPEC)
    assert flat.layers == ("0", "output")
    assert flat.encode(images(), frozenset({"features.last"}))["features.last"].shape == (3, 4)


def test_tokens_are_pooled(net: Net) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Conv2d(3, 6, 16, 16), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.mix(self.embed(x).flatten(2).transpose(1, 2)).mean(dim=1))
            return out

    module = drawn(Tokens())
    encoder = ClassifierEncoder(module, spec=SPEC, layers=["mix"])
    signals = encoder.encode(images(), encoder.provides)
    assert signals["features.mix"].shape == (3, 12)
    torch.testing.assert_close(signals["features.mix"][:, :6], signals["features.penultimate"])
    assert "feature_map.mix" not in encoder.provides


class Odd(nn.Module):
    """Returns whatever it is told to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        return {"dict": {"logits": y, "aux": y}, "tuple": (y, y), "none": None, "noise": torch.rand_like(y)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dict", "a dict with the keys logits, aux"),
        ("tuple", r"a tuple of 2 \(Tensor, Tensor\)"),
        ("none", "a NoneType"),
        ("noise", "different outputs for the same images"),
    ],
)
def test_outputs_that_cannot_be_read_are_named(kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierEncoder(Odd(kind), spec=SPEC)


class Switching(nn.Module):
    """Its batch normalisation is in training mode whatever it is told, in one of four ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4, track_running_stats=kind != "untracked")
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "switches":
            self.norm.train()
        y = self.conv(x)
        y = nn.functional.batch_norm(y, None, None, training=True) if self.kind == "functional" else self.norm(y)
        out: Tensor = self.head(y.relu().mean(dim=(2, 3)))
        return out


@pytest.mark.parametrize("kind", ["switches", "functional", "untracked"])
def test_batch_normalisation_that_reads_the_batch_is_named(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"answers otherwise for an image alone .* batch normalisation in training mode"):
        ClassifierEncoder(drawn(Switching(kind)), spec=SPEC)


def test_a_module_given_in_training_mode_is_read_in_eval_mode_and_left_in_training_mode() -> None:
    module = drawn(Switching("none")).train()
    encoder, before = ClassifierEncoder(module, spec=SPEC), module.norm.running_mean.clone()  # type: ignore[union-attr, operator]
    found = encoder.encode(images(), frozenset({"logits"}))["logits"]
    alone = encoder.encode(images()[:1], frozenset({"logits"}))["logits"]
    torch.testing.assert_close(found[:1], alone)
    assert module.training
    assert module.norm.training  # type: ignore[union-attr]
    torch.testing.assert_close(module.norm.running_mean, before)  # type: ignore[union-attr, arg-type]


def test_a_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot take a batch of shape \(2, 3, 64, 64\)"):
        ClassifierEncoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(10, 2)), spec=SPEC)
    encoder = ClassifierEncoder(drawn(Net()), spec=SPEC)
    with pytest.raises(SignalError, match="1 or 3 channels"):
        encoder.encode(images(channels=2), frozenset({"logits"}))


def test_defaults_follow_the_first_convolution() -> None:
    assert default_input(nn.Conv2d(1, 2, 3)) == Input(224, 1, (0.5,), (0.5,))
    assert default_input(nn.Conv2d(3, 2, 3)).mean == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match="takes 4 channels"):
        default_input(nn.Conv2d(4, 2, 3))


def test_a_program_names_its_classes_in_its_note(net: Net, program: Path) -> None:
    opened = ClassifierEncoder.open(program, trust=True)
    assert opened.class_names == tuple(opened.config()["class_names"]) == tuple(f"class {i}" for i in range(net.fc.out_features))
    assert "class_names" not in ClassifierEncoder(net, spec=SPEC).config()
    with pytest.raises(ConfigError, match="names 1 classes"):
        ClassifierEncoder(net, spec=SPEC, class_names=["alone"])
    for text, found in (('{"classes": ["a", "b"]}', ("a", "b")), ("", ())):
        assert _read_note(text, ("batch", 3, 64, 64), program)[2] == found
    with pytest.raises(ConfigError, match="its note"):
        _read_note('{"classes": 3}', ("batch", 3, 64, 64), program)


def test_a_program_runs_only_when_it_is_trusted(program: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a program and can do anything that you can.*--trust-classifier"):
        open_encoder(f"classifier:{program}")
    with pytest.raises(NotAvailableError, match="no such file"):
        open_encoder(f"classifier:{program}.gone", trust_classifier=True)


def test_other_files_are_named(net: Net, tmp_path: Path) -> None:
    for inner, message in (("constants.pkl", "is TorchScript"), ("data.pkl", "without the network"), ("other", "was not opened by torch")):
        path = tmp_path / "file.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"file/{inner}", b"")
        with pytest.raises(ConfigError, match=message):
            open_encoder(f"classifier:{path}", trust_classifier=True)


def test_a_fixed_batch_is_refused(net: Net, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Sequential(nn.Conv2d(3, 2, 3)), (torch.zeros(2, 3, 64, 64),)), tmp_path / "fixed.pt2")
    with pytest.raises(ConfigError, match=r"batches of exactly 2: export it with a dynamic batch"):
        open_encoder(f"classifier:{tmp_path / 'fixed.pt2'}", trust_classifier=True)
