"""The pictures of a training on the page."""

import re

import torch

from offmap.report import card
from offmap.report.training import POINTS, curves, figure, pictures
from offmap.represent.train.samples import compared, draw, made_up, sheet

SHEET = made_up(torch.zeros(4, 1, 8, 8), "Drawn <b>by</b> the model.")
TRAINING = {
    "trainer": "diffusion",
    "kept_step": 400,
    "loss": [1.0, 0.5, 0.4],
    "held_out_loss": [1.0, 0.6, 0.5],
    "drawn_anomalies_auroc": [0.5, 0.7, 0.8],
    "checked_steps": [200, 400, 600],
    "sheets": [{"picture": SHEET.picture, "caption": SHEET.caption}],
}


def test_losses_and_criterion_are_drawn_and_the_pictures_are_shown() -> None:
    shown = str(figure(TRAINING))
    assert shown.count("<polyline") == 3
    assert shown.count(">kept</text>") == 2
    assert ">step 200</text>" in shown
    assert ">600</text>" in shown
    assert 'src="data:image/png;base64,' in shown
    assert "Drawn &lt;b&gt;by&lt;/b&gt; the model. They should look like the training images" in shown
    (section,) = [s for s in card.sections({"training": TRAINING}) if s.figure]
    assert section.title == "Training of the network"
    text = card.text({"training": TRAINING})
    assert "0.5 0.7 0.8" in text
    assert "base64" not in text
    assert "checked" not in text


def test_each_network_of_a_training_has_its_curves() -> None:
    codec = {"codec_loss": [3.0, 2.0], "codec_held_out_loss": [3.5, 2.5], "codec_checked_steps": [10, 20]}
    shown = str(curves({**TRAINING, **codec}))
    assert re.findall(r"<figcaption[^>]*>Loss of the (\w+)", shown) == ["network", "codec"]
    student = str(curves({"student_loss": [1.0, 0.5], "student_agreement": [-0.1, 0.9], "student_checked_steps": [5, 10]}))
    assert "Rank correlation of student and teacher" in student
    assert ">-0.1</text>" in student
    text = card.text({"training": {**TRAINING, **codec}})
    assert re.search(r"Loss on unseen images of the codec +3\.5 2\.5", text)


def test_a_second_network_has_a_section_of_its_own_without_its_pictures_as_text() -> None:
    found = {s.title: s for s in card.sections({"training": {"trainer": "vae", "loss": [2.0, 1.0], "second": TRAINING}})}
    assert found["Training of the second network"].figure.count("<img") == 1
    assert found["Training of the network"].figure.count("<img") == 0
    assert "base64" not in card.text({"training": {"second": TRAINING}})


def test_a_card_from_before_there_were_sheets_and_steps() -> None:
    old = {"loss": [1.0, 0.5, 0.4], "held_out_loss": [1.0, 0.6, 0.5], "samples": SHEET.picture}
    shown = str(figure(old))
    assert shown.count("<polyline") == 2
    assert shown.count("<img") == 1


def test_nothing_is_drawn_of_what_is_not_there_or_no_picture() -> None:
    assert curves({}) == curves({"loss": [1.0]}) == pictures({}) == curves({"loss": "text", "checked_steps": 3}) == ""
    for picture in ('data:image/png;base64,AAAA" onerror="x', "https://example.org/x.png", 3, None):
        assert pictures({"samples": picture, "sheets": [{"picture": picture}, "no sheet"]}) == ""


def test_a_sheet_of_colour_of_volumes_and_of_large_pictures() -> None:
    for shape in ((5, 3, 8, 8), (13, 1, 8, 8, 8), (2, 1, 200, 100)):
        assert sheet(torch.rand(shape)).startswith("data:image/png;base64,")
    found = compared([torch.rand(3, 1, 8, 8), torch.rand(3, 3, 8, 8)], "words")
    assert (found.caption, found.made_up) == ("words", False)


def test_samples_of_an_exact_denoiser_have_its_law() -> None:
    """Of images N(0.3, 0.2^2): D = m + v / (v + sigma^2) (x - m)."""

    def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.view(-1, 1, 1, 1).square()
        return 0.3 + 0.04 / (0.04 + level) * (x - 0.3)

    drawn = draw(exact, (1, 16, 16), count=12, seed=0, device=torch.device("cpu"))
    assert abs(float(drawn.mean()) - 0.3) < 0.02
    assert abs(float(drawn.std()) - 0.2) < 0.05


def test_a_long_course_is_thinned_and_keeps_both_ends() -> None:
    values = [float(i) for i in range(398)]
    shown = str(curves({"loss": values, "checked_steps": [10 * (i + 1) for i in range(398)], "kept_step": 3980}))
    (points,) = re.findall(r'points="([^"]+)"', shown)
    assert len(points.split()) == POINTS
    assert ">step 10</text>" in shown
    assert ">3,980</text>" in shown
    assert ">kept</text>" in shown
