"""``python -m training benchmark``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import torch

from training.benchmark.cells import (
    Workplace,
    cell_command,
    find_cell,
    prepare_data,
    run_cell,
    run_cells,
    run_cells_in_processes,
)
from training.benchmark.costs import measure
from training.benchmark.report import write_report, write_tables
from training.benchmark.suite import load_suite
from training.benchmark.tables import costs_markdown, markdown
from vpr_kd_ros.errors import VprError

DESCRIPTION = """Re-run the papers' comparisons on the simulated town or on sessions of your own: every method with
several seeds, tables in the papers' layout, and a report with pictures. A suite is a YAML file of config/benchmark
(quick, distilvpr, distilvpr-ablation, structvpr, lsdnet, low-quality, scicevpr, placing), or one of your own. What is
done is kept: the same command goes on where the last one stopped. Of cells from elsewhere, evaluation.json alone is
enough for the tables; a teacher of which no more was kept is trained again when a student needs it.

Example: python -m training benchmark --suite quick --out out/quick

Job array: --list prints the command of every training, teachers first; each may run on another machine that shares the
folder. Then run the command without --cell for the tables, or with --report for those of what is done."""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training benchmark", description=DESCRIPTION)
    result.add_argument("--suite", type=str, required=True, help="name of a suite, or path of a YAML file")
    result.add_argument("--out", type=str, required=True, help="folder for data, trainings, tables and report")
    result.add_argument(
        "--data",
        type=str,
        help="folder with train/, validation/ and test/ sessions; default: the suite's town, in --out",
    )
    result.add_argument("--seeds", type=int, nargs="+", help="of the students; default: the suite's")
    result.add_argument("--tables", type=str, nargs="+", default=[], help="only these tables; default: all")
    result.add_argument("--workers", type=int, help="trainings at a time; default: one a GPU, or one")
    result.add_argument("--cell", type=str, help="run this one training and nothing else")
    result.add_argument("--list", action="store_true", help="print the command of each training to be done")
    result.add_argument("--report", action="store_true", help="train nothing; tables and report of what is done")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Run what is not done, then write and print the tables.

    Raises:
        VprError: a training failed; the others are done and in the tables.
    """
    suite = load_suite(args.suite)
    if args.seeds:
        suite = suite.with_seeds(args.seeds)
    out = Path(args.out).resolve()
    place = Workplace(suite, out, Path(args.data).resolve() if args.data else out / "data")
    cells = suite.cells(args.tables)
    command = cell_command(args.suite, out, place.data, suite.seeds)
    if args.list:
        print("\n".join(" ".join([*command, cell.name]) for cell in place.to_run(cells)))
        return
    workers = args.workers or max(1, torch.cuda.device_count())
    if not args.report:
        prepare_data(place, max(2, workers))
    if args.cell:
        run_cell(place, find_cell(cells, args.cell))
        return
    if args.report:
        failed = []
    else:
        failed = run_cells(place, cells) if workers == 1 else run_cells_in_processes(place, cells, workers, command)
    costs = {} if suite.costs is None else measure(suite.costs)
    filled = write_tables(place, costs)
    print("\n".join(markdown(table) for table in filled.values()))
    if suite.costs is not None:
        print(costs_markdown(suite.costs, costs))
    print(f"report: {write_report(place, filled, costs)}")
    if failed:
        raise VprError(f"{len(failed)} of {len(cells)} trainings failed: {', '.join(failed)}; logs in {out / 'logs'}")
