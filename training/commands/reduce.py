"""``python -m training reduce``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.engine.reduction import reduce_run
from training.sessions import load_sessions

DESCRIPTION = """Shorten the descriptors of a trained model by a PCA, as the papers do with NetVLAD (32,768 numbers),
LSDNet (20,480) and SciceVPR (10,752, to 4,096). The PCA is fitted to the descriptors of the sessions given, best those
trained on, with or without poses; there must be more keyframes than --dim. The result is a run folder like any other:
evaluate it, export it.

Example: python -m training reduce --run runs/scicevpr --sessions sessions/train --dim 4096"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training reduce", description=DESCRIPTION)
    result.add_argument("--run", type=str, required=True, help="the run folder of a trained model")
    result.add_argument("--sessions", nargs="+", required=True, help="session folders, or folders of sessions")
    result.add_argument("--dim", type=int, required=True, help="numbers of a reduced descriptor")
    result.add_argument("--out", type=str, help="the run folder to write; default: the run's with -pcaDIM behind")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Reduce and say what was kept."""
    source = Path(args.run)
    out = Path(args.out) if args.out else source.with_name(f"{source.resolve().name}-pca{args.dim}")
    done = reduce_run(source, out, load_sessions(args.sessions), args.dim)
    print(
        f"{done.before} to {done.after} numbers, {100 * done.variance:.1f} % of the variance of {done.keyframes} "
        f"keyframes kept; run in {out}"
    )
