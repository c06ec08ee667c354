"""Scores straight from measurements: no clean image is needed, the gate's own operator is inverted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.pipeline.gate import Gate
from offmap.pipeline.stream import chosen
from offmap.report.row import Row
from offmap.report.table import Table
from offmap.represent.klip import FOREGROUND, RECONSTRUCTION, RESIDUAL, TOGETHER, KlipEncoder, refuse_modality
from offmap.represent.klip_prior import Klip
from offmap.represent.layers import joined
from offmap.represent.operators.contract import Operator
from offmap.represent.operators.parse import parse, says

EXPLAINED = (0.25, 4.0)
"""Residual in deviations of the stated noise, outside of which a measurement is not assessed, where the gate remembers none."""


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
    explained: Sequence[float] | None = None,
) -> Measured:
    """Score measurements with a gate whose encoder is ``represent.klip``.

    A measurement that is not finite, that the reconstruction leaves unexplained (the noise level is another than stated, or operator and
    scale do not fit), or whose reconstruction is nothing but air, is ``not_assessed``.

    Args:
        measurements: ``(N, *M)`` or ``(N, C, *M)`` in the operator's units for images in [-1, 1].
        operator: as stated by the user; it must be the gate's. Of a text only the keys that it names are compared.
        reference: clean images in [0, 1], for the peak signal-to-noise ratio.
        explained: least and largest residual in deviations of the noise; by those of the gate's in-distribution images if not given.

    Raises:
        ConfigError: the gate's encoder is another, its operator is another, or the operator's modality is not the gate's.
        SignalError: shapes do not fit.
    """
    encoder = klip_encoder(gate, operator)
    bounds = explained_by(gate) if explained is None else explained
    y = _stacked(measurements, encoder)
    if reference is not None and reference.shape != (len(y), encoder.input.channels, *(encoder.input.size,) * 2):
        raise SignalError(f"the reference of shape {reference.shape} does not fit reconstructions of {len(y)} measurements")
    parts = []
    for i in range(0, len(y), TOGETHER):
        some = y[i : i + TOGETHER]
        clean = None if reference is None else reference[i : i + TOGETHER]
        names = [f"measurement[{i + n}]" for n in range(len(some))]
        parts.append(assess(gate, encoder, some, names, reference=clean, explained=bounds))
    drawn = [part.map for part in parts if part.map is not None]
    return Measured(
        Table.from_rows([row for part in parts for row in part.rows]),
        np.concatenate([part.reconstruction for part in parts]),
        np.concatenate(drawn) if len(drawn) == len(parts) else None,
        *(np.array([getattr(row, name) for part in parts for row in part.rows], dtype=np.float32) for name in ("residual", "psnr")),
    )


@dataclass(frozen=True, eq=False)
class Assessed:
    """What a few measurements gave, in their order; arrays as of ``Measured``.

    Args:
        map: None where the gate draws none.
    """

    rows: Sequence[Row]
    reconstruction: Float32[np.ndarray, "n c h w"]
    map: Float32[np.ndarray, "n _h _w"] | None


def assess(
    gate: Gate,
    encoder: KlipEncoder,
    y: Float[Tensor, "n c *m"],
    names: Sequence[str],
    *,
    reference: Float[np.ndarray, "n c h w"] | None = None,
    explained: Sequence[float],
) -> Assessed:
    """Score measurements that have the shape of the operator's; they are sampled together.

    Args:
        names: of the rows.
        reference, explained: as of ``score_measurements``.
    """
    sound = torch.isfinite(y).flatten(1).all(dim=1).numpy()
    reasons = np.where(sound, "", "non_finite").astype(object)
    needs = gate.scorer.needs | gate.scorer.map_needs | {FOREGROUND, RESIDUAL, RECONSTRUCTION}
    sampled, signals = _sampled(encoder, y, np.flatnonzero(sound), needs)
    reasons[np.setdiff1d(np.flatnonzero(sound), sampled)] = "diverged"
    size, blocks = (encoder.input.size,) * 2, encoder.blank(1)[FOREGROUND].shape[1:]
    pictures = np.full((len(y), encoder.input.channels, *size), np.nan, np.float32)
    left = np.full(len(y), np.nan)
    if len(sampled):
        left[sampled] = signals[RESIDUAL].cpu().numpy()
        pairs = zip(signals[RESIDUAL].cpu(), signals[FOREGROUND].cpu(), strict=True)
        reasons[sampled] = [_reason(residual, body, explained) for residual, body in pairs]
    fine = reasons == ""
    good = chosen(signals, np.flatnonzero(fine[sampled]).tolist())
    drawn = np.full((len(y), *blocks), np.nan, np.float32) if gate.scorer.maps else None
    if fine.any():
        pictures[fine] = good[RECONSTRUCTION].cpu().numpy()
        found = gate.scorer.map(good)
        if found is not None:
            drawn = np.full((len(y), *found.shape[1:]), np.nan, np.float32)
            drawn[fine] = found
    likeness = np.full(len(y), np.nan) if reference is None else psnr(pictures, reference)
    return Assessed(_rows(gate, good, reasons, names, left, likeness), pictures, drawn)


def _sampled(
    encoder: KlipEncoder, y: Float[Tensor, "n c *m"], rows: np.ndarray, needs: frozenset[str]
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Signals of those rows whose samples do not run away; one that does costs the others of its batch a second pass."""
    if len(rows) == 0:
        return rows, {}
    try:
        return rows, dict(encoder.measured(y[rows], needs))
    except SignalError:
        if len(rows) == 1:
            return rows[:0], {}
    each = [(row, _sampled(encoder, y, np.array([row]), needs)[1]) for row in rows]
    kept = [(row, signals) for row, signals in each if signals]
    return np.array([row for row, _ in kept], dtype=rows.dtype), joined([signals for _, signals in kept]) if kept else {}


def psnr(images: Float[np.ndarray, "n *_s"], reference: Float[np.ndarray, "_ *_r"]) -> Float32[np.ndarray, " n"]:
    """Peak signal-to-noise ratio in decibels for a range of one: ``-10 log10 mean (x - reference)^2``.

    Raises:
        SignalError: shapes differ.
    """
    if images.shape != reference.shape:
        raise SignalError(f"the reference of shape {reference.shape} does not fit reconstructions of shape {images.shape}")
    error = np.square(images.astype(np.float64) - reference).reshape(len(images), -1).mean(axis=1)
    return np.asarray(-10 * np.log10(np.maximum(error, 1e-20)), dtype=np.float32)


def explained_by(gate: Gate) -> tuple[float, float]:
    """Least and largest residual of a measurement that is assessed, in deviations of the noise."""
    seen = gate.facts.get("residual")
    if not seen:
        return EXPLAINED
    low, high = (gate.recipe.klip or Klip()).explained
    return low * seen[0], high * seen[1]


def klip_encoder(gate: Gate, operator: Operator | str | None) -> KlipEncoder:
    """The gate's encoder, which is one of KLIP and has the operator that the user states; a text need not say all of it.

    Raises:
        ConfigError: another encoder, operator or modality.
    """
    encoder = gate.encoder
    if not isinstance(encoder, KlipEncoder):
        raise ConfigError(f"measurements need a gate that was fitted with a KLIP encoder (--recipe klip); this one has {encoder.name}")
    given = parse(operator) if isinstance(operator, str) else operator
    refuse_modality(given or encoder.operator, gate.modalities)
    same = given is None or (says(operator, encoder.operator) if isinstance(operator, str) else given == encoder.operator)
    if given is not None and not same:
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


def _rows(
    gate: Gate, signals: Mapping[str, Tensor], reasons: np.ndarray, names: Sequence[str], left: np.ndarray, likeness: np.ndarray
) -> list[Row]:
    degree = gate.scorer(signals) if (reasons == "").any() else None
    verdicts = [] if degree is None else gate.recipe.decide.verdicts(degree.p_value.numpy())
    rows, n = [], 0
    for name, reason, residual, decibels in zip(names, reasons, left.tolist(), likeness.tolist(), strict=True):
        off, like = _number(residual), _number(decibels)
        if reason or degree is None:
            rows.append(Row(item=name, status="not_assessed", reason=str(reason), verdict="not_assessed", residual=off, psnr=like))
            continue
        rows.append(
            Row(
                item=name,
                score=float(degree.score[n]),
                p_value=float(degree.p_value[n]),
                surprise_bits=float(degree.surprise_bits[n]),
                bits_extrapolated=_number(float(degree.bits_extrapolated[n])),
                verdict=verdicts[n],
                parts={part: float(values[n]) for part, values in degree.parts.items()},
                residual=off,
                psnr=like,
            )
        )
        n += 1
    return rows


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
