"""States of neurons against the gradient of the divergence written out, image by image."""

import pytest
import torch
from tests.represent.tiny import encoder, images, pixels, tiny
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.represent.classifier import ClassifierEncoder


def divergence(logits: Tensor) -> Tensor:
    """KL of the uniform distribution to the softmax, term by term."""
    p, u = logits.softmax(dim=0), 1 / len(logits)
    return sum((u * torch.log(u / p_k) for p_k in p), torch.zeros(()))


@pytest.mark.parametrize("inplace", [False, True])
def test_states_equal_the_definition(inplace: bool) -> None:
    net = tiny(inplace=inplace)
    got = encoder(net).encode(images(10), frozenset({"nac.*"}))
    net.eval()
    for i, x in enumerate(pixels(images(10))):
        one = net.one(x[None]).detach().requires_grad_()
        two = net.two(one)
        neck = net.neck(two)
        slopes = torch.autograd.grad(divergence(net.head(neck)[0]), [one, two, neck])
        for layer, state, slope in zip(("one", "two", "penultimate"), (one, two, neck), slopes, strict=True):
            v = state[0] * slope[0]
            expected = v.mean(dim=(1, 2)) if v.ndim == 3 else v
            torch.testing.assert_close(got[f"nac.{layer}"][i], expected.float(), rtol=1e-5, atol=1e-7)


def test_the_gradient_of_the_penultimate_layer_has_a_closed_form() -> None:
    """``h * W^T (p - 1/K)``."""
    net = tiny()
    signals = encoder(net).encode(images(), frozenset({"nac.penultimate", "features.penultimate", "logits"}))
    slope = (signals["logits"].softmax(dim=1) - 1 / 4) @ net.head.weight.detach().float()
    torch.testing.assert_close(signals["nac.penultimate"], signals["features.penultimate"] * slope, rtol=1e-4, atol=1e-6)


def test_a_layer_beside_the_way_to_the_logits_is_named() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.aside = tiny(), nn.Conv2d(3, 2, 3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            out: Tensor = self.net(x)
            return out

    reader = ClassifierEncoder(Aside(), spec=encoder(tiny()).input, layers=["aside", "net.two"])
    with pytest.raises(ConfigError, match="gives no gradients"):
        reader.ready(frozenset({"nac.aside"}))
    reader.ready(frozenset({"nac.net.two"}))
