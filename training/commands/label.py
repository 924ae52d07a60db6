"""``python -m training label``."""

from __future__ import annotations

import jsonargparse

from training.commands._options import config_of
from training.labelling.label import LabelConfig, label_sessions
from training.sessions import load_sessions

DESCRIPTION = """Write the semantic class of every pixel of a session's images (labels/*.png; vegetation, dynamic, sky,
ground, buildings, other), told by a segmentation network of your choice. structvpr-seg learns from them. An interrupted
run is gone on with by the same command.

Examples:
python -m training label sessions/train --network nvidia/segformer-b0-finetuned-ade-512-512 --classes ade20k-150
python -m training label sessions/train --network deeplabv3_resnet50 --weights cityscapes.pth --classes cityscapes-19

Without a network connection: fetch the network elsewhere with `hf download NAME --local-dir FOLDER` and give
--network FOLDER, or download the weights of a torchvision network and give --weights FILE."""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training label", description=DESCRIPTION)
    result.add_argument("sessions", type=str, nargs="+", help="session folders, or folders of sessions")
    result.add_class_arguments(LabelConfig, None)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Label the sessions and print what came of each."""
    print("\n".join(label_sessions(load_sessions(args.sessions), config_of(LabelConfig, parser(), args))))
