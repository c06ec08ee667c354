"""A suite through `offmap benchmark`, its summary kept beside the other results.

    python benchmarks/suites.py near-far-v1
    python benchmarks/suites.py near-far-v1 --recipe fine --methods fine,mahalanobis
    python benchmarks/suites.py labels --seeds 1

The whole run (tidy tables, plots, page) stays in ``--folder``; run again, it goes on where it stopped.
"""

import argparse
from pathlib import Path

from features import folder_of
from results import Made, write_csv, write_markdown

from offmap.benchmark.compare import compare
from offmap.pipeline.cache import root


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("--encoder", default=None)
    parser.add_argument("--recipe", default="standard")
    parser.add_argument("--methods", default="")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="of the run; a folder of the cache if not given")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made = Made.now()
    parts = [args.suite, folder_of(args.encoder or "builtin"), *([args.recipe] if args.recipe != "standard" else [])]
    name = "_".join(parts).replace("-", "_")
    folder = args.folder or root() / "benchmarks" / name
    asked = [method for method in args.methods.split(",") if method]
    found = compare(
        args.suite, out=folder, methods=asked, encoder=args.encoder, recipe=args.recipe, seeds=args.seeds, jobs=args.jobs, progress=told
    )
    write_csv(args.out / f"suite_{name}.csv", found.summary)
    body = (folder / "summary.md").read_text(encoding="utf-8").splitlines()[2:]
    write_markdown(args.out / f"suite_{name}.md", f"Suite {args.suite}, {folder_of(args.encoder or 'builtin')}", body, made)


def told(event: dict[str, object]) -> None:
    """One line for each step."""
    if event.get("done") in (0, event.get("total")):
        print(event, flush=True)


if __name__ == "__main__":
    main()
