"""A model and a batch, and passes of its backbones, on which step_pairs.py compares the parts of a step."""

from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
from poa_hf.data.masks import block_masks

from .plain_losses import Tokens

PRESETS = {
    "cpu": dict(
        backbone=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=112),
        heads=dict(num_prototypes=[1024, 2048], head_hidden_size=512),
        batch=16, sides=(112, 48), num_local=8, size="192x6",
    ),
    "tiny": dict(
        backbone=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32,
                      min_num_hidden_layers=1, image_size=32),
        heads=dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32),
        batch=4, sides=(32, 16), num_local=8, size="32x1",
    ),
    # both ways of all parts fit into 80 GB
    "vit_large": dict(backbone={}, heads={}, batch=16, sides=(224, 96), num_local=8, size="small"),
}  # fmt: skip
DROP_RATE = 0.2
MASK_RATIO = (0.1, 0.5)
BF16_TOLERANCE = 0.2
RESIDUAL = "poa_hf.models.elastic_vit_model.add_residual"


class StepSetup:
    """A model with one backbone that drops images in blocks (stochastic depth) and one that does not, and a batch."""

    def __init__(self, preset: str, batch: int | None, bf16: bool, device: torch.device):
        preset = PRESETS[preset]
        self.device, self.bf16, self.batch = device, bf16, batch or preset["batch"]
        self.sides, self.num_local = preset["sides"], preset["num_local"]
        torch.manual_seed(0)
        # LayerScale as after training, so that the blocks count in what is compared
        self.model, self.dropping = (
            PoaForPreTraining(
                PoaConfig(
                    backbone_config=PoaViTConfig(drop_path_rate=rate, layerscale_value=0.1, **preset["backbone"]),
                    **preset["heads"],
                )
            ).to(device).train()
            for rate in (0.0, DROP_RATE)
        )  # fmt: skip
        space = self.model.config.backbone_config.space
        self.full, self.size = space.full, space.resolve(preset["size"])
        self.global_crops, self.local_crops = (
            torch.randn(count * self.batch, 3, side, side, device=device)
            for count, side in zip((2, self.num_local), self.sides, strict=True)
        )
        grid = (self.sides[0] // self.model.config.backbone_config.patch_size,) * 2
        masks = torch.from_numpy(block_masks(2 * self.batch, grid, np.random.default_rng(0), MASK_RATIO))
        places = masks.flatten().nonzero().squeeze(1)
        weights = (1 / masks.sum(dim=1).clamp(min=1))[places // masks.shape[1]]
        self.masks, self.places, self.patch_weights = (tensor.to(device) for tensor in (masks, places, weights))
        # the rows of DINOv2's buffer, which holds as many as the masks' shares allow at most
        edges = np.linspace(*MASK_RATIO, self.batch + 1)[1:]
        self.most_masked = int((masks.shape[1] * edges).astype(int).sum())
        self._gradients: dict[tuple, Tensor] = {}

    def autocast(self, bf16: bool | None = None):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 if bf16 is None else bf16)

    def features(self, backbone, local_crops: Tensor, masks: Tensor | None = None, per_crop=False) -> Tokens:
        def passes(crops: Tensor, masks: Tensor | None = None):
            rows = self.batch if per_crop else max(1, len(crops))
            for start in range(0, len(crops), rows):
                part = slice(start, start + rows)
                output = backbone(crops[part], **({} if masks is None else {"bool_masked_pos": masks[part]}))
                yield self.model.student.image_tokens(output)

        global_, patches = (torch.cat(outputs) for outputs in zip(*passes(self.global_crops, masks), strict=True))
        local = torch.cat([global_[:0], *(features for features, _ in passes(local_crops))])
        return Tokens(global_, local, patches.flatten(0, 1)[self.places])

    @torch.no_grad()
    def teacher(self, backbone=None, local=False) -> list[Tensor]:
        """Return the features that the loss reads."""
        local_crops = self.local_crops if local else self.local_crops[:0]
        with self.autocast():
            features = self.features(self.model.teacher if backbone is None else backbone, local_crops)
        return [features.global_, features.masked]

    def trained(self, student, backbone=None, per_crop=False, bf16=None, residual=None) -> list[Tensor]:
        """Run a forward and backward pass of all crops, and return features and gradients of the student."""
        torch.manual_seed(0)  # the same images are dropped
        with patch(RESIDUAL, residual) if residual else nullcontext():
            with self.autocast(bf16):
                backbone = student if backbone is None else backbone
                features = self.features(backbone, self.local_crops, self.masks, per_crop)
            torch.autograd.backward(features, [self.gradient(tensor) for tensor in features])
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        student.zero_grad()
        return [*(tensor.detach() for tensor in features), *gradients]

    def gradient(self, tensor: Tensor) -> Tensor:
        key = (tensor.shape, tensor.dtype)
        if key not in self._gradients:
            generator = torch.Generator(self.device).manual_seed(0)
            self._gradients[key] = torch.randn(tensor.shape, generator=generator, device=self.device).to(tensor.dtype)
        return self._gradients[key]
