"""Scores straight from measurements: no clean image is needed, the gate's own operator is inverted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.pipeline.gate import Gate
from offmap.report.row import Row
from offmap.report.table import Table
from offmap.represent.klip import FOREGROUND, RECONSTRUCTION, RESIDUAL, KlipEncoder, refuse_modality
from offmap.represent.operators.contract import Operator
from offmap.represent.operators.parse import parse

EXPLAINED = (0.25, 4.0)
"""Residual in deviations of the stated noise, outside of which a measurement is not assessed."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What measurements gave, in their order.

    Args:
        table: a row for each, as of images.
        reconstruction: ``(N, C, H, W)`` in [0, 1]; NaN where nothing was assessed.
        map: blocks ``(N, h, w)``, higher = odder; NaN where nothing was assessed; None where the gate has no map.
        residual: root mean square of what is left of the measurement, in deviations of the stated noise; NaN where not sampled.
        psnr: decibels against the reference, for a range of one; NaN without one.
    """

    table: Table
    reconstruction: Float32[np.ndarray, "n c h w"]
    map: Float32[np.ndarray, "n _h _w"] | None
    residual: Float32[np.ndarray, " n"]
    psnr: Float32[np.ndarray, " n"]


def score_measurements(
    gate: Gate,
    measurements: Float[np.ndarray, "_ *_m"] | Tensor,
    *,
    operator: Operator | str | None = None,
    reference: Float[np.ndarray, "_ _ _ _"] | None = None,
    explained: Sequence[float] = EXPLAINED,
) -> Measured:
    """Score measurements with a gate whose encoder is ``represent.klip``.

    A measurement that is not finite, that the reconstruction leaves unexplained (the noise level is another than stated, or operator and
    scale do not fit), or whose reconstruction is nothing but air, is ``not_assessed``.

    Args:
        measurements: ``(N, *M)`` or ``(N, C, *M)`` in the operator's units for images in [-1, 1].
        operator: as stated by the user; it must be the gate's.
        reference: clean images in [0, 1], for the peak signal-to-noise ratio.
        explained: least and largest residual in deviations of the noise.

    Raises:
        ConfigError: the gate's encoder is another, its operator is another, or the operator's modality is not the gate's.
        SignalError: shapes do not fit.
    """
    encoder = _encoder(gate, operator)
    y = _stacked(measurements, encoder)
    sound = torch.isfinite(y).flatten(1).all(dim=1)
    needs = gate.scorer.needs | gate.scorer.map_needs | {FOREGROUND, RESIDUAL, RECONSTRUCTION}
    signals = dict(encoder.measured(y[sound], needs)) if bool(sound.any()) else {}
    reasons, at = np.full(len(y), "non_finite", dtype=object), np.flatnonzero(sound.numpy())
    if len(at):
        pairs = zip(signals[RESIDUAL].cpu(), signals[FOREGROUND].cpu(), strict=True)
        reasons[at] = [_reason(residual, body, explained) for residual, body in pairs]
    fine = reasons == ""
    kept = torch.from_numpy(fine[at])
    good = {name: value[kept.to(value.device)] for name, value in signals.items()}
    shape = (len(y), encoder.input.channels, encoder.input.size, encoder.input.size)
    pictures = _placed(good[RECONSTRUCTION].cpu().numpy(), fine) if fine.any() else np.full(shape, np.nan, np.float32)
    drawn = gate.scorer.map(good) if fine.any() else None
    left = _placed(signals[RESIDUAL].cpu().numpy(), sound.numpy()) if len(at) else np.full(len(y), np.nan, np.float32)
    return Measured(
        Table.from_rows(_rows(gate, good, reasons)),
        pictures,
        None if drawn is None else _placed(drawn, fine),
        left,
        psnr(pictures, reference) if reference is not None else np.full(len(y), np.nan, np.float32),
    )


def psnr(images: Float[np.ndarray, "n *_s"], reference: Float[np.ndarray, "_ *_r"]) -> Float32[np.ndarray, " n"]:
    """Peak signal-to-noise ratio in decibels for a range of one: ``-10 log10 mean (x - reference)^2``.

    Raises:
        SignalError: shapes differ.
    """
    if images.shape != reference.shape:
        raise SignalError(f"the reference of shape {reference.shape} does not fit reconstructions of shape {images.shape}")
    error = np.square(images.astype(np.float64) - reference).reshape(len(images), -1).mean(axis=1)
    return np.asarray(-10 * np.log10(np.maximum(error, 1e-20)), dtype=np.float32)


def _encoder(gate: Gate, operator: Operator | str | None) -> KlipEncoder:
    encoder = gate.encoder
    if not isinstance(encoder, KlipEncoder):
        raise ConfigError(f"measurements need a gate that was fitted with a KLIP encoder; this one has {encoder.name}")
    given = parse(operator) if isinstance(operator, str) else operator
    refuse_modality(given or encoder.operator, gate.modalities)
    if given is not None and given != encoder.operator:
        raise ConfigError(f"the gate was fitted with {encoder.operator.text()}, {given.text()} was given: its scores would mean nothing")
    return encoder


def _stacked(measurements: Float[np.ndarray, "_ *_m"] | Tensor, encoder: KlipEncoder) -> Float[Tensor, "n c *m"]:
    """With a channel axis, and of the right shape; values may be not finite yet."""
    y = torch.as_tensor(measurements)
    if y.ndim == 1 + len(encoder.operator.measured((encoder.input.size,) * 2)):
        y = y[:, None]
    encoder.operator.check(torch.zeros_like(y, dtype=torch.float32), (encoder.input.size,) * 2)
    if len(y) == 0:
        raise SignalError("there is no measurement")
    return y.float()


def _reason(residual: Tensor, body: Tensor, explained: Sequence[float]) -> str:
    if not explained[0] <= float(residual) <= explained[1]:
        return "noise_level"
    return "" if bool((body > 0).any()) else "no_foreground"


def _rows(gate: Gate, signals: dict[str, Tensor], reasons: np.ndarray) -> list[Row]:
    degree = gate.scorer(signals) if (reasons == "").any() else None
    verdicts = [] if degree is None else gate.recipe.decide.verdicts(degree.p_value.numpy())
    rows, n = [], 0
    for i, reason in enumerate(reasons):
        name = f"measurement[{i}]"
        if reason or degree is None:
            rows.append(Row(item=name, status="not_assessed", reason=str(reason), verdict="not_assessed"))
            continue
        bits = float(degree.bits_extrapolated[n])
        rows.append(
            Row(
                item=name,
                score=float(degree.score[n]),
                p_value=float(degree.p_value[n]),
                surprise_bits=float(degree.surprise_bits[n]),
                bits_extrapolated=None if math.isnan(bits) else bits,
                verdict=verdicts[n],
                parts={part: float(values[n]) for part, values in degree.parts.items()},
            )
        )
        n += 1
    return rows


def _placed(values: Float[np.ndarray, "k *s"], at: Bool[np.ndarray, " n"]) -> Float32[np.ndarray, "n *s"]:
    """Rows where ``at`` is True, NaN elsewhere."""
    out = np.full((len(at), *values.shape[1:]), np.nan, dtype=np.float32)
    out[at] = values
    return out
