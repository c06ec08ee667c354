"""Names of classes: kept where they are known for sure, one a logit; never made up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.represent.tiny import SPEC, Tiny, encoder, images, tiny

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError
from offmap.represent.attack import attacked
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.ensemble import EnsembleEncoder
from offmap.represent.multi_exit import WithExits, train_exits
from offmap.represent.nets.multi_exit import MultiExitResNet
from offmap.represent.open import open_encoder, rebuild
from offmap.represent.probe import probed, width
from offmap.represent.train.multi_exit import with_own_exits
from offmap.represent.trained import TrainedEncoder
from offmap.represent.trainers.multi_exit import MultiExit

NAMES = ("a", "b", "c", "d")


def named(net: Tiny, names: tuple[str, ...] = NAMES) -> ClassifierEncoder:
    return ClassifierEncoder(net, spec=SPEC, layers=["one", "two"], class_names=names)


def export(path: Path, note: dict[str, Any]) -> Path:
    net = tiny().float().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={"offmap.json": json.dumps(note)})
    return path


def test_a_module_has_names_only_where_they_are_given_and_a_gate_keeps_them() -> None:
    net = tiny()
    assert encoder(net).class_names == ()
    assert "class_names" not in encoder(net).config()
    config = json.loads(json.dumps(named(net).config()))
    again = rebuild(config, None, given=net)
    assert (again.class_names, again.classes, again.sha256) == (NAMES, 4, encoder(net).sha256)


def test_a_program_names_its_classes_in_its_note(tmp_path: Path) -> None:
    spec = f"classifier:{export(tmp_path / 'net.pt2', {'size': 16, 'classes': list(NAMES)})}"
    program = open_encoder(spec, trust_classifier=True)
    assert program.class_names == NAMES
    assert rebuild(json.loads(json.dumps(program.config())), None, given=spec, trust_classifier=True).class_names == NAMES
    export(tmp_path / "bad.pt2", {"size": 16, "classes": ["a", "b"]})
    with pytest.raises(ConfigError, match=r"names 2 classes \(a, b\) and gives 4 logits"):
        open_encoder(f"classifier:{tmp_path / 'bad.pt2'}", trust_classifier=True)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "a", "b", "c"), ("a", "b", "c", " ")])
def test_names_that_are_not_one_a_logit_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="one name for each, all different"):
        named(tiny(), names)


def test_wrappers_hand_names_and_number_on() -> None:
    one = named(tiny())
    exits = WithExits(one, train_exits(one, [(images(12), torch.arange(12) % 4)]))
    assert (exits.class_names, exits.classes) == (NAMES, 4)
    net = MultiExitResNet(2, channels=1, width=4)
    own = with_own_exits(net, Input(32, 1, (0.5,), (0.5,)), class_names=("left", "right"))
    assert (own.class_names, own.classes) == (("left", "right"), 2)
    base = BuiltinEncoder.shipped(size=32)
    assert (base.class_names, base.classes) == ((), 0)
    assert probed(base, torch.ones(2, width(base)), torch.zeros(2), class_names=("x", "y")).class_names == ("x", "y")


def test_a_network_trained_for_a_gate_knows_its_classes_and_is_attacked() -> None:
    trained = TrainedEncoder(MultiExit(size=32, width=4), ("a", "b"))
    assert (trained.class_names, trained.classes) == (("a", "b"), 2)
    assert TrainedEncoder(MultiExit(size=32, width=4)).classes == 0
    few = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attacked(trained, few, kind="fgsm"), attacked(trained.inner, few, kind="fgsm"))


def test_members_of_an_ensemble_must_not_name_their_classes_in_another_order() -> None:
    assert EnsembleEncoder([encoder(tiny()), named(tiny(seed=4))]).class_names == NAMES
    with pytest.raises(ConfigError, match=r"member 2 .* has its classes in another order"):
        EnsembleEncoder([named(tiny()), named(tiny(seed=4), NAMES[::-1])])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({0: "cat", 1: "dog", 2: "hen"}, ("cat", "dog", "hen")),
        (None, ()),
        ({0: "cat", 1: "cat", 2: "hen"}, ()),
        ({0: "cat", 1: "dog", 3: "hen"}, ()),
    ],
)
def test_a_hub_model_is_named_by_its_configuration_and_not_by_placeholders(
    tmp_path: Path, given: dict[int, str] | None, names: tuple[str, ...]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3)
    model = transformers.ResNetForImageClassification(config)
    rng = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=rng)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors", {"format": "pt"})
    table = {str(k): v for k, v in (given or {k: f"LABEL_{k}" for k in range(3)}).items()}
    written = config.to_dict() | {
        "architectures": ["ResNetForImageClassification"],
        "id2label": table,
        "label2id": {v: int(k) for k, v in table.items()},
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = open_encoder(f"hub:{tmp_path}")
    assert (found.class_names, found.classes) == (names, 3)
    few = torch.rand(2, 3, 32, 32, generator=rng)
    moved = attacked(found, few, torch.tensor([0, 2]), kind="fgsm", epsilon=0.02)
    before, after = (found.encode(x, frozenset({"logits"}))["logits"].log_softmax(dim=1)[[0, 1], [0, 2]] for x in (few, moved))
    assert bool((after < before).all())
