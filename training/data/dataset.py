"""All keyframes of several sessions, numbered through."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.sessions import Session, require_one_origin
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Ints
from vpr_kd_ros.preprocess import Preprocess


@dataclass(frozen=True)
class Frames:
    """The raw inputs of some keyframes, before augmentation.

    Attributes:
        images: (B, 3, H, W) uint8, resized, or None when nobody asked for images.
        clouds: B tensors (M_i, 3) float32, metres, or None likewise.
        labels: (B, H, W) uint8, the semantic class of each pixel (``training.sessions.CLASSES``), or None likewise.
    """

    images: torch.Tensor | None
    clouds: list[torch.Tensor] | None
    labels: torch.Tensor | None


class Keyframes:
    """Keyframes of several sessions under one numbering, with their inputs in memory.

    Resized images are small (96 x 128: 37 kB; 240 x 320: 230 kB), so that a data set of tens of thousands fits; they
    are read once, when first asked for.

    Args:
        sessions: in the order that numbers the keyframes.
        preprocess: resizes the images and gives the labels' size; None when only clouds are wanted.

    Attributes:
        positions, yaws: (N, 3) float64, metres, and (N,) float64, radians, in the frame of the region; NaN where there
            is no pose.
        labelled: (N,) bool, which have a pose.
        surveyed: (N,) bool, which have it from their session and not from a teacher (``with_poses``).
        session_of, frame_of, region_of: (N,) int64, of each its session, its number in it, and its region.

    Raises:
        DataError: there is no keyframe, surveyed sessions of one region count their metres from different origins, or
            clouds or labels are wanted and a session has none (on first use).
    """

    def __init__(self, sessions: Sequence[Session], preprocess: Preprocess | None) -> None:
        self.sessions = list(sessions)
        self.preprocess = preprocess
        lengths = [len(session) for session in self.sessions]
        if sum(lengths) == 0:
            raise DataError("the sessions hold no keyframe")
        require_one_origin(self.sessions)
        self.session_of: Ints = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        self.frame_of: Ints = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
        regions = {name: number for number, name in enumerate(sorted({s.region for s in self.sessions}))}
        self.region_of: Ints = np.array([regions[s.region] for s in self.sessions], dtype=np.int64)[self.session_of]
        self.positions: Floats = np.concatenate([s.positions for s in self.sessions])
        self.yaws: Floats = np.concatenate([s.yaws for s in self.sessions])
        self.labelled: NDArray[np.bool_] = np.asarray(np.isfinite(self.positions).all(axis=1))
        self.surveyed = self.labelled
        self._images: torch.Tensor | None = None
        self._clouds: list[torch.Tensor] | None = None
        self._labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.session_of)

    def with_poses(self, positions: Floats, yaws: Floats) -> Keyframes:
        """The same keyframes with other poses: (N, 3) and (N,) float64. ``surveyed`` stays."""
        other = copy.copy(self)
        other.positions, other.yaws = positions, yaws
        other.labelled = np.asarray(np.isfinite(positions).all(axis=1))
        return other

    def seen_by(self, preprocess: Preprocess) -> Keyframes:
        """The same sessions with images and labels of another size; these very keyframes where the size is theirs."""
        return self if preprocess == self.preprocess else Keyframes(self.sessions, preprocess)

    @property
    def images(self) -> torch.Tensor:
        """(N, 3, H, W) uint8, resized; read on first use."""
        if self._images is None:
            preprocess = self._preprocess()
            with ThreadPoolExecutor() as pool:
                reads = pool.map(lambda i: preprocess.resize(self._session(i).image(self._frame(i))), range(len(self)))
                reads = iter(tqdm(reads, "reading images", len(self), unit="image", leave=False))
                first = next(reads)
                # Into one tensor as they come: a list of them beside it would take the room twice.
                images = first.new_empty(len(self), *first.shape)
                images[0] = first
                for row, image in enumerate(reads, start=1):
                    images[row] = image
                self._images = images
        return self._images

    @property
    def clouds(self) -> list[torch.Tensor]:
        """N tensors (M_i, 3) float32, metres; read on first use."""
        if self._clouds is None:
            without = [s.name for s in self.sessions if not s.has_clouds]
            if without:
                raise DataError(f"LiDAR clouds are needed, but these sessions have none: {', '.join(without)}")
            with ThreadPoolExecutor() as pool:
                reads = pool.map(lambda i: torch.from_numpy(self._session(i).cloud(self._frame(i))), range(len(self)))
                self._clouds = list(tqdm(reads, "reading clouds", len(self), unit="cloud", leave=False))
        return self._clouds

    @property
    def labels(self) -> torch.Tensor:
        """(N, H, W) uint8, the semantic class of each pixel, the nearest one where resized; read on first use."""
        if self._labels is None:
            preprocess = self._preprocess()
            without = [s.name for s in self.sessions if not s.has_semantics]
            if without:
                raise DataError(
                    f"semantic labels are needed, but these sessions have none: {', '.join(without)}; simulate "
                    "sessions, which have them, or write some with `python -m training label`"
                )
            with ThreadPoolExecutor() as pool:
                reads = pool.map(lambda i: self._read_labels(i, preprocess), range(len(self)))
                self._labels = torch.stack(list(tqdm(reads, "reading labels", len(self), unit="image", leave=False)))
        return self._labels

    def frames(
        self, indices: Sequence[int] | Ints, images: bool = False, clouds: bool = False, labels: bool = False
    ) -> Frames:
        """The inputs of the keyframes at ``indices``."""
        rows = np.asarray(indices, dtype=np.int64)
        return Frames(
            images=self.images[torch.from_numpy(rows)] if images else None,
            clouds=[self.clouds[i] for i in rows] if clouds else None,
            labels=self.labels[torch.from_numpy(rows)] if labels else None,
        )

    def _preprocess(self) -> Preprocess:
        if self.preprocess is None:
            raise DataError("these keyframes were opened without images")
        return self.preprocess

    def _read_labels(self, index: int, preprocess: Preprocess) -> torch.Tensor:
        semantics = self._session(index).semantics(self._frame(index))
        assert semantics is not None
        return torch.nn.functional.interpolate(
            torch.from_numpy(semantics)[None, None], size=(preprocess.height, preprocess.width), mode="nearest-exact"
        )[0, 0]

    def _session(self, index: int) -> Session:
        return self.sessions[int(self.session_of[index])]

    def _frame(self, index: int) -> int:
        return int(self.frame_of[index])
