"""What a step's objective is computed of: the crops of a batch, and the branches that see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import Heads, Prototypes


@dataclass(frozen=True)
class Batch:
    """The crops of B images and which of their patches are masked.

    Attributes:
        global_crops: (2B, 3, H, W), the first views of all images, then the second ones.
        local_crops: (V * B, 3, h, w), one local view of all images after the other; V may be 0.
        masks: bool (2B, tokens), the patches of the global crops that the students do not see.
        masked_patches: int64 (M,), the indices at which `masks.flatten()` is true.
        anchors: The Gram teacher's features of the patches of the global crops (2B, tokens, D_g); None without one.
    """

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    masked_patches: Tensor
    anchors: Tensor | None = None

    def __post_init__(self) -> None:
        crops, local, masks = len(self.global_crops), len(self.local_crops), len(self.masks)
        if crops % 2 or local % max(crops // 2, 1) or masks != crops:
            raise ValueError(
                f"{crops} global crops, {local} local crops and {masks} masks do not belong to one batch of images: "
                "give two global crops with a mask each and equally many local crops for every image."
            )

    @property
    def num_local_views(self) -> int:
        """V, the number of local crops of an image."""
        return 2 * len(self.local_crops) // len(self.global_crops)

    @property
    def patch_weights(self) -> Tensor:
        """Weights of the masked patches (M,), float32: those of one image add up to 1."""
        counts = self.masks.sum(dim=1).clamp(min=1)  # (2B,)
        return (1 / counts)[self.masked_patches // self.masks.shape[1]].float()


# The images' features (N, D) of crops, and one token for each entry of their masks (N, tokens, D).
ImageTokens = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Branch:
    """The teacher, the intact student or the elastic student.

    Attributes:
        features: Computes the features of crops (N, 3, H, W) with masks (N, tokens) or None.
        heads: The projection heads for features of width D.
        prototypes: The heads' prototypes. Both students have those of the intact student.
        packed: Computes, in one pass, the features of crops of several resolutions with masks or None for each of them;
            None if each resolution is a pass.
        start_last_pass: Is called before the last pass of a step (`GradientSums.start_last_pass`).
    """

    features: Callable[[Tensor, Tensor | None], ImageTokens]
    heads: Heads
    prototypes: Sequence[Prototypes]
    packed: Callable[[Sequence[Tensor], Sequence[Tensor | None]], Sequence[ImageTokens]] | None = None
    start_last_pass: Callable[[], None] | None = None

    def global_tokens(self, batch: Batch, masks: Tensor | None) -> Tensor:
        """Return the global crops' features, followed by the tokens of the masked patches (2B + M, D).

        With anchors, the tokens of all patches come last (2B * tokens, D).

        Args:
            batch: The step's crops; its masks say which tokens are returned.
            masks: bool (2B, tokens), the patches that this branch does not see; None if it sees all.
        """
        images, tokens = self.features(batch.global_crops, masks)  # (2B, D), (2B, tokens, D)
        return torch.cat([images, _masked(tokens, batch), *_anchored(tokens, batch)])

    def local_tokens(self, batch: Batch) -> Tensor:
        """Return the local crops' features (V * B, D)."""
        images, _ = self.features(batch.local_crops, None)
        return images

    def all_tokens(self, batch: Batch) -> Tensor:
        """Return the global and the local tokens (2B + M + V * B, D), computed in one pass.

        With anchors, the tokens of all patches of the global crops come last (2B * tokens, D).
        """
        assert self.packed is not None
        crops, masks = [batch.global_crops, batch.local_crops], [batch.masks, None]
        (images, tokens), (local_images, _) = self.packed(crops, masks)
        return torch.cat([images, _masked(tokens, batch), local_images, *_anchored(tokens, batch)])


def _masked(tokens: Tensor, batch: Batch) -> Tensor:
    """Return the tokens (M, D) of the masked patches, of those of all patches (2B, tokens, D)."""
    return tokens.flatten(0, 1).index_select(0, batch.masked_patches)


def _anchored(tokens: Tensor, batch: Batch) -> list[Tensor]:
    """Return the tokens (2B * tokens, D) of all patches in a list, which is empty if they have no anchors."""
    return [] if batch.anchors is None else [tokens.flatten(0, 1)]
