"""Images a second in training a student: the teacher's descriptors from the cache against asking it for each batch.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --student mobilenetv2-gem --size 240x320 --windows 2 4 8 --steps 10
    python benchmarks/training_step.py --windows 9 --threads 1 --compiled

Steps of the training loop's own parts: draw a batch, read and augment it, student forward, losses, backward, Adam. The
method is DistilVPR as in `config/town/distilvpr.yaml`; the teacher is MinkLoc++'s cloud encoder, as in
`config/town/teacher.yaml`, on clouds of 4096 points. Keyframes are made up; weights are random. Steps with and without
the cache are interleaved: read the ratio. ``pays_after`` is after how many steps filling the cache, which is done once
for all students, has cost less than asking the teacher each time. ``windows`` scales the batch. ``--compiled`` has the
cached steps also with ``compile: true`` and ``precision: bf16-mixed``, as `config/benchmark/distilvpr.yaml` trains its
cameras on a processor with AMX; ``compiled_speedup`` is against the same steps in float32 and not compiled.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import lightning.fabric
import numpy as np
import torch
import yaml

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import REPOSITORY, Row, cores, finish, in_turns, parser, spread
from training.data.dataset import Keyframes
from training.distillation import build_method
from training.engine.batches import Batch, as_seen, draw_batches, loss_terms, read
from training.engine.config import ModelConfig, TrainConfig, from_dict
from training.engine.descriptors import describe, preprocess_of
from training.engine.learning import Learning
from training.engine.task import task_loss
from training.engine.teaching import LiveTeacher, Teaching, answers
from training.models import EmbeddingModel, build_model
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.geometry import Pose

DRIVES, KEYFRAMES, SPACING_M, POINTS = 3, 60, 5.0, 4096
DIM = 128
CPU = torch.device("cpu")


def drives(folder: Path, height: int, width: int) -> list[Session]:
    """Drives along one street: noise of each keyframe's own as image and cloud."""
    rng = np.random.default_rng(0)
    for number in range(DRIVES):
        info = SessionInfo(name=f"drive-{number}", region="street", condition="sun", frame_id="map")
        with SessionWriter(folder / info.name, info) as writer:
            for i in range(KEYFRAMES):
                writer.add(
                    stamp_ns=1_000_000_000 * (i + 1),
                    image=np.kron(
                        rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((height // 8, width // 8, 1), np.uint8)
                    ),
                    cloud=rng.uniform((-50, -15, -1), (50, 15, 9), (POINTS, 3)).astype(np.float32),
                    pose=Pose.planar(SPACING_M * i, 0.0, 0.0),
                )
    return [Session(folder / f"drive-{number}") for number in range(DRIVES)]


def settings(student: str, height: int, width: int, windows: int) -> TrainConfig:
    """The town's distillation with another student, image size and batch."""
    config = from_dict(TrainConfig, yaml.safe_load((REPOSITORY / "config/town/distilvpr.yaml").read_text()))
    model = ModelConfig(student, {"descriptor_dim": DIM})
    batch = replace(config.batch, windows=windows, anchors=config.batch.anchors * windows // config.batch.windows)
    return replace(config, model=model, height=height, width=width, batch=batch)


def teacher() -> EmbeddingModel:
    """The town's teacher, with random weights."""
    model = yaml.safe_load((REPOSITORY / "config/town/teacher.yaml").read_text())["model"]
    torch.manual_seed(1)
    return build_model(model["name"], model["options"]).eval()


class Loop:
    """A student in training.

    Attributes:
        images: that it has been trained on so far.
    """

    def __init__(self, config: TrainConfig, train: Keyframes, teaching: Teaching) -> None:
        torch.manual_seed(0)
        self._config, self._train, self._teaching = config, train, teaching
        self._student = build_model(config.model.name, config.model.options).train()
        fabric = lightning.fabric.Fabric(accelerator="cpu", devices=1, precision=config.precision)
        self._learning = Learning(fabric, self._student, teaching.method, config)
        self._batches: Iterator[Batch] = draw_batches(train, config, self._learning.rng, teaching)
        self._task = task_loss(config.task)
        self._preprocess = preprocess_of(config)
        self.images = 0

    def step(self) -> None:
        """One optimiser step, as `training.engine.fit` takes it."""
        batch = next(self._batches)
        frames = read(batch.indices, self._student, self._train, self._teaching, self._config)
        seen = as_seen(frames, self._preprocess, self._config)
        student = answers(self._learning.learner, self._student, seen, self._preprocess, CPU, maps=False)
        live = self._teaching.live
        taught = None if live is None else live.answers(frames, CPU, False)
        terms = loss_terms(batch, student, taught, self._train, self._task, self._teaching, self._config, 0.5)
        self._learning.update(terms)
        self.images += len(batch.indices)


def measure(config: TrainConfig, train: Keyframes, steps: int, compiled: bool) -> Row:
    """The row of one batch size; ``compiled`` has compiled steps in bfloat16 beside the others."""
    model, preprocess = teacher(), preprocess_of(config)
    began = time.perf_counter()
    descriptors = describe(model, train, preprocess)
    cache_s = time.perf_counter() - began

    def loop(config: TrainConfig, live: LiveTeacher | None = None) -> Loop:
        method = build_method(
            config.method.name, config.method.options, teacher_dim=model.descriptor_dim, student_dim=DIM
        )
        return Loop(config, train, Teaching(method, descriptors, live))

    loops = {"cached": loop(config), "live": loop(config, LiveTeacher(model, preprocess, train))}
    if compiled:
        loops["compiled"] = loop(replace(config, compile=True, precision="bf16-mixed"))
        for _ in range(3):  # batches differ in size: compiled for one, then for any
            loops["compiled"].step()
        loops["compiled"].images = 0
    turns: dict[str, Callable[[], None]] = {name: running.step for name, running in loops.items()}
    times = in_turns(turns, steps)
    images = {name: running.images / (steps + 1) for name, running in loops.items()}
    rates = {name: 1e3 * images[name] / spread("", times[name])["_ms"] for name in loops}
    row: Row = {"student": config.model.name, "size": f"{config.height}x{config.width}"}
    row["batch"] = round(images["cached"])
    for name in loops:
        row |= spread(name, times[name])
    row |= {f"{name}_images_per_s": round(rate, 1) for name, rate in rates.items()}
    saved_s = (row["live_ms"] - row["cached_ms"]) / 1e3
    pays_after = round(cache_s / saved_s) if saved_s > 0 else None
    row |= {"speedup": round(rates["cached"] / rates["live"], 2), "pays_after": pays_after}
    if compiled:
        row["compiled_speedup"] = round(rates["compiled"] / rates["cached"], 2)
    return row


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table and return its rows."""
    options = parser(__doc__)
    options.add_argument("--student", default="small-resnet-gem", help="image model")
    options.add_argument("--size", default="96x128", help="height x width of its input")
    options.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8], help="of a batch, which grows with it")
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--threads", type=int, default=cores())
    options.add_argument("--compiled", action="store_true", help="also steps that are compiled and in bfloat16")
    args = options.parse_args(argv)
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        sessions = drives(Path(folder), height, width)
        configs = [settings(args.student, height, width, windows) for windows in args.windows]
        train = Keyframes(sessions, preprocess_of(configs[0]))
        # Into memory, as training has them after its first steps.
        train.frames([0], images=True, clouds=True)
        rows = [measure(config, train, args.steps, args.compiled) for config in configs]
    return finish(args, "training_step", rows)


if __name__ == "__main__":
    main()
