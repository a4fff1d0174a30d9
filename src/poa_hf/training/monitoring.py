"""Signs of collapse in the teacher's features, and the words to say it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_statistics(features: Tensor) -> dict[str, float]:
    """How far apart features (N, D) lie.

    `feature_spread`: standard deviation of the L2-normalised features over the images, times sqrt(D) (SimSiam,
    arXiv 2011.10566): 0 when all images have one feature, 1 when directions are uniform.
    `effective_rank`: exponential of the entropy of the normalised singular values of the centred features (Roy and
    Vetterli, 2007): the number of directions in use, at most min(N - 1, D).
    """
    features = F.normalize(features.float(), dim=-1)
    spread = features.std(dim=0, unbiased=False).square().mean().sqrt() * features.shape[1] ** 0.5
    singular_values = torch.linalg.svdvals(features - features.mean(dim=0))
    shares = singular_values / singular_values.sum().clamp(min=1e-12)
    return {"feature_spread": spread.item(), "effective_rank": torch.special.entr(shares).sum().exp().item()}


def collapse_warning(statistics: dict[str, float]) -> str | None:
    """A sentence when the logged statistics say that training has collapsed, else None."""
    remedy = "lower the learning rate or raise koleo_weight."
    if statistics["feature_spread"] < 0.02:
        return f"Collapse: the teacher gives every image almost one feature (feature_spread below 0.02); {remedy}"
    if statistics["effective_rank"] < 2:
        return f"Collapse: the teacher's features vary in almost one direction (effective_rank below 2); {remedy}"
    flat = [name for name, value in statistics.items() if name.startswith("teacher_entropy") and value > 0.999]
    if flat:
        return (
            f"Collapse: the teacher's targets are uniform ({', '.join(flat)} above 0.999), so that its prototypes do "
            "not tell images apart; lower teacher_temperature or the learning rate."
        )
    return None
