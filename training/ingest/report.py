"""What came of a bag, in plain text."""

from __future__ import annotations

import numpy as np

from training.ingest.ingest import Outcome

BINS = 11
WIDTH = 40
FINEST_MS = 1.0  # no bins below: stamps are not worth more


def report(outcome: Outcome) -> str:
    """Lines on keyframes, drops, camera-LiDAR offsets and notices."""
    info = outcome.info
    lines = [f"{outcome.session}: {outcome.keyframes} keyframes" + ("" if outcome.written else " (unchanged)")]
    lines.append("  topics: " + ", ".join(f"{role} {topic}" for role, topic in info.topics.items()))
    lines.append(f"  poses: {'in frame ' + repr(info.frame_id) if info.frame_id else 'none (unlabelled)'}")
    images = outcome.keyframes + sum(info.drops.values())
    lines.append(f"  of {images} images:")
    lines.extend(f"    {count:>8} {reason}" for reason, count in sorted(info.drops.items(), key=lambda d: -d[1]))
    lines.append(f"    {outcome.keyframes:>8} keyframes")
    lines.extend("  " + line for line in histogram(info.offsets_ms))
    lines.extend(f"  NOTICE {notice}" for notice in outcome.notices)
    return "\n".join(lines)


def histogram(offsets_ms: list[float]) -> list[str]:
    """Text histogram of camera minus LiDAR stamps; the outermost 1 % of each side are in the end bins."""
    if not offsets_ms:
        return []
    values = np.array(offsets_ms)
    low, high = np.percentile(values, [1, 99])
    lines = [f"camera minus LiDAR stamp, ms: median {np.median(values):.1f}, most between {low:.1f} and {high:.1f}"]
    if high - low < FINEST_MS:
        return lines
    edges = np.linspace(low, high, BINS + 1)
    counts = np.bincount(np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1), minlength=BINS)
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * round(WIDTH * count / counts.max())
        lines.append(f"  {left:9.1f} .. {right:9.1f} {bar} {count}")
    return lines
