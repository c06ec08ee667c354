"""The pictures of a training on the page."""

import torch

from offmap.report import card
from offmap.report.training import figure, loss, samples
from offmap.represent.train.samples import draw, sheet

TRAINING = {"trainer": "diffusion", "loss": [1.0, 0.5, 0.4], "held_out_loss": [1.0, 0.6, 0.5], "drawn_anomalies_auroc": [0.5, 0.7, 0.8]}


def test_the_loss_is_drawn_and_the_samples_are_shown() -> None:
    shown = str(figure({**TRAINING, "samples": sheet(torch.zeros(4, 1, 8, 8))}))
    assert shown.count("<polyline") == 2
    assert 'src="data:image/png;base64,' in shown
    (section,) = [s for s in card.sections({"training": {**TRAINING, "samples": sheet(torch.zeros(4, 1, 8, 8))}}) if s.figure]
    assert section.title == "Training of the network"
    text = card.text({"training": {**TRAINING, "samples": sheet(torch.zeros(4, 1, 8, 8))}})
    assert "0.5 0.7 0.8" in text
    assert "base64" not in text


def test_nothing_is_drawn_of_what_is_not_there_or_no_picture() -> None:
    assert loss({}) == loss({"loss": [1.0]}) == samples({}) == ""
    assert samples({"samples": 'data:image/png;base64,AAAA" onerror="x'}) == ""
    assert samples({"samples": "https://example.org/x.png"}) == ""


def test_a_sheet_of_colour_of_volumes_and_of_large_pictures() -> None:
    for shape in ((5, 3, 8, 8), (13, 1, 8, 8, 8), (2, 1, 200, 100)):
        assert sheet(torch.rand(shape)).startswith("data:image/png;base64,")


def test_samples_of_an_exact_denoiser_have_its_law() -> None:
    """Of images N(0.3, 0.2^2): D = m + v / (v + sigma^2) (x - m)."""

    def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.view(-1, 1, 1, 1).square()
        return 0.3 + 0.04 / (0.04 + level) * (x - 0.3)

    drawn = draw(exact, (1, 16, 16), count=12, seed=0, device=torch.device("cpu"))
    assert abs(float(drawn.mean()) - 0.3) < 0.02
    assert abs(float(drawn.std()) - 0.2) < 0.05
