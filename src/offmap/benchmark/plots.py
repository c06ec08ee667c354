"""ROC curves and scores of a benchmark as SVG drawings (matplotlib, extra ``[benchmark]``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from offmap.benchmark.plan import BASELINE
from offmap.benchmark.run import Bench
from offmap.report.comparison import Plot

METHODS = 5
"""Methods whose ROC curves are drawn, beside the baseline."""

PANELS = 6
"""Sets that are drawn for each in-distribution set, the nearest first."""

ORDER = ("near", "covariate", "far", "corruption")


def draw(bench: Bench, methods: Sequence[str], folder: Path) -> list[Plot]:
    """Two drawings for each in-distribution set; none where matplotlib is not installed.

    Args:
        methods: best first.
        folder: for the files ``roc_<set>.svg`` and ``scores_<set>.svg``.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        bench.notes.append("No plots were drawn: they need matplotlib, pip install 'offmap[benchmark]'.")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    shown = [*methods[:METHODS], *([BASELINE] if BASELINE in methods[METHODS:] else [])]
    out = []
    for own in bench.own:
        others = sorted(bench.setup.others(own).items(), key=lambda pair: ORDER.index(pair[1]))
        ran = [name for name in shown if bench.trials[own, bench.setup.seeds[0], name].status == "ok"]
        names = [name for name, _ in others if ran and name in bench.trials[own, bench.setup.seeds[0], ran[0]].scores]
        if names:
            out.append(_roc(bench, own, names[:PANELS], ran, folder / f"roc_{own}.svg"))
            out.append(_scores(bench, own, names, ran[0], folder / f"scores_{own}.svg"))
    return out


def curve(own: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """False and true positive rate at each threshold, from (0, 0) to (1, 1); OOD is positive, equal scores are one step."""
    levels = np.unique(np.concatenate([own, other]))[::-1]
    flagged = np.searchsorted(np.sort(-own), -levels, side="right") / len(own)
    caught = np.searchsorted(np.sort(-other), -levels, side="right") / len(other)
    return np.concatenate([[0.0], flagged]), np.concatenate([[0.0], caught])


def _test(bench: Bench, own: str, seed: int, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    found: np.ndarray = scores[bench.sets[own].rows(bench.divisions[own, seed].test)]
    return found


def _scored(bench: Bench, own: str, seed: int, other: str, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Scores of another set; of corrupted images those of this division's test part."""
    found: np.ndarray = scores
    if bench.setup.suite.corruption(other) is not None:
        found = scores[np.isin(bench.sets[other].at, bench.divisions[own, seed].test)]
    return found


def _roc(bench: Bench, own: str, others: Sequence[str], methods: Sequence[str], path: Path) -> Plot:
    seed = bench.setup.seeds[0]
    columns = min(3, len(others))
    lines = -(-len(others) // columns)
    figure, panels = _figure(columns, lines, (3.4 * columns, 3.1 * lines + 0.6))
    for panel, other in zip(panels, others, strict=False):
        for i, method in enumerate(methods):
            scores = bench.trials[own, seed, method].scores
            flagged, caught = curve(_test(bench, own, seed, scores[own]), _scored(bench, own, seed, other, scores[other]))
            panel.plot(flagged, caught, lw=1.6, color=f"C{i}", ls="--" if method == BASELINE else "-", label=method)
        panel.plot([0, 1], [0, 1], color="0.7", lw=0.8)
        panel.set(title=other, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="in-distribution flagged", ylabel="OOD caught")
    for panel in panels[len(others) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06 + 0.22 / (3.1 * lines + 0.6), 1, 1))
    return _save(figure, path, f"ROC curves, in-distribution set {own}, seed {seed}")


def _scores(bench: Bench, own: str, others: Sequence[str], method: str, path: Path) -> Plot:
    seed = bench.setup.seeds[0]
    scores = bench.trials[own, seed, method].scores
    usual = _test(bench, own, seed, scores[own])
    middle, spread = float(np.median(usual)), max(float(np.quantile(usual, 0.75) - np.quantile(usual, 0.25)), 1e-12)
    names, values = [f"{own} (test)", *others], [usual, *(_scored(bench, own, seed, other, scores[other]) for other in others)]
    figure, (panel,) = _figure(1, 1, (8.0, 0.34 * len(names) + 1.1))
    boxes = panel.boxplot(
        [(v - middle) / spread for v in values], orientation="horizontal", showfliers=False, widths=0.6, patch_artist=True
    )
    for i, box in enumerate(boxes["boxes"]):
        box.set(facecolor="C2" if i == 0 else "C0", alpha=0.5)
    panel.set_yticks(range(1, len(names) + 1), names)
    panel.invert_yaxis()
    panel.set_xscale("symlog", linthresh=5)
    panel.set_xlabel(f"score of {method}, in quartile ranges above the median of in-distribution test images")
    figure.tight_layout()
    return _save(figure, path, f"Scores of {method}, in-distribution set {own}, seed {seed}")


def _figure(columns: int, lines: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(panels.flat)


def _save(figure: Any, path: Path, title: str) -> Plot:
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "offmap"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return Plot(title, path)
