"""The demo's comparison over several seeds: a student that learns by itself against a distilled one.

``python benchmarks/town_seeds.py out/demo --seeds 0 1 2``: for each seed, trains both students as the demo does, on the
demo's sessions and with its teacher, and prints AR@1 on the test regions with mean and standard deviation. What is
trained already below ``out/demo/seeds`` is kept. About eight minutes a seed on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import REPOSITORY, Row, finish, parser

STUDENTS = ("student", "distilvpr")


def train_and_evaluate(demo: Path, name: str, seed: int) -> dict[str, float]:
    """AR@1 in percent by condition of the query, and ``all``."""
    run = demo / "seeds" / f"{name}-{seed}"
    result = run / "evaluation.json"
    if not (run / "run.json").exists():
        sessions = ["--train", str(demo / "sessions" / "train"), "--validation", str(demo / "sessions" / "validation")]
        teacher = ["--teacher", str(demo / "runs" / "teacher")] if name == "distilvpr" else []
        command = ["distill" if teacher else "teach", "--config", f"config/town/{name}.yaml", "--seed", str(seed)]
        _training(*command, *sessions, *teacher, "--out", str(run))
    if not result.exists():
        _training("evaluate", "--model", str(run), "--sessions", str(demo / "sessions" / "test"), "--out", str(result))
    measured = json.loads(result.read_text())
    return {name: 100 * value for name, value in {"all": measured["ar1"], **measured["by_query_condition"]}.items()}


def _training(*arguments: str) -> None:
    print(f"$ python -m training {' '.join(arguments)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "training", *arguments], cwd=REPOSITORY, check=True, stdout=sys.stderr)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Train what is missing, print the table and return its rows."""
    options = parser(__doc__)
    options.add_argument("demo", type=Path, help="folder of a finished demo")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = options.parse_args(argv)
    demo = args.demo.resolve()
    if not (demo / "summary.json").exists():
        options.error(f"{demo}: not a finished demo (no summary.json); run make demo first")
    measured = {
        name: [train_and_evaluate(demo, name, seed) for seed in args.seeds] for name in STUDENTS
    }  # fmt: skip
    teacher = json.loads((demo / "summary.json").read_text())["teacher_ar1"]
    print(f"AR@1 in percent, mean ± standard deviation over the seeds {', '.join(map(str, args.seeds))}\n")
    rows = []
    for condition in measured["student"][0]:
        of_teacher = 100 * (teacher["ar1"] if condition == "all" else teacher["by_condition"][condition])
        row: Row = {"queries": condition, "teacher_of_one_seed": round(of_teacher, 1)}
        rows.append(row | {name: [run[condition] for run in runs] for name, runs in measured.items()})
    return finish(args, "town_seeds", rows)


if __name__ == "__main__":
    main()
