"""Magnetic resonance imaging with a part of the lines of k-space."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.operators.contract import Operator, Size, seeded


@dataclass(frozen=True, kw_only=True)
class MRI(Operator):
    """Cartesian undersampling of a real image: ``y = M F (S_c x)``, F the unitary Fourier transform, M whole columns of k-space.

    The measurement is ``(N, C, coils, 2, H, L)``: real and imaginary part of the L measured columns of each coil. Images are real
    (magnitude, or the real part of a phase-corrected image), so the adjoint takes the real part. A block of columns about the middle
    is always measured; the others are drawn with the seed, in all ``W / acceleration``. The sensitivities of several coils are smooth,
    complex, of unit sum of squares, and made by formula: scanners' own maps are not read.

    Args:
        noise: deviation of the noise, of real and imaginary part each.
        acceleration: width of the image over the number of measured columns.
        centre: share of all columns that are measured about the middle.
        coils: number of receivers; 1 has sensitivity 1.
        seed: of the columns outside the middle.
    """

    acceleration: float = 4.0
    centre: float = 0.09
    coils: int = 1
    seed: int = 0

    modality: ClassVar[str] = "MR"
    reference: ClassVar[str] = "Shoushtari et al., 2025, arXiv 2505.11482 (acceleration 4, 30 of 320 lines about the middle)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.acceleration >= 1 or not 0 <= self.centre <= 1 or self.coils < 1 or self.seed < 0:
            raise ConfigError(
                f"mri: acceleration = {self.acceleration} must be at least 1, centre = {self.centre} in [0, 1], "
                f"coils = {self.coils} at least 1, seed = {self.seed} at least 0"
            )

    def measured(self, size: Size) -> Size:
        return (self.coils, 2, size[0], len(_columns(self, size[1])))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c k 2 h l"]:
        size = (int(x.shape[2]), int(x.shape[3]))
        spectrum = torch.fft.fft2(x[:, :, None] * self._maps(x, size), norm="ortho")
        kept = spectrum[..., _columns(self, size[1]).to(x.device)]
        return torch.stack([kept.real, kept.imag], dim=3)

    def adjoint(self, y: Float[Tensor, "n c k 2 h l"], size: Size) -> Float[Tensor, "n c h w"]:
        full = y.new_zeros(*y.shape[:3], *size, dtype=y.dtype.to_complex())
        full[..., _columns(self, size[1]).to(y.device)] = torch.complex(y[:, :, :, 0], y[:, :, :, 1])
        images = torch.fft.ifft2(full, norm="ortho")
        found: Tensor = (images * self._maps(y, size).conj()).real.sum(dim=2)
        return found

    def pull(self, residual: Float[Tensor, "n c k 2 h l"], variance: Float[Tensor, " n"], size: Size) -> Float[Tensor, "n c h w"]:
        if self.coils > 1:
            return super().pull(residual, variance, size)
        back = self.adjoint(residual, size)
        share = self._shares(size, back)
        weight = 1 / (variance.view(-1, 1, 1, 1) * share + self.noise**2)
        found: Tensor = torch.fft.ifft2(torch.fft.fft2(back) * weight).real
        return found

    def hint(self, given: Size) -> str:
        if len(given) == 4 and given[0] != self.coils:
            return f"; it has {given[0]} coils: is it mri:coils={given[0]}?"
        return f"; it has {given[-1]} columns of k-space" if len(given) == 4 else ""

    def _shares(self, size: Size, like: Tensor) -> Float[Tensor, " w"]:
        """``A^T A`` of a real image in k-space: a frequency and its negative are one, so half where only one of them is measured."""
        mask = torch.zeros(size[1], dtype=like.dtype, device=like.device)
        mask[_columns(self, size[1]).to(like.device)] = 1.0
        return (mask + mask.flip(0).roll(1)) / 2

    def _maps(self, x: Tensor, size: Size) -> Complex[Tensor, "k h w"]:
        return _sensitivities(self, tuple(size), x.dtype.to_complex(), str(x.device))


@lru_cache(maxsize=32)
def _columns(operator: MRI, width: int) -> Int64[Tensor, " l"]:
    """Measured columns, in the order of the Fourier transform."""
    count = max(1, round(width / operator.acceleration))
    middle = min(count, round(operator.centre * width))
    order = torch.argsort((torch.fft.fftfreq(width) * width).abs(), stable=True)
    rest = order[middle:]
    drawn = rest[torch.argsort(seeded((len(rest),), operator.seed))][: count - middle]
    return torch.cat([order[:middle], drawn]).sort().values


@lru_cache(maxsize=8)
def _sensitivities(operator: MRI, size: Size, dtype: torch.dtype, device: str) -> Complex[Tensor, "k h w"]:
    """Gaussians about places on a circle around the image, with a linear phase each; sum of squares one everywhere."""
    if operator.coils == 1:
        return torch.ones(1, *size, dtype=dtype, device=device)
    rows, columns = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in size)
    up, right = torch.meshgrid(rows, columns, indexing="ij")
    maps = []
    for coil in range(operator.coils):
        angle = 2 * math.pi * coil / operator.coils
        far = (right - 1.2 * math.cos(angle)).square() + (up - 1.2 * math.sin(angle)).square()
        phase = angle + math.cos(angle) * right + math.sin(angle) * up
        maps.append(torch.polar(torch.exp(-far / 2), phase))
    stacked = torch.stack(maps)
    return (stacked / stacked.abs().square().sum(dim=0).sqrt()).to(dtype=dtype, device=device)
