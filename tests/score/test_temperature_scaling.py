"""Temperature scaling against scipy's minimiser, and labels that are no indices, say nothing, or are all right."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score.msp import MSP
from offmap.score.temperature_scaling import TemperatureScaling, best_temperature

Signals = dict[str, Tensor]


def drawn(count: int, sharpness: float, seed: int) -> Signals:
    """Labels drawn from the softmax, logits then made ``sharpness`` times too sure: T is ``sharpness``."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return {"logits": sharpness * logits, "label": labels}


def test_it_equals_scipy_and_finds_the_sharpness() -> None:
    data = drawn(4000, 3.0, 0)
    logits, labels = data["logits"].numpy(), data["label"].numpy()

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean())

    expected = np.exp(minimize_scalar(loss, bounds=(-1, 3), method="bounded", options={"xatol": 1e-9}).x)
    fitted = TemperatureScaling().fit([data])
    assert float(fitted.state["temperature"]) == pytest.approx(expected, rel=1e-5)
    assert float(fitted.state["temperature"]) == pytest.approx(3.0, rel=0.1)
    query = drawn(50, 3.0, 1)
    p = softmax(query["logits"].numpy() / expected, axis=1)
    np.testing.assert_allclose(fitted.score(query).numpy(), 1 - p.max(axis=1), rtol=1e-4, atol=1e-7)


def test_held_out_images_decide() -> None:
    data, held = drawn(400, 5.0, 0), drawn(400, 2.0, 1)
    both = TemperatureScaling().fit([data], held_out=[held])
    assert torch.equal(both.state["temperature"], TemperatureScaling().fit([held]).state["temperature"])


def test_labels_need_not_be_indices_of_the_logits() -> None:
    data = drawn(500, 2.0, 3)
    names = torch.tensor([70, -4, 9000, 12])
    odd = {**data, "label": names[data["label"]]}
    assert torch.equal(TemperatureScaling().fit([odd]).state["temperature"], TemperatureScaling().fit([data]).state["temperature"])


def test_where_every_image_is_right_the_temperature_stays_above_zero() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert float(best_temperature(logits, torch.tensor([0, 1]))) == 0.25


def test_labels_that_say_nothing_are_refused() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]], dtype=torch.float64).repeat(4, 1)
    labels = torch.tensor([0, 0, 1, 1] * 2)
    with pytest.raises(SignalError, match="labels say nothing"):
        TemperatureScaling().fit([{"logits": logits, "label": labels}])


def test_one_member_of_a_class_and_one_class_are_taken() -> None:
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 0] += 1
    one = TemperatureScaling().fit([{"logits": logits, "label": torch.full((30,), 8)}])
    assert 0.25 <= float(one.state["temperature"]) <= 100
    single = torch.full((30,), 8)
    single[3] = 9
    assert 0.25 <= float(TemperatureScaling().fit([{"logits": logits, "label": single}]).state["temperature"]) <= 100


def test_known_failure_with_two_classes_the_order_is_that_of_msp() -> None:
    data = drawn(200, 3.0, 5)
    two = {"logits": data["logits"][:, :2], "label": (data["logits"][:, 0] < data["logits"][:, 1] + 1).long()}
    scaled, plain = TemperatureScaling().fit([two]).score(two), MSP().fit([two]).score(two)
    assert torch.equal(scaled.argsort(stable=True), plain.argsort(stable=True))


def test_no_labels_and_one_logit_are_refused() -> None:
    with pytest.raises(SignalError, match="needs the signals label"):
        TemperatureScaling().fit([{"logits": torch.zeros(3, 2)}])
    with pytest.raises(SignalError, match="two logits or more"):
        TemperatureScaling().fit([{"logits": torch.zeros(3, 1), "label": torch.zeros(3, dtype=torch.int64)}])
