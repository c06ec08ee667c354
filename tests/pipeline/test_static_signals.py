"""Signals without a batch axis come with every batch, also where the cache answers for all of its images."""

from pathlib import Path

import torch
from torch import nn

import offmap


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8, 3)).eval()


def test_a_second_fit_from_the_cache_gives_the_same_gate(discs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "vim.toml"
    recipe.write_text('[prepare.window]\n[prepare.crop]\n[prepare.resize]\nsize = "encoder"\n[score.vim]\n')
    first, second = (offmap.fit(discs, recipe=str(recipe), encoder=network(), jobs=0) for _ in range(2))
    assert first.score(discs, jobs=0).rows == second.score(discs, jobs=0).rows
