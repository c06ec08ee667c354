"""What a student of a diffusion model costs and how like its teacher it ranks; trains both on one in-distribution set.

    python benchmarks/distilled.py --set brain_no_tumour --size 32 --steps 2000 --student-steps 2000

The teacher is the squared Mahalanobis distance of score norms at ten levels of noise. Suite near-far v1, first seed: fit images train both,
held-out images choose the checkpoints, test images and the other sets are what is measured on. One thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from generative import read
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor

from offmap.benchmark import metrics
from offmap.benchmark.suite import read_suite
from offmap.datasets import local
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.nets.student import StudentShape
from offmap.represent.student import StudentEncoder
from offmap.represent.train.diffusion import DiffusionPlan, train_diffusion
from offmap.represent.train.distil import distil, rank_correlation
from offmap.represent.train.judged import Schedule
from offmap.represent.trainers.student import norm_distance

SCORE = frozenset({"student.score"})


def timed(score: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, float]:
    """Scores, and milliseconds an image."""
    score(images[:8])
    start = time.perf_counter()
    found = torch.cat([score(part) for part in images.split(32)])
    return found.double(), 1000 * (time.perf_counter() - start) / len(images)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="brain_no_tumour")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--student-steps", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=3)
    parser.add_argument("--most", type=int, default=100, help="images of each other set")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    suite, made = read_suite((local.find() or Path()) / "near-far-v1.toml"), Made.now()
    seed = suite.seeds[0]
    division = suite.divide(suite.items(args.set), seed)
    formed, native = (read(suite.files(args.set), args.size, form_seed=form) for form in (0, None))
    fit, held, test = formed[division.fit], formed[division.held_out], native[division.test]
    plan = DiffusionPlan(size=args.size, steps=args.steps, precision="bfloat16")
    both = torch.cat([fit, held])
    trained = train_diffusion(both, plan, seed=seed, held_out=torch.arange(len(fit), len(both)))
    teacher = norm_distance(DiffusionEncoder(trained.net, args.size), held)
    learned = distil(teacher, fit, held, StudentShape(), Schedule(steps=args.student_steps), variants=args.variants, seed=seed)
    student = StudentEncoder(learned.net, args.size)
    own, dear = timed(teacher, test)
    mine, cheap = timed(lambda x: student.encode(x, SCORE)["student.score"], test)
    rows: list[dict[str, object]] = []
    for name, kind in suite.others(args.set).items():
        images = read(suite.files(name)[: args.most], args.size, form_seed=None)
        other, told = timed(teacher, images)[0], timed(lambda x: student.encode(x, SCORE)["student.score"], images)[0]
        areas = {"teacher": metrics.auroc(own.numpy(), other.numpy()), "student": metrics.auroc(mine.numpy(), told.numpy())}
        together = rank_correlation(torch.cat([mine, told]), torch.cat([own, other]))
        rows.append({"id_set": args.set, "other_set": name, "kind": kind, **areas, "rank_correlation": together})
    costs = [{"teacher ms": dear, "student ms": cheap, "times": dear / cheap, "rank correlation, drawn": learned.agreement}]
    write_csv(args.out / "distilled.csv", rows)
    body = [*markdown(costs), "", *markdown(rows)]
    print("\n".join(body))
    write_markdown(args.out / "distilled.md", f"A student of a diffusion model, near-far v1, {args.set}, {args.size} px", body, made)


if __name__ == "__main__":
    main()
