"""MaxLogit against numpy, and what it does not survive."""

import numpy as np
import torch
from torch import Tensor

from offmap.score.max_logit import MaxLogit

Signals = dict[str, Tensor]


def test_it_is_the_largest_logit_with_its_sign_turned(batches: list[Signals], unseen: Signals) -> None:
    np.testing.assert_allclose(MaxLogit().fit(batches).score(unseen).numpy(), -unseen["logits"].numpy().max(axis=1), rtol=1e-6)


def test_one_logit_works() -> None:
    assert MaxLogit().fit([{"logits": torch.zeros(3, 1)}]).score({"logits": torch.tensor([[2.0]])}).tolist() == [-2.0]


def test_known_failure_a_constant_added_to_all_logits_changes_the_score(batches: list[Signals], unseen: Signals) -> None:
    fitted = MaxLogit().fit(batches)
    moved = fitted.score({"logits": unseen["logits"] + 5})
    torch.testing.assert_close(moved, fitted.score(unseen) - 5)
