"""What a study found, in words for a clinician."""

from collections.abc import Sequence

from offmap.benchmark.study import StudyRun
from offmap.benchmark.study_summary import Best, Confounded, Contest, Summary
from offmap.core.resampling import Measure
from offmap.report.words import count, percent

KIND = {"image_characteristics": "how images are taken", "semantic": "what images show"}
"""Kinds of shift in plain words."""

SURE = 0.95
WEAK = 0.6
"""Balanced accuracy (of two classes) below which a task's network has hardly learnt its task."""


def cell(pair: tuple[str, str]) -> str:
    """A task and a method."""
    return f"{pair[1]} of the task {pair[0]!r}"


def interval(measure: Measure) -> str:
    """A number with its interval."""
    return f"{measure.value:.3f} (95 % interval {measure.low:.3f} to {measure.high:.3f})"


def sentences(run: StudyRun, found: Summary) -> list[str]:
    """The headline, one sentence a point."""
    out = [f"Changes in {KIND[kind]} are found best by the task {_best(best)}." for kind, best in found.kinds.items()]
    out += _differs(found)
    taus = {name: contest.tau for name, contest in found.contests.items() if contest.tau is not None}
    if found.tau is not None:
        each = ", ".join(f"{name} {tau.value:.2f}" for name, tau in taus.items())
        tail = "one order does not follow from the other" if found.tau.value < 0.5 else "the two orders are alike, but not the same"
        tail = "the two orders are the same" if found.tau.value > 0.95 else tail
        out.append(
            f"Finding a change and foretelling wrong answers: Kendall's tau {interval(found.tau)}, mean over {count(len(taus), 'shift')} "
            f"({each}); 1 would be the same order of all tasks and methods, 0 none: {tail}."
        )
    out += [_contest(name, contest) for name, contest in found.contests.items() if contest.judge is not None]
    return out


def _best(best: Best) -> str:
    sure = "" if best.sure >= SURE else f"; not for certain, best in {percent(round(best.sure, 2))} of the resamples"
    return f"{best.task!r}: AUROC {interval(best.auroc)}, mean over methods{sure}"


def _differs(found: Summary) -> list[str]:
    by_shift = ", ".join(f"{name}: {best.task}" for name, best in found.shifts.items())
    if found.differs is None:
        return [f"The best task of each shift: {by_shift}. There is one kind of shift only, so kinds cannot be compared."]
    sure = min(best.sure for best in found.kinds.values()) >= SURE
    if found.differs:
        certain = "" if sure else ", though not for certain"
        return [
            f"The best task is not the same for the two kinds of shift{certain}, as in the fetal ultrasound study. By shift: {by_shift}."
        ]
    task = next(iter(found.kinds.values())).task
    also = len({best.task for best in found.shifts.values()}) > 1
    tail = "single shifts have other best tasks" if also else "and for every single shift"
    return [f"The task {task!r} is best for both kinds of shift, unlike in the fetal ultrasound study; {tail}. By shift: {by_shift}."]


def _contest(name: str, contest: Contest) -> str:
    if contest.augrc is None or contest.judge is None or contest.detector_augrc is None or contest.extra is None:
        return ""
    if contest.judge == contest.detector:
        return f"On {name} the best detector is the best judge of the answers too: {cell(contest.detector)}."
    certain = "" if contest.extra.low > 0 else "; the difference may be chance"
    return (
        f"On {name} the best detector is {cell(contest.detector)} (AUROC {contest.auroc.value:.3f}), but {cell(contest.judge)} leaves "
        f"fewer wrong answers undetected: AUGRC {contest.augrc.value:.3f} against {contest.detector_augrc.value:.3f}{certain}."
    )


def together(pairs: Sequence[Confounded]) -> list[str]:
    """Labels that go together, one sentence for each group of them on the same images."""
    groups: list[list[Confounded]] = []
    for pair in pairs:
        names = {pair.one, pair.other}
        touched = [g for g in groups if g[0].images == pair.images and any(names & {each.one, each.other} for each in g)]
        groups = [g for g in groups if g not in touched] + [[each for g in touched for each in g] + [pair]]
    out = []
    for group in groups:
        labels = list(dict.fromkeys(name for each in group for name in (each.one, each.other)))
        low, high = (f"{end(each.v for each in group):.2f}" for end in (min, max))
        strength = low if low == high else f"{low} to {high}"
        where = group[0].images[:1].upper() + group[0].images[1:]
        listed = f"{', '.join(labels[:-1])} and {labels[-1]}"
        out.append(f"{where}: {listed} go together (Cramer's V {strength}): one cannot be told from the other here.")
    return out


def warnings(run: StudyRun, found: Summary) -> list[str]:
    """What to know before relying on it."""
    out = together(found.confounded)
    for name, accuracy in found.accuracy.items():
        chance = 1 / len(run.seeds[0].tasks[name].classes)
        if accuracy < chance + 2 * (WEAK - 0.5) * (1 - chance):
            out.append(f"The task {name!r} is hardly learnt: balanced accuracy {accuracy:.3f}, {chance:.3f} by chance.")
    unknown = [name for name, contest in found.contests.items() if contest.judge is None]
    if unknown:
        out.append(f"The clinical answer is not known on {', '.join(unknown)}: nothing is said of abstention there.")
    seeded = run.seeds[0]
    for task in run.study.tasks:
        left_out = run.views.tasks[task.name].left_out
        if left_out:
            out.append(
                f"Test-time augmentation of the task {task.name!r} goes without {count(left_out, 'view')} that would change its label."
            )
        out += [
            f"The method {method} was not run on the task {task.name!r}: {why}." for method, why in seeded.tasks[task.name].reasons.items()
        ]
    if not any(item.patient for item in run.images.own):
        out.append("Every image counts as independent. If patients have several, name their column with 'patient'.")
    out.append(
        "The tasks share one frozen backbone; each has a small network of its own. Members of an ensemble differ in that small network "
        "only, and dropout lies before the head: all of them are surer than networks that were trained apart from the first layer on."
    )
    return out
