"""Geometric verification: do two pictures show the same things from nearby?

Local features (SIFT) are matched between an image and the picture of a place, ambiguous matches are left out by Lowe's
ratio test (Distinctive image features from scale-invariant keypoints, IJCV 2004, section 7.1), and RANSAC counts how
many of the rest agree on one epipolar geometry. It is the second stage that StructVPR and others add to retrieval; here
it only refuses: a match that retrieval accepted stands if the picture of one of its best places agrees.

The pictures of a map are ``vpr_kd_ros.place_map.THUMBNAIL_WIDTH`` pixels wide, which is enough for detailed views a few
metres apart in alike light. Smaller ones are not: of 128 x 96 pixel frames of the simulated town, the same spot on two
sunny days gives 9 inliers in the median (16 and more in one frame of ten), and another spot up to 8. Other weather or
another season needs pictures of 320 pixels and more, and still refuses much that is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError

FUNDAMENTAL = 8
"""Matches that determine an epipolar geometry; fewer agree on anything."""


@dataclass(frozen=True)
class VerificationConfig:
    """When two pictures show the same.

    Attributes:
        places: pictures of so many places of an answer are compared, the best first; 0 turns verification off.
        min_inliers: so many matches must agree on one geometry. ``FUNDAMENTAL`` of them always do.
        ratio: a match counts where its distance is below this share of the second best's, in (0, 1).
        tolerance_px: distance to the epipolar line, pixels of the smaller picture.
        max_features: of each picture.
    """

    places: int = 0
    min_inliers: int = 16
    ratio: float = 0.8
    tolerance_px: float = 1.5
    max_features: int = 500

    def __post_init__(self) -> None:
        if self.places < 0:
            raise ConfigError(f"places: {self.places} must not be negative")
        if self.min_inliers <= FUNDAMENTAL:
            raise ConfigError(
                f"min_inliers: {self.min_inliers} must be above {FUNDAMENTAL}: so few agree by themselves"
            )
        if not 0 < self.ratio < 1:
            raise ConfigError(f"ratio: {self.ratio} must be in (0, 1)")
        if not self.tolerance_px > 0:
            raise ConfigError(f"tolerance_px: {self.tolerance_px} must be positive")
        if self.max_features <= self.min_inliers:
            raise ConfigError(f"max_features: {self.max_features} must be above min_inliers, {self.min_inliers}")


class Verifier:
    """Compares pictures. Not safe to use from several threads."""

    def __init__(self, config: VerificationConfig) -> None:
        self.config = config
        self._sift = cv2.SIFT.create(nfeatures=config.max_features)
        self._matcher = cv2.BFMatcher(cv2.NORM_L2)

    def inliers(self, image: NDArray[np.uint8], picture: NDArray[np.uint8]) -> int:
        """How many local features of two RGB images, (H, W, 3) uint8, agree on one geometry.

        The wider image is scaled down to the other's width.
        """
        width = min(image.shape[1], picture.shape[1])
        points, features = self._describe(image, width)
        others, known = self._describe(picture, width)
        if min(len(points), len(others)) <= FUNDAMENTAL:
            return 0
        pairs = self._matcher.knnMatch(features, known, k=2)
        chosen = [first for first, second in pairs if first.distance < self.config.ratio * second.distance]
        # One feature of the picture may be the best match of many of the image: the nearest keeps it.
        best = {match.trainIdx: match for match in sorted(chosen, key=lambda match: -match.distance)}
        if len(best) <= FUNDAMENTAL:
            return 0
        here = points[[match.queryIdx for match in best.values()]]
        there = others[[match.trainIdx for match in best.values()]]
        cv2.setRNGSeed(0)
        _, agreed = cv2.findFundamentalMat(here, there, cv2.FM_RANSAC, self.config.tolerance_px, 0.999, 1000)
        return 0 if agreed is None else int(agreed.sum())

    def _describe(self, image: NDArray[np.uint8], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points (n, 2), pixels, and features (n, 128) of an image scaled to a width."""
        if image.shape[1] > width:
            height = max(1, round(image.shape[0] * width / image.shape[1]))
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        found, features = self._sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        points = np.array([keypoint.pt for keypoint in found], dtype=np.float32).reshape(-1, 2)
        return points, np.asarray(np.empty((0, 128)) if features is None else features, dtype=np.float32)
