"""Gram anchoring: the similarities of an image's patches to each other stay those that an earlier teacher sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def gram_matrix(features: Tensor) -> Tensor:
    """Return the cosine similarities of the patches of each image to each other (N, patches, patches).

    Args:
        features: Features of patches (N, patches, D).
    """
    features = normalize(features, dim=-1)
    return features @ features.transpose(-1, -2)


def gram_loss(features: Tensor, anchors: Tensor) -> Tensor:
    """Return the mean squared difference of the Gram matrices of two models (arXiv 2508.10104, section 4.2).

    With normalised features X_S of a student and X_G of the Gram teacher, it is the paper's `|X_S X_S^T - X_G X_G^T|^2`
    (Frobenius norm) over the number of entries, the mean over the images, as in the code of its authors. The matrices
    do not depend on the number of channels or their order, so that students of any width have the same anchors.

    Args:
        features: The student's features of patches (N, patches, D).
        anchors: Those of the Gram teacher (N, patches, D_g), of the same patches.

    Returns:
        A scalar, in float32 or in the precision of the features if that is higher.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return (gram_matrix(features) - gram_matrix(anchors.to(features.dtype))).square().mean()
