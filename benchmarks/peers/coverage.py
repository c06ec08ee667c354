"""Which peer has which method: writes ``docs/concepts/coverage.md``.

    python benchmarks/peers/coverage.py [--check]

offmap's column comes from its own list of methods. The others were read in November 2026: pytorch-ood 0.4.0 from the installed package
(``pytorch_ood.detector``), OpenMIBOOD from the table in ``openood/postprocessors/utils.py``, OpenOOD and oodeel from the names of the
files in ``openood/postprocessors`` and ``oodeel/methods``, over the revisions at hand. Names only: whether a method of one name is the
same as another's is said where it was compared.
"""

import argparse
import sys
from pathlib import Path

from offmap.core import registry
from offmap.core.detector import Detector

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "coverage.md"
PEERS = ("pytorch-ood 0.4.0", "OpenOOD", "OpenMIBOOD", "oodeel")

KNOWN: dict[str, tuple[str, str, str, str]] = {
    "adascale": ("", "adascale", "", ""),
    "ash_b": ("ASH", "ash", "ash", ""),
    "ash_p": ("ASH", "", "", ""),
    "ash_s": ("ASH", "", "", ""),
    "dice": ("DICE", "dice", "dice", ""),
    "energy": ("EnergyBased", "ebo", "ebo", "energy"),
    "entropy": ("Entropy", "", "", "entropy"),
    "fdbd": ("fDBD", "fdbd", "fdbd", ""),
    "gen": ("GEN", "gen", "gen", "gen"),
    "gmm": ("GMM", "gmm", "gmm", ""),
    "gradient_uncertainty": ("GradUncertainty", "", "", ""),
    "gradnorm": ("GradNorm", "gradnorm", "gradnorm", ""),
    "gram": ("Gram", "gram", "gram", "gram"),
    "kl_matching": ("KLMatching", "kl_matching", "klm", ""),
    "knn": ("KNN", "knn", "knn", "dknn"),
    "lts": ("LTS", "", "", ""),
    "mahalanobis": ("Mahalanobis", "mds", "mds", "mahalanobis"),
    "mahalanobis_odin": ("MahalanobisODIN", "", "", ""),
    "max_logit": ("MaxLogit", "maxlogit", "mls", "mls"),
    "mc_dropout": ("MCD", "dropout", "dropout", ""),
    "mcm": ("MCM", "mcm", "", ""),
    "mfs": ("", "", "mds_mfs, mdspp_mfs, knn_mfs", ""),
    "msp": ("MaxSoftmax", "base", "msp", "mls"),
    "multilayer_mahalanobis": ("MultiMahalanobis", "mds_ensemble", "mds_ensemble", ""),
    "nac": ("NACUE", "", "", ""),
    "nci": ("NCI", "nci", "nci", ""),
    "nnguide": ("NNGuide", "nnguide", "", ""),
    "odin": ("ODIN", "odin", "odin", "odin"),
    "openmax": ("OpenMax", "openmax", "openmax", ""),
    "patchcore": ("", "patchcore", "patchcore", ""),
    "pnml": ("PNML", "", "", ""),
    "rankfeat": ("RankFeat", "rankfeat", "rankfeat", ""),
    "react": ("ReAct", "react", "react", ""),
    "relation": ("", "relation", "relation", ""),
    "relative_mahalanobis": ("RMD", "rmds", "rmds", "rmds"),
    "residual": ("", "residual", "residual", "residual"),
    "scale": ("SCALE", "scale", "", ""),
    "she": ("SHE", "she", "she", "she"),
    "temperature_scaling": ("TemperatureScaling", "temp_scaling", "temperature_scaling", ""),
    "vim": ("ViM", "vim", "vim", "vim"),
    "vra": ("VRA", "vra", "", ""),
    "weighted_energy": ("WeightedEBO", "", "", ""),
}
"""For each method under offmap's name (or one of the same kind), what each peer calls it."""

NEEDS_TRAINING = (
    "OpenOOD and OpenMIBOOD also hold methods that need a network trained for them (cider, conf_branch, cutpaste, draem, dsvdd, "
    "godin, mcd, mos, npos, opengan, rd4ad, rotpred, rts, ssd, t2fnorm, ensembles); they are not post-hoc and not counted."
)


def page() -> str:
    """The whole page."""
    own = registry.load_all("score", Detector)
    rows = []
    for name in sorted({*own, *KNOWN}):
        cells = KNOWN.get(name, ("",) * len(PEERS))
        link = f"[{name}](../methods/{name}.md)" if name in own else ""
        rows.append(f"| {name} | {link or 'no'} | " + " | ".join(cell or "no" for cell in cells) + " |")
    counts = [len({cell for cells in KNOWN.values() for cell in cells[i].split(", ") if cell}) for i in range(len(PEERS))]
    counted = ", ".join(f"{peer} has {count}" for peer, count in zip(PEERS, counts, strict=True))
    return "\n".join(
        [
            "# Which library has which method",
            "",
            f"offmap has {len(own)} detectors. Of the methods in this table, {counted}.",
            "Counted are a library's own names; `no` means that no method of that kind was found. This page is written by",
            "`python benchmarks/peers/coverage.py`, which says where the names were read; do not edit it.",
            "",
            "| method | offmap | " + " | ".join(PEERS) + " |",
            "|---|---|" + "---|" * len(PEERS),
            *rows,
            "",
            NEEDS_TRAINING,
            "",
            "`mahalanobis` of pytorch-ood, and `multilayer_mahalanobis` of all, is another estimator under the same idea; what differs and",
            "how far the numbers agree is in [benchmarks](../benchmarks.md). The multi-layer method of the peers sums over layers, or",
            "weighs them with out-of-distribution images; offmap's uses in-distribution images only.",
            "",
        ]
    )


def main() -> None:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page differs")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.name} is out of date: run python benchmarks/peers/coverage.py")


if __name__ == "__main__":
    main()
