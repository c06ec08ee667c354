"""FGSM and PGD against closed forms of a linear classifier, autograd written out, and a small network trained here."""

from pathlib import Path

import pytest
import torch
from tests.represent.test_perturbed import Sealed
from tests.represent.tiny import SPEC, encoder, images, pixels, tiny
from torch import Tensor, nn

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, SignalError
from offmap.represent.attack import attacked
from offmap.represent.classifier import ClassifierEncoder
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.ensemble import EnsembleEncoder
from offmap.represent.multi_exit import WithExits, train_exits
from offmap.represent.probe import probed, width

PLAIN = Input(8, 1, (0.5,), (0.25,))


class Linear(nn.Module):
    """``W x + b`` on all pixels."""

    def __init__(self, classes: int, *, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.stem = nn.Conv2d(1, 1, 1, bias=False).double()
        self.stem.weight = nn.Parameter(torch.ones(1, 1, 1, 1, dtype=torch.float64))
        self.head = nn.Linear(64, classes).double()
        self.head.weight = nn.Parameter(torch.randn(classes, 64, generator=rng, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stem(x).flatten(1))
        return out


def linear(classes: int = 2) -> tuple[ClassifierEncoder, Linear]:
    net = Linear(classes)
    return ClassifierEncoder(net, spec=PLAIN), net


def losses(net: nn.Module, x: Tensor, labels: Tensor, spec: Input) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (spec.mean, spec.std))
    with torch.no_grad():
        return nn.functional.cross_entropy(net.eval()((x.double() - mean) / std), labels, reduction="none")


def inside(seed: int = 0, count: int = 6) -> Tensor:
    """Grey images that a step of 0.1 does not take out of [0, 1]."""
    return 0.2 + 0.6 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_on_two_linear_classes_the_loss_becomes_the_largest_of_the_ball(kind: str) -> None:
    """The margin of class 0 falls by epsilon times the L1 norm of the difference of the weights, divided by the deviation."""
    reader, net = linear()
    x, labels, epsilon = inside(), torch.tensor([0, 1, 0, 1, 0, 1]), 0.1
    moved = attacked(reader, x, labels, kind=kind, epsilon=epsilon, steps=40)
    weight = net.head.weight.detach()
    most = epsilon * (weight[0] - weight[1]).abs().sum() / 0.25
    with torch.no_grad():
        logits = net((x.double() - 0.5) / 0.25)
    margin = (logits[:, 0] - logits[:, 1]) * torch.where(labels == 0, 1.0, -1.0)
    torch.testing.assert_close(losses(net, moved, labels, PLAIN), torch.log1p(torch.exp(-(margin - most))), rtol=1e-5, atol=1e-5)
    rng = torch.Generator().manual_seed(5)
    for _ in range(200):
        other = x + epsilon * (2 * torch.rand(x.shape, generator=rng) - 1)
        assert bool((losses(net, other, labels, PLAIN) <= losses(net, moved, labels, PLAIN) + 1e-9).all())


def test_fgsm_is_the_step_written_out_image_by_image() -> None:
    net, epsilon = tiny(), 0.03
    x, labels = images(11), torch.arange(11) % 4
    got = attacked(encoder(net), x, labels, kind="fgsm", epsilon=epsilon)
    net.eval()
    for i, image in enumerate(x):
        one = image[None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(pixels(one)), labels[i : i + 1]), one)
        torch.testing.assert_close(got[i], (image + epsilon * slope[0].sign()).clamp(0, 1))


def test_pgd_is_its_steps_written_out_and_stays_in_the_ball() -> None:
    net, epsilon, step = tiny(), 0.05, 0.02
    x, labels = images(3), torch.tensor([0, 3, 1])
    one_step = attacked(encoder(net), x, labels, kind="pgd", epsilon=epsilon, steps=1, step=1e-12)
    three = attacked(encoder(net), x, labels, kind="pgd", epsilon=epsilon, steps=3, step=step)
    net.eval()
    walked = one_step.clone()
    for _ in range(3):
        walked.requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(pixels(walked)), labels), walked)
        walked = (walked.detach() + step * slope.sign()).clamp(min=x - epsilon, max=x + epsilon).clamp(0, 1)
    torch.testing.assert_close(three, walked)
    assert float((three - x).abs().max()) <= epsilon + 1e-7
    assert 0 <= float(three.min()) <= float(three.max()) <= 1
    assert float((one_step - x).abs().mean()) > epsilon / 4, "the start is random"


def test_the_loss_grows_with_epsilon_and_pgd_beats_one_step() -> None:
    net = tiny()
    x, labels = images(8), torch.arange(8) % 4
    found = {}
    for kind in ("fgsm", "pgd"):
        for epsilon in (0.0, 0.01, 0.05):
            moved = attacked(encoder(net), x, labels, kind=kind, epsilon=epsilon)
            found[kind, epsilon] = float(losses(net, moved, labels, SPEC).mean())
    for kind in ("fgsm", "pgd"):
        assert found[kind, 0.0] == pytest.approx(float(losses(net, x, labels, SPEC).mean()))
        assert found[kind, 0.0] < found[kind, 0.01] < found[kind, 0.05]
    assert found["pgd", 0.05] >= found["fgsm", 0.05] - 1e-6


def test_one_image_is_attacked_as_in_its_batch_and_noise_depends_on_image_and_seed() -> None:
    reader, x = encoder(tiny()), images(19)
    whole = attacked(reader, x, epsilon=0.04, steps=4)
    for i in (0, 8, 18):
        torch.testing.assert_close(attacked(reader, x[i : i + 1], epsilon=0.04, steps=4)[0], whole[i])
    assert torch.equal(attacked(reader, x, epsilon=0.04, steps=4), whole)
    assert not torch.equal(attacked(reader, x, epsilon=0.04, steps=4, seed=1), whole)


def test_without_labels_the_own_answer_is_left() -> None:
    reader, net = linear(4)
    x = inside()
    answers = reader.encode(x, frozenset({"logits"}))["logits"].argmax(dim=1)
    assert torch.equal(attacked(reader, x, kind="fgsm", epsilon=0.05), attacked(reader, x, answers, kind="fgsm", epsilon=0.05))
    assert bool((losses(net, attacked(reader, x, epsilon=0.05), answers, PLAIN) > losses(net, x, answers, PLAIN)).all())


def test_the_accuracy_of_a_trained_network_falls() -> None:
    """Bright left or right half in noise; a small network learns it, and loses it to changes that noise of the same size does not make."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    x = 0.5 + 0.1 * torch.randn(120, 1, 8, 8, generator=rng)
    x[labels == 0, :, :, :4] += 0.1
    x[labels == 1, :, :, 4:] += 0.1
    x = x.clamp(0, 1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(256, 2))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=rng)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net((x - 0.5) / 0.25), labels).backward()
        optimiser.step()
    reader = ClassifierEncoder(net, spec=PLAIN)

    def right(seen: Tensor) -> float:
        return float((reader.encode(seen, frozenset({"logits"}))["logits"].argmax(dim=1) == labels).double().mean())

    noisy = (x + 0.1 * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(0, 1)
    assert right(x) > 0.95
    assert right(noisy) > 0.95
    one, many = (right(attacked(reader, x, labels, kind=kind, epsilon=0.1)) for kind in ("fgsm", "pgd"))
    assert many <= one < 0.5
    assert all(p.requires_grad for p in net.parameters())


def test_grey_stays_grey_before_a_network_of_three_channels() -> None:
    moved = attacked(encoder(tiny()), images(2, channels=1), epsilon=0.02)
    assert moved.shape == (2, 1, 16, 16)


def test_exits_ensembles_and_probes_are_attacked_where_they_answer() -> None:
    one, other = encoder(tiny()), encoder(tiny(seed=4))
    x, labels = images(4), torch.arange(4)
    exits = train_exits(one, [(images(12, seed=9), torch.arange(12) % 4)])
    assert torch.equal(attacked(WithExits(one, exits), x, labels), attacked(one, x, labels))
    both = EnsembleEncoder([one, other])

    def loss(seen: Tensor) -> Tensor:
        logits = both.encode(seen, frozenset({"ensemble.logits"}))["ensemble.logits"]
        return -logits.softmax(dim=2).mean(dim=1)[torch.arange(4), labels].log()

    assert bool((loss(attacked(both, x, labels, epsilon=0.05)) > loss(x)).all())
    builtin = BuiltinEncoder.shipped(size=32)
    weight = torch.randn(2, width(builtin), generator=torch.Generator().manual_seed(0))
    small = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(attacked(probed(builtin, weight, torch.zeros(2)), small, epsilon=0.01, steps=1), small)


def test_a_program_is_attacked_as_its_module(tmp_path: Path) -> None:
    net = tiny().float().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    program = ClassifierEncoder.open(tmp_path / "net.pt2", trust=True, spec=SPEC)
    moved, expected = (attacked(each, images(3), kind="fgsm", epsilon=0.02) for each in (program, encoder(net)))
    assert float((moved != expected).double().mean()) < 0.01


def test_what_cannot_be_attacked_says_so() -> None:
    x = images(2)
    with pytest.raises(ConfigError, match=r"builtin gives no logits.*probed"):
        attacked(BuiltinEncoder.shipped(size=32), torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    sealed = ClassifierEncoder(Sealed(tiny()), spec=SPEC)
    with pytest.raises(ConfigError, match="gives no gradients"):
        attacked(sealed, x)
    with pytest.raises(ConfigError, match="one logit"):
        attacked(encoder(tiny(classes=1)), x)
    broken = tiny()
    reader = encoder(broken)
    with torch.no_grad():
        broken.head.bias[1] = float("nan")
    with pytest.raises(SignalError, match=r"not finite in rows \[0, 1\]"):
        attacked(reader, x)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"kind": "cw"}, "kind = 'cw' must be one of fgsm, pgd"),
        ({"epsilon": -0.1}, "epsilon = -0.1 in"),
        ({"steps": 0}, "steps = 0 1 or more"),
        ({"step": 0.0}, "step = 0.0 greater than 0"),
    ],
)
def test_arguments_out_of_range_are_named(changed: dict[str, float | str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        attacked(encoder(tiny()), images(1), **changed)  # type: ignore[arg-type]


def test_images_and_labels_that_are_none_are_refused() -> None:
    reader, x = encoder(tiny()), images(2)
    for bad in (x - 1, x * float("nan")):
        with pytest.raises(SignalError, match=r"must lie in \[0, 1\]"):
            attacked(reader, bad)
    for labels in (torch.tensor([0, 4]), torch.tensor([0]), torch.tensor([-1, 0])):
        with pytest.raises(SignalError, match=r"one for each image, 0 \.\.\. 3"):
            attacked(reader, x, labels)
