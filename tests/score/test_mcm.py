"""Maximum concept matching against the softmax of the cosines written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mcm import MCM

Signals = dict[str, Tensor]


def draw(count: int, seed: int, width: int = 6) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(4, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    rows = texts[torch.arange(count) % 4] + 0.5 * torch.randn(count, width, generator=generator, dtype=torch.float64)
    return {"image_embedding": 7.0 * rows, "text.embedding": 3.0 * texts}


def naive(image: np.ndarray, texts: np.ndarray, temperature: float) -> float:
    cosines = [float(image @ t) / math.sqrt(float(image @ image) * float(t @ t)) for t in texts]
    powers = [math.exp(c / temperature) for c in cosines]
    return 1 - max(powers) / sum(powers)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_it_equals_the_formula(temperature: float) -> None:
    fitted, test = MCM(temperature=temperature).fit([draw(20, 1)]), draw(30, 2)
    expected = [naive(image, test["text.embedding"].numpy(), temperature) for image in test["image_embedding"].numpy()]
    np.testing.assert_allclose(fitted.score(test).numpy(), expected, rtol=1e-5)


def test_the_texts_are_kept_and_need_not_be_given_again() -> None:
    fitted, test = MCM().fit([draw(20, 1)]), draw(5, 2)
    torch.testing.assert_close(fitted.score({"image_embedding": test["image_embedding"]}), fitted.score(test))
    assert fitted.detector.needs == {"image_embedding"}
    assert fitted.detector.fit_needs == {"image_embedding", "text.embedding"}


def test_the_text_itself_is_the_most_usual_image_and_one_between_all_texts_the_oddest() -> None:
    texts = torch.eye(3, dtype=torch.float64)
    fitted = MCM(temperature=0.1).fit([{"image_embedding": texts, "text.embedding": texts}])
    scores = fitted.score({"image_embedding": torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])})
    np.testing.assert_allclose(scores.numpy(), [1 - 1 / (1 + 2 * math.exp(-10)), 0.5, 2 / 3], atol=1e-3)


def test_sure_matches_keep_their_order() -> None:
    texts = torch.eye(2, dtype=torch.float64)
    fitted = MCM(temperature=0.01).fit([{"image_embedding": texts, "text.embedding": texts}])
    sure, surer = fitted.score({"image_embedding": torch.tensor([[1.0, 0.1], [1.0, 0.0]])}).tolist()
    assert sure > surer > 0


def test_known_failure_texts_that_are_all_alike_say_nothing() -> None:
    test = draw(10, 2)
    same = {**test, "text.embedding": test["text.embedding"][:1].repeat(4, 1)}
    np.testing.assert_allclose(MCM().fit([same]).score(test).numpy(), 0.75, rtol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    good = draw(20, 1)
    with pytest.raises(SignalError, match=r"text\.embedding of shape \(4, 5\) must be .*\[6\]"):
        MCM().fit([{**good, "text.embedding": good["text.embedding"][:, :5]}])
    with pytest.raises(SignalError, match="two texts or more"):
        MCM().fit([{**good, "text.embedding": good["text.embedding"][:1]}])
    with pytest.raises(SignalError, match="not finite"):
        MCM().fit([{**good, "text.embedding": good["text.embedding"] * torch.nan}])
    with pytest.raises(SignalError, match="6, as when it was fitted"):
        MCM().fit([good]).score({"image_embedding": torch.ones(2, 5)})
    with pytest.raises(ConfigError, match=r"temperature = 0\.0"):
        MCM.from_params({"temperature": 0})
