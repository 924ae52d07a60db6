"""Labelling sessions: every image through the network, its classes through the class map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from training.engine.fingerprints import weights_fingerprint
from training.labelling.class_maps import load_class_map
from training.labelling.networks import load_segmenter
from training.session_labels import SessionLabels, has_labels
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError


@dataclass(frozen=True)
class LabelConfig:
    """What labels the images.

    Attributes:
        network: a segmentation network: of torchvision by its name (deeplabv3_resnet50, lraspp_mobilenet_v3_large),
            or of transformers by its folder or hub name (nvidia/segformer-b0-finetuned-ade-512-512).
        classes: what the network tells apart: ade20k-150, cityscapes-19, voc-21, or a .csv with id,name,class.
        weights: file of a state dict for a torchvision network; without it torchvision's own are downloaded.
        short_side_px: size of the images for a torchvision network, pixels; transformers' bring their own.
        overwrite: replace labels that a session has; without it such sessions are left as they are.
    """

    network: str
    classes: str
    weights: str = ""
    short_side_px: int = 520
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.short_side_px < 32:
            raise ConfigError(f"label: short_side_px must be at least 32, got {self.short_side_px}")


def label_sessions(sessions: Sequence[Session], config: LabelConfig) -> list[str]:
    """Write semantic labels of the sessions; returns a line on each of them.

    A session that has labels is skipped unless ``config.overwrite``; one whose labelling was interrupted is gone on
    with, where network, weights and class map are the same.

    Raises:
        ConfigError: no such network or class map, or they do not fit.
        DataError: weights or images cannot be read, or labels not written.
        MissingDependencyError: the network's library is not installed.
    """
    wanted = [session for session in sessions if config.overwrite or not has_labels(session)]
    report = {session.name: f"{session.path}: has labels already" for session in sessions}
    if not wanted:
        return list(report.values())
    classes = load_class_map(config.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segment = load_segmenter(config.network, config.weights, classes, config.short_side_px, device)
    source = {
        "network": config.network,
        "weights_sha256": weights_fingerprint(segment.network),
        "short_side_px": config.short_side_px,
        "classes": config.classes,
        "classes_sha256": hashlib.sha256(classes.targets.tobytes()).hexdigest(),
    }
    with tqdm(total=sum(map(len, wanted)), desc="labelling", unit="image") as bar:
        for session in wanted:
            labels = SessionLabels(session, source)
            for index in range(len(session)):
                if not labels.has(index):
                    labels.add(index, classes.targets[segment(session.image(index))])
                bar.update()
            labels.finish()
            report[session.name] = f"{session.path}: {len(session) - labels.found} images labelled"
            if labels.found:
                report[session.name] += f", {labels.found} before"
    return list(report.values())
