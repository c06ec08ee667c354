"""Puts the tables of ``benchmarks/results`` together into ``docs/benchmarks.md``.

python benchmarks/report.py
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import markdown, read_csv

HERE = Path(__file__).parent
RESULTS = HERE / "results"
Line = dict[str, str]
BOTH = "half_jpeg85"
DEFAULT = "multilayer_mahalanobis"
FORM = "conditional, scaled by layer, mean, without the shallowest"
"""The default in the ablation."""
FAMILIES = ("vae", "vae-regret", "autoencoder", "autoencoder_u", "vq_vae", "dae", "gan", "diffusion", "latent_diffusion")
SYNTHETIC = ("fpi", "pii", "nsa", "many", "cutpaste")
TWO_SETS = ("brain_no_tumour", "kermany_normal")


@dataclass(frozen=True)
class Goal:
    """A number that was asked for."""

    what: str
    asked: str
    measured: str
    reached: bool | None

    def row(self) -> dict[str, object]:
        """A line of the table."""
        return {
            "number": self.what,
            "asked": self.asked,
            "measured": self.measured,
            "reached": {True: "yes", False: "**no**", None: "not measured"}[self.reached],
        }


def missing(what: str, asked: str) -> Goal:
    """A number whose table was not made."""
    return Goal(what, asked, "", None)


def line_of(name: str, method: str) -> Line | None:
    """The line of one method in the summary of a suite."""
    return next((r for r in read_csv(RESULTS / f"suite_{name}.csv") if r["method"] == method), None)


def accuracy(name: str, words: str, near: float, extra: bool) -> list[Goal]:
    """Near, far and worst of one encoder, and the near mean of the recipe ``fine``."""
    asked = [(f"near, {words}", "near", near)] + (
        [("far, built-in encoder", "far", 0.998), ("worst far pair, built-in encoder", "far_worst", 0.96)] if extra else []
    )
    row = line_of(f"near_far_v1_{name}", DEFAULT)
    row = row or next((r for r in read_csv(RESULTS / f"multilayer_{name}.csv") if r["form"] == FORM), None)
    if row is None:
        return [missing(what, f">= {bound:g}") for what, _, bound in asked]
    goals = []
    for what, key, bound in asked:
        interval = f" [{row[f'{key}_lo']}, {row[f'{key}_hi']}]" if f"{key}_lo" in row else f" ({row['far_worst_pair']})"
        goals.append(Goal(what, f">= {bound:g}", row[key] + interval, float(row[key]) >= bound))
    fine = line_of(f"near_far_v1_{name}_fine", "fine")
    if fine is not None:
        value = f"{fine['near']} [{fine['near_lo']}, {fine['near_hi']}]"
        goals.append(Goal(f"near, {words}, recipe `fine` (file form not levelled)", f">= {near:g}", value, float(fine["near"]) >= near))
    return goals


def against(name: str, words: str) -> list[Goal]:
    """The default against every single detector, and against other libraries on the same features."""
    own = line_of(f"near_far_v1_{name}", DEFAULT)
    others = [r for r in read_csv(RESULTS / f"suite_near_far_v1_{name}.csv") if r["method"] != DEFAULT and r["near"]]
    what = f"near of the default less that of the best other detector without labels, {words}"
    if own is None or not others:
        return [missing(what, ">= -0.005")]
    best = max(others, key=lambda r: float(r["near"]))
    gap = float(own["near"]) - float(best["near"])
    above = [r["method"] for r in others if float(own["near"]) < float(r["near"]) - 0.005]
    tail = f"; more than 0.005 above the default: {', '.join(above)}" if above else ""
    goals = [Goal(what, ">= -0.005", f"{gap:+.4f} ({best['method']}, {float(best['near']):.4f}){tail}", gap >= -0.005)]
    peers = [r for r in read_csv(RESULTS / "peers_near_far.csv") if not r["method"].startswith("offmap ")]
    what = f"near of the default less that of the best detector of pytorch-ood or scikit-learn on the same features, {words}"
    if name != "builtin" or not peers:
        return goals if name != "builtin" else [*goals, missing(what, ">= 0")]
    best = max(peers, key=lambda r: float(r["near"]))
    gap = float(own["near"]) - float(best["near"])
    return [*goals, Goal(what, ">= 0", f"{gap:+.4f} ({best['method']}, {float(best['near']):.4f})", gap >= 0)]


def coverage() -> list[Goal]:
    """How many detectors there are."""
    from offmap.core import registry

    count = len(registry.names("score"))
    return [Goal("detectors (pytorch-ood 0.4.0: 35)", "> 50", f"{count}", count > 50)]


def fused() -> list[Goal]:
    """What the fusions of a variational autoencoder gain over its bound alone."""
    rows, goals = read_csv(RESULTS / "generative-vae.csv"), list[Goal]()
    for method, words in (("generative_fusion", "generative_fusion"), ("fusion", "recipe `vae`")):
        gains: dict[tuple[str, str, str], float] = {}
        for key in dict.fromkeys((row["id_set"], row["other_set"], row["kind"]) for row in rows):
            pair = [row for row in rows if (row["id_set"], row["other_set"], row["kind"]) == key]
            own, bound = ([float(row["auroc"]) for row in pair if row["method"] == name] for name in (method, "elbo"))
            gains[key] = statistics.fmean(own) - statistics.fmean(bound)
        what = (f"{words} less the plain bound of a VAE, near mean", f"{words}: pairs on which it is more than 0.01 below the bound")
        if not gains:
            goals += [missing(what[0], ">= 0.05"), missing(what[1], "0")]
            continue
        near = statistics.fmean(value for (_, _, kind), value in gains.items() if kind == "near")
        worst, below = min(gains, key=lambda key: gains[key]), sum(value < -0.01 for value in gains.values())
        goals.append(Goal(what[0], ">= 0.05", f"{near:+.4f}", near >= 0.05))
        goals.append(Goal(what[1], "0", f"{below} of {len(gains)} ({worst[0]} / {worst[1]}, {gains[worst]:+.4f})", below == 0))
    return goals


def alarms() -> list[Goal]:
    """False alarms: the mean share of each cell, and divisions inside their band."""
    rows = [r for r in read_csv(RESULTS / "false_alarms.csv") if r["status"] == "ok"]
    what = ("cells whose mean share flagged is <= 5 % + 2 standard errors", "divisions of split gates inside their 99 % band")
    if not rows:
        return [missing(what[0], "all"), missing(what[1], ">= 97 %")]
    goals = []
    for form, words in (("random_form", "unseen images in a random form, as in calibration"), ("as_it_is", "unseen images as they are")):
        good = [float(r[f"share.{form}"]) <= 0.05 + 2 * float(r[f"se.{form}"]) for r in rows]
        inside = [float(r[f"inside.{form}"]) for r in rows if r["calibration"] == "split"]
        mean = sum(inside) / len(inside)
        goals.append(Goal(f"{what[0]}; {words}", "all", f"{sum(good)} of {len(good)}", all(good)))
        goals.append(Goal(f"{what[1]}; {words}", ">= 97 %", f"{mean:.1%}", mean >= 0.97))
    return goals


def forms(name: str, words: str) -> list[Goal]:
    """Verdicts kept, and the trace that a form leaves in the score, for each gate whose accuracy the table names."""
    every = [r for r in read_csv(RESULTS / f"file_forms_{name}.csv") if r["gate"] == "recipe"]
    goals = []
    for means, recipe in (("yes", ""), ("no", ", recipe `fine`")):
        what = (
            f"verdict kept, least of all sets and forms, {words}{recipe}",
            f"AUROC between two forms, farthest from 0.5, {words}{recipe}",
        )
        rows = [r for r in every if r["random_form"] == r["low_pass"] == means]
        for both, more in ((False, ""), (True, "; half size and JPEG 85 at once (not asked)")) if rows else ():
            kept, between = ({k: v for k, v in cells(rows, tag).items() if (k[1] == BOTH) == both} for tag in ("kept.", "auroc."))
            least, far = min(kept, key=lambda k: kept[k]), max(between, key=lambda k: abs(between[k] - 0.5))
            goals.append(Goal(what[0] + more, ">= 90 %", f"{kept[least]:.1%} ({'/'.join(least)})", kept[least] >= 0.9))
            goals.append(Goal(what[1] + more, "0.40 to 0.60", f"{between[far]:.3f} ({'/'.join(far)})", abs(between[far] - 0.5) <= 0.1))
        if not rows:
            goals += [missing(what[0], ">= 90 %"), missing(what[1], "0.40 to 0.60")]
    return goals


def cells(rows: Sequence[Line], tag: str) -> dict[tuple[str, str], float]:
    """Values by set and form."""
    return {(r["set"], k.removeprefix(tag)): float(v) for r in rows for k, v in r.items() if k.startswith(tag)}


def speed() -> list[Goal]:
    """Rates, start and memory."""
    rates, start, memory = (read_csv(RESULTS / f"speed_{tag}.csv") for tag in ("rates", "start", "memory"))
    asked = {
        "score : loop": ("`offmap score` against a hand-written loop", 0.9),
        "score : forward": ("`offmap score` against the bare network", 0.7),
    }
    goals = [
        Goal(f"{words}, {row['input']}", f">= {bound:g}", row[key], float(row[key]) >= bound)
        for key, (words, bound) in asked.items()
        for row in rates
        if row["input"].startswith("JPEG")
    ]
    goals = goals or [missing(words, f">= {bound:g}") for words, bound in asked.values()]
    if start:
        value = float(start[0]["cold start of one image, s"])
        goals.append(Goal("one image, cold start", "< 4 s", f"{value:.2f} s", value < 4))
    if len(memory) == 2:
        few, many = (float(r["peak PSS, MB"]) for r in memory)
        flat = many < 1500 and many <= 1.1 * few
        goals.append(Goal("memory of all processes (PSS), 1,000 and 20,000 images", "< 1.5 GB, flat", f"{few:.0f} and {many:.0f} MB", flat))
    return (
        goals if start else [*goals, missing("one image, cold start", "< 4 s"), missing("memory of all processes (PSS)", "< 1.5 GB, flat")]
    )


def peers() -> list[Goal]:
    """Against pytorch-ood."""
    rates, few = read_csv(RESULTS / "peer_mahalanobis.csv"), read_csv(RESULTS / "peer_mahalanobis_few.csv")
    what = (
        "Mahalanobis, 1,000 classes x 2,048 features: times faster than pytorch-ood 0.4.0",
        "largest relative difference from float64",
        "848 images, 2,048 features: rank correlation with float64",
    )
    most = next((r for r in rates if r["classes"] == "1000"), None)
    if most is None or not few:
        return [missing(w, a) for w, a in zip(what, (">= 100", "<= 1e-5", ">= 0.999, no negative distance"), strict=True)]
    error = most["largest relative error of offmap"]
    ranks, negative = ([r[name] for r in few] for name in ("rank correlation with float64", "negative distances"))
    good = float(ranks[0]) >= 0.999 and negative[0].startswith("0 ")
    return [
        Goal(
            what[0],
            ">= 100",
            f"{float(most['ratio']):.0f} ({float(most['offmap_s']):.2f} s against {float(most['pytorch_ood_s']):.1f} s)",
            float(most["ratio"]) >= 100,
        ),
        Goal(what[1], "<= 1e-5", error, float(error) <= 1e-5),
        Goal(
            what[2],
            ">= 0.999, no negative distance",
            f"{ranks[0]}, {negative[0]} negative (pytorch-ood: {ranks[1]}, {negative[1]})",
            good,
        ),
    ]


def every_peer() -> list[Goal]:
    """Speed of all methods that a peer has, too."""
    rows = read_csv(RESULTS / "peers.csv")
    what = "methods in pytorch-ood and scikit-learn: least ratio of score times (processor seconds of all threads)"
    if not rows:
        return [missing(what, ">= 0.9, 20 methods or more")]
    ratios = sorted((float(r["score ratio, processor"]), f"{r['method']} / {r['peer']}") for r in rows)
    slow = [f"{name} {ratio:.2f}" for ratio, name in ratios if ratio < 0.9]
    measured = f"{len(ratios)} comparisons; below: {', '.join(slow) or 'none'}"
    goals = [Goal(what, ">= 0.9, 20 methods or more", measured, not slow and len(ratios) >= 20)]
    for method, classes, bound in (("mahalanobis", "100", 20.0), ("mahalanobis", "1000", 100.0), ("knn", "", 1.5)):
        theirs = [r for r in rows if r["method"] == method and r["peer"].startswith("pytorch-ood") and classes in ("", r["classes"])]
        words = f"{method}{f', {classes} classes' if classes else ', bank of 20,000 x 2,048'}: times faster than pytorch-ood 0.4.0"
        goals += [
            Goal(words, f">= {bound:g}", f"{r['score ratio']} (processor: {r['score ratio, processor']})", float(r["score ratio"]) >= bound)
            for r in theirs
        ]
    return goals


def one_pass(name: str, words: str) -> list[Goal]:
    """All methods on one pass of an encoder."""
    total, rows = read_csv(RESULTS / f"one_pass_{name}_total.csv"), read_csv(RESULTS / f"one_pass_{name}.csv")
    what = f"encoder and all methods of one pass together, times the encoder alone, {words}"
    if not total:
        return [missing(what, "< 1.3")]
    first, rest = rows[0], sum(float(r["share of the pass"]) for r in rows[1:])
    measured = f"{float(total[0]['both : encoder']):.2f} ({total[0]['methods']} methods; {1 + rest:.2f} without {first['method']})"
    return [Goal(what, "< 1.3", measured, float(total[0]["both : encoder"]) < 1.3)]


def mecam() -> list[Goal]:
    """Far mean of MECAM where the classifier has three classes or more, and its cost."""
    rows = read_csv(RESULTS / "mecam_resnet18_pairs.csv")
    far = [float(r["mecam"]) for r in rows if r["id"] in ("histology", "brain", "brain_no_glioma") and r["other"] not in ("ixi", "glioma")]
    costs = [float(r["ratio"]) for r in read_csv(RESULTS / "mecam_cost.csv")]
    what, price = "MECAM, far mean of networks with three classes or more", "MECAM's passes : plain pass, ResNet-18 and 50"
    first = Goal(what, ">= 0.95", f"{sum(far) / len(far):.3f}", sum(far) / len(far) >= 0.95) if far else missing(what, ">= 0.95")
    second = Goal(price, "<= 2.2", ", ".join(f"{cost:.2f}" for cost in costs), max(costs) <= 2.2) if costs else missing(price, "<= 2.2")
    fast, minutes = read_csv(RESULTS / "mecam_training.csv"), "training of a ResNet-18 with exits, 1,500 images of 96 pixels, minutes"
    if not fast:
        return [first, second, missing(minutes, "< 10")]
    best = min(fast, key=lambda r: float(r["minutes"]))
    taken = f"{float(best['minutes']):.1f} ({best['epochs']} epochs, {best['precision']}, {best['threads']} cores)"
    return [first, second, Goal(minutes, "< 10", taken, float(best["minutes"]) < 10)]


def strong(epochs: int) -> list[str]:
    """Forms of MECAM on networks that were trained on stronger changes."""
    shown = ("id", "other", "mecam", "mecam_cosine", "mecam_two_sided", "mahalanobis", "knn", "msp")
    return markdown([{key: row[key] for key in shown} for row in read_csv(RESULTS / f"mecam_strong{epochs}_pairs.csv")])


def made(name: str) -> list[str]:
    """Command, date, machine and versions of one result."""
    path = RESULTS / f"{name}.md"
    if not path.exists():
        return ["(not measured yet)"]
    lines = path.read_text(encoding="utf-8").splitlines()
    return ["```", lines[2].strip("`"), "```", "", lines[4]]


def section(name: str, keep: Callable[[str], bool] = lambda line: True) -> list[str]:
    """The body of one result under its command and date."""
    path = RESULTS / f"{name}.md"
    body = path.read_text(encoding="utf-8").splitlines()[6:] if path.exists() else []
    return [*made(name), "", *[line for line in body if keep(line)]]


def by_hand(name: str) -> list[str]:
    """What a reader should know that no table says."""
    path = HERE / name
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def families() -> list[str]:
    """Commands, and one line for each family and detector: what it finds on two sets, best near area of the second first."""
    lines: list[dict[str, object]] = []
    for family in FAMILIES:
        path = RESULTS / f"generative-{family}.csv"
        rows = read_csv(path) if path.exists() else []
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method and row["id_set"] in TWO_SETS]
            if mine:
                lines.append(
                    {"model": family.replace("-regret", ", 40 images a set"), "method": method, "passes": mine[0]["passes"], **_areas(mine)}
                )
    lines.sort(key=lambda line: [-float(str(line[f"{own}, near"]) or "0") for own in reversed(TWO_SETS)])
    commands = [made(f"generative-{family}")[1] for family in FAMILIES if (RESULTS / f"generative-{family}.md").exists()]
    return ["```", *commands, "```", "", *markdown(lines)]


def _areas(rows: Sequence[Line]) -> dict[str, object]:
    found: dict[str, object] = {}
    for own in TWO_SETS:
        for kind in ("near", "far"):
            values = [float(row["auroc"]) for row in rows if row["id_set"] == own and row["kind"] == kind]
            found[f"{own}, {kind}"] = f"{statistics.fmean(values):.3f}" if values else ""
    return found


def why() -> list[str]:
    """The reasons, written by hand; what follows the rule in that file is the record of how the choice was made."""
    text = (RESULTS / "multilayer_notes.md").read_text(encoding="utf-8").partition("\n---\n")[0]
    return text.splitlines()[2:]


def page(hub: str) -> list[str]:
    """The whole page."""
    goals = [
        *accuracy("builtin", "built-in encoder", 0.797, extra=True),
        *accuracy(hub, "MobileNetV2 (ImageNet)", 0.828, extra=False),
        *coverage(),
        *against("builtin", "built-in encoder"),
        *alarms(),
        *forms("builtin", "built-in encoder"),
        *forms(hub, "MobileNetV2"),
        *speed(),
        *peers(),
        *every_peer(),
        *one_pass("builtin", "built-in encoder"),
        *one_pass(hub, "MobileNetV2"),
        *mecam(),
        *fused(),
    ]
    rows: list[Mapping[str, object]] = [goal.row() for goal in goals]
    return [
        "# Benchmarks",
        "",
        "Measured, not promised: every table names the command that makes it again, the machine and the date. Features are cached, so a",
        "second run is quick. This page is put together by `python benchmarks/report.py` from `benchmarks/results`; do not edit it.",
        "",
        "## Asked and measured",
        "",
        *markdown(rows),
        "",
        "Accuracy and file form belong to one gate: read the rows of a recipe together.",
        "",
        *by_hand("notes.md"),
        "",
        "## Near and far sets",
        "",
        "Suite near-far v1. Five in-distribution sets (children's chest X-rays, skin lesions, brain MR, breast ultrasound, histology),",
        "nine near sets (disease, another hospital, another scanner) and every other set as far. AUROC of the raw score, OOD positive;",
        "95 % interval by bootstrap over images (drawn anew, gates as fitted); ± is the standard deviation over random divisions. Columns",
        "as in [benchmarking](concepts/benchmarking.md); the default is bold.",
        "",
        "### Built-in encoder, every detector",
        "",
        *section("suite_near_far_v1_builtin"),
        "",
        "### MobileNetV2 trained on ImageNet, as hub encoder",
        "",
        *section(f"multilayer_{hub}"),
        "",
        "### Other libraries on the same features",
        "",
        *section("peers_near_far"),
        "",
        "## Methods that read a classifier",
        "",
        "Suite labels, one division: a linear classifier trained on each set's classes, on frozen features of the built-in encoder; every",
        "detector that reads vectors, on the same features and logits.",
        "",
        *section("suite_labels_builtin"),
        "",
        "## MECAM's protocol",
        "",
        "Suite mecam-local: for each division of each set a ResNet-18 with four exits, trained from scratch at 96 pixels for 24 epochs;",
        "every detector on that network. `area` and `accuracy` (balanced) are of its last exit on test images; `kept` is the epoch that",
        "the validation images choose, `kept_by_test` the one that the test images would. Rows `mecam_...` are options of the method.",
        "",
        *section("mecam_resnet18"),
        "",
        "### Stronger changes while training",
        "",
        "The same networks trained on images that are also turned, scaled, sheared, changed in tone and cut, as in the paper (`augment`);",
        "one division of two sets, 24 and 72 epochs. Forms of the method on each pair.",
        "",
        *(line for epochs in (24, 72) for line in (*made(f"mecam_strong{epochs}"), "", *strong(epochs), "")),
        "### A deeper network",
        "",
        "ResNet-50, one division of one set, trained on the stronger changes.",
        "",
        *section("mecam_resnet50"),
        "",
        "### What it costs",
        "",
        *section("mecam_cost"),
        "",
        "## Models of normal images",
        "",
        *by_hand("generative_notes.md"),
        "",
        "### What each costs",
        "",
        *section("generative_costs"),
        "",
        "### All families on two sets",
        "",
        *families(),
        "",
        "### Fusion against the plain bound, five sets",
        "",
        *section("generative-vae"),
        "",
        "### A student of a diffusion model",
        "",
        *section("distilled"),
        "",
        "### Methods on feature maps",
        "",
        *section("feature_maps"),
        "",
        "## KLIP",
        "",
        *by_hand("klip_notes.md"),
        "",
        *(line for part in ("psnr", "areas", "evaluations", "cost", "apart") for line in (*section(f"klip_{part}"), "")),
        "## Synthetic-anomaly networks",
        "",
        "Networks that learnt to find what was put into normal images: one set, one division, far fewer altered images than the papers",
        "train on. Far behind the default on the same sets.",
        *[
            line
            for name in ("fpi", "pii", "nsa", "many", "cutpaste")
            for line in ("", f"### {name}", "", *section(f"synthetic_anomaly_{name}"))
        ],
        "",
        "## When a classifier will fail",
        "",
        "The example of [know when a classifier will fail](how-to/when-will-it-fail.md), and how often the promised bound was broken.",
        "",
        *section("failure"),
        "",
        "## Adversarial inputs",
        "",
        "Images changed so that a ResNet-18 trained on brain MR errs (FGSM and PGD in the largest norm), against unchanged test images.",
        "The attack knows the network and not the detector: no claim against one that knows both.",
        "",
        *section("adversarial"),
        "",
        "## Why this default",
        "",
        *why(),
        "",
        *section("multilayer_builtin"),
        "",
        "## False alarms",
        "",
        "Measured with the former default (each layer by itself, log-sum-exp); the guarantee does not depend on the detector.",
        "",
        *section("false_alarms"),
        "",
        "## File form is not content",
        "",
        "Measured with the former default; what the present one keeps is told [above](#why-this-default).",
        "",
        "### Built-in encoder",
        "",
        *section("file_forms_builtin"),
        "",
        "### MobileNetV2",
        "",
        *section(f"file_forms_{hub}"),
        "",
        "## Speed and memory",
        "",
        "Measured with the former default, whose score takes 0.02 ms an image and fold where the present one takes 0.03.",
        "",
        *section("speed"),
        "",
        "## Mahalanobis distance against pytorch-ood",
        "",
        *section("peer_mahalanobis"),
        "",
        "## Against pytorch-ood and scikit-learn",
        "",
        "The same arrays on both sides, in one process, in turns. A ratio above 1 means that offmap is faster. Where a peer applies the",
        "head itself, offmap is timed with the head. Which library has which method: [coverage](concepts/coverage.md).",
        "",
        *section("peers"),
        "",
        "## One pass feeds all methods",
        "",
        "### Built-in encoder",
        "",
        *section("one_pass_builtin"),
        "",
        "### MobileNetV2",
        "",
        *section(f"one_pass_{hub}"),
        "",
    ]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hub", default="mobilenet_v2_imagenet", help="last part of the hub encoder's folder")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    args = parser.parse_args()
    lines = page(args.hub)
    text = "\n".join(lines).rstrip("\n") + "\n"
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    args.out.write_text(text, encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
