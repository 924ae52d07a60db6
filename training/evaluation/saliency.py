"""Where a network looks: which parts of an image make it alike to its match (DistilVPR, Fig. 3)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from training.models import EmbeddingModel
from training.models.maps import captured_maps
from vpr_kd_ros.preprocess import Preprocess


def saliency(
    model: EmbeddingModel, preprocess: Preprocess, query: NDArray[np.uint8], match: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Grad-CAM of the cosine between two images' descriptors (Selvaraju et al., ICCV 2017, Eqs. 1 and 2).

    The paper does not say how its maps are made; this is the usual way, with the similarity to the right match in the
    place of a class score, on the network's last feature map.

    Args:
        model: reads images only, in evaluation mode.
        preprocess: of its images.
        query, match: RGB uint8 (H, W, 3).

    Returns:
        (H, W) float32 in [0, 1], of the query; all zero where nothing speaks for the match.

    Raises:
        ConfigError: the model makes no feature maps.
    """
    pixels = preprocess.normalise(torch.stack([preprocess.resize(image) for image in (query, match)]))
    with torch.enable_grad(), captured_maps(model) as maps:
        # A model that is frozen in part makes maps without a gradient from an image without one.
        descriptors = F.normalize(model(pixels.requires_grad_()), dim=1)
        last = maps[-1]
        (gradient,) = torch.autograd.grad(descriptors[0] @ descriptors[1].detach(), last)
    weights = gradient[0].mean(dim=(1, 2))
    heat = F.relu((weights[:, None, None] * last[0].detach()).sum(dim=0))
    heat = heat / heat.max().clamp_min(1e-12)
    size = query.shape[:2]
    return np.asarray(F.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0])
