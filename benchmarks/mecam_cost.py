"""What MECAM costs: training of a network with four exits, and scoring beside the network's plain pass.

    python benchmarks/mecam_cost.py

Training: 1,500 images of 96 pixels, 20 epochs, both precisions. Scoring: batches take turns between the plain pass and the two passes of
the score, so that both are measured under the same load; the ratio is of medians of processor seconds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from results import Made, markdown, write_csv, write_markdown

from offmap.core.encoder import Input
from offmap.represent.nets.multi_exit import MultiExitResNet
from offmap.represent.train.multi_exit import ExitPlan, train_multi_exit, with_own_exits
from offmap.score.mecam import MECAM

SPEC = Input(96, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--precisions", default="bfloat16,float32", help="of the training; empty to leave it out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made = Made.now()
    costs = [scoring(depth, size) for depth, size in ((18, 96), (18, 224), (50, 96))]
    write_csv(args.out / "mecam_cost.csv", costs)
    body = ["## Scoring", "", *markdown(costs)]
    if args.precisions:
        times = [training(precision, args.images, args.epochs) for precision in args.precisions.split(",")]
        write_csv(args.out / "mecam_training.csv", times)
        body += ["", "## Training, ResNet-18", "", *markdown(times)]
    write_markdown(args.out / "mecam_cost.md", "What MECAM costs", body, made)


def scoring(depth: int, size: int, rounds: int = 9, batch: int = 32) -> dict[str, object]:
    """Milliseconds an image of the plain pass and of the score."""
    rng = torch.Generator().manual_seed(0)
    net = MultiExitResNet(4, depth=depth, generator=rng).eval()
    encoder = with_own_exits(net, Input(size, 3, SPEC.mean, SPEC.std))
    images = torch.rand(batch, 3, size, size, generator=rng)
    fitted = MECAM().fit([encoder.encode(images, MECAM().needs)])
    plain, both = [], []
    for _ in range(rounds + 1):
        start = time.process_time()
        with torch.no_grad():
            net(images)
        middle = time.process_time()
        fitted.score(encoder.encode(images, MECAM().needs))
        plain.append(middle - start)
        both.append(time.process_time() - middle)
    one, two = (1000 * float(np.median(times[1:])) / batch for times in (plain, both))
    return {"network": f"ResNet-{depth}", "pixels": size, "plain pass, ms": one, "mecam, ms": two, "ratio": two / one}


def training(precision: str, count: int, epochs: int) -> dict[str, object]:
    """Seconds of a training on images that differ by class; what is in them does not change the time."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = (torch.rand(count, 3, SPEC.size, SPEC.size, generator=rng) + 0.2 * labels[:, None, None, None]) / 1.4
    plan = ExitPlan(epochs=epochs, batch=32, precision=precision)  # type: ignore[arg-type]
    wall, cpu = time.perf_counter(), time.process_time()
    train_multi_exit(images, labels, plan, spec=SPEC)
    spent = time.process_time() - cpu
    return {
        "images": count,
        "epochs": epochs,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "minutes": (time.perf_counter() - wall) / 60,
        "processor minutes": spent / 60,
    }


if __name__ == "__main__":
    main()
