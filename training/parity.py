"""Whether the runtimes of a robot describe images as the checkpoint does.

A map is often made on one machine and searched on another. So both are asked: how near the descriptors of the same
image are, and how often a query that the runtime described finds its place in a map that the checkpoint described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.evaluation.protocol import normalised, right_answers
from training.evaluation.results import Protocol
from training.sessions import Session
from vpr_kd_ros.backends.cache import Notice
from vpr_kd_ros.backends.choice import Wanted, runnable
from vpr_kd_ros.backends.half import to_half
from vpr_kd_ros.backends.onnx_backend import OnnxBackend
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.student import MAX_BATCH, Student
from vpr_kd_ros.student_file import StudentFile
from vpr_kd_ros.student_metadata import Parity

LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999}
"""Between the checkpoint's and a runtime's descriptor of the same image, in the worst case."""
RECALL_CHANGE = 0.002
"""Recall@1 may change by so much, or by one query where there are so few that one is more."""


@dataclass(frozen=True)
class Reference:
    """What the checkpoint makes of held-out sessions.

    Attributes:
        sessions: labelled, two of one region at least.
        rows: of each session, (N_i, D) float32, of length one.
        asked: of each session, the frames that the runtimes describe; int64.
        radius_m: a result this near is right, metres.
    """

    sessions: Sequence[Session]
    rows: Sequence[NDArray[np.float32]]
    asked: Sequence[NDArray[np.int64]]
    radius_m: float

    @classmethod
    def of(
        cls, sessions: Sequence[Session], rows: Sequence[NDArray[np.float32]], radius_m: float, images: int
    ) -> Reference:
        """With at most about ``images`` frames asked, evenly along each session; ``rows`` of any length."""
        share = min(1.0, images / sum(map(len, sessions)))
        asked = [
            np.unique(np.linspace(0, len(s) - 1, max(1, round(share * len(s)))).astype(np.int64)) for s in sessions
        ]
        return cls(sessions, [normalised(r) for r in rows], asked, radius_m)

    def images(self) -> int:
        """How many frames are asked."""
        return sum(map(len, self.asked))

    def recall_at_1(self, answers: Sequence[NDArray[np.float32]]) -> tuple[float, int]:
        """Share of queries whose best match in the checkpoint's map of another session of the region is right.

        Args:
            answers: of each session, unit descriptors of the frames asked.

        Returns:
            The share, over all ordered pairs of sessions, and the number of queries that have a right answer.
        """
        right, queries = 0, 0
        for q, query in enumerate(self.sessions):
            for d, database in enumerate(self.sessions):
                if d == q or query.region != database.region:
                    continue
                truth = right_answers(query, database, Protocol(self.radius_m))[self.asked[q]]
                best = (answers[q] @ self.rows[d].T).argmax(axis=1)
                right += int(truth[np.arange(len(best)), best].sum())
                queries += int(truth.any(axis=1).sum())
        return right / max(queries, 1), queries


def students(file: StudentFile, precisions: Sequence[str], notice: Notice) -> list[tuple[str, Student]]:
    """A student, with its precision, in every runtime of this machine.

    Half precision is also run without a GPU: the very graph that TensorRT is given, by ONNX Runtime on the CPU, which
    rounds weights and features to float16 and computes in float32. It finds what overflows; it is slow.
    """
    found: list[tuple[str, Student]] = []
    for precision in precisions:
        if precision == "fp16" and file.onnx is not None:
            backend = OnnxBackend(file.path, to_half(file.onnx), file.metadata)
            found.append((precision, Student(file.metadata, backend, "float16 graph in onnxruntime on cpu")))
        devices = ["cpu"] if precision == "fp32" else []
        for device in devices + (["cuda"] if torch.cuda.is_available() else []):
            try:
                ready = runnable(file, Wanted(device=device, precision=precision), notice)
            except ConfigError as error:
                notice(f"{device}, {precision}: not compared: {error}")
                continue
            found += [
                (precision, Student(file.metadata, backend, f"{runtime.backend} on {runtime.device}"))
                for runtime, backend in ready.items()
            ]
    return found


def compare(reference: Reference, precision: str, student: Student) -> Parity:
    """Describe the frames asked and compare them with the checkpoint's descriptors."""
    answers = [_describe(student, s, asked) for s, asked in zip(reference.sessions, reference.asked, strict=True)]
    own = [rows[asked] for rows, asked in zip(reference.rows, reference.asked, strict=True)]
    cosine = min(float((a * b).sum(axis=1).min()) for a, b in zip(answers, own, strict=True))
    recall, _ = reference.recall_at_1(answers)
    return Parity(
        runtime=student.runtime,
        precision=precision,
        cosine=cosine,
        recall_at_1=recall,
        recall_change=recall - reference.recall_at_1(own)[0],
        images=reference.images(),
    )


def require_parity(measured: Sequence[Parity], queries: int) -> None:
    """Refuse a student that a runtime carries badly.

    Args:
        measured: of every runtime.
        queries: that recall@1 was measured on.

    Raises:
        DataError: a cosine is below ``LEAST_COSINE``, or recall@1 changed by more than ``RECALL_CHANGE``.
    """
    allowed = max(RECALL_CHANGE, 1.0 / max(queries, 1))
    for parity in measured:
        least = LEAST_COSINE[parity.precision]
        # Written so that NaN fails too.
        if not parity.cosine >= least or not abs(parity.recall_change) <= allowed + 1e-9:
            mend = "; without it: --precisions fp32" if parity.precision == "fp16" else ""
            raise DataError(
                f"{parity.runtime}, {parity.precision}: gives other descriptors than the checkpoint (cosine "
                f"{parity.cosine:.6f}, wants {least}; recall@1 changes by {100 * parity.recall_change:+.2f} points, "
                f"may by {100 * allowed:.2f}); not written{mend}"
            )


def _describe(student: Student, session: Session, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    starts = tqdm(range(0, len(frames), MAX_BATCH), f"{student.runtime}, {session.name}", unit="batch", leave=False)
    batches = ([session.image(int(i)) for i in frames[start : start + MAX_BATCH]] for start in starts)
    return np.concatenate([student.describe(batch) for batch in batches])
