"""Pre-training by transformers' own `Trainer`: a collator that makes batches, and a callback that moves the teacher.

`PoaTrainer` does more: crops in workers and colours on the device, schedules of the method, sizes drawn without
replacement, an exact resume, logs of collapse. This is for those who have a `Trainer` around which everything turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.augmentation import augment
from ..data.crop_arguments import CropArguments, usual_statistics
from ..data.crops import multi_crop
from ..data.decoding import open_lazily
from ..data.masks import block_masks
from ..data.rows import IndexedImages
from ..models.configuration_poa import PoaConfig
from ..models.moving_average import refuse_rounded_weights
from .optimization import cosine_schedule


class PoaDataCollator:
    """Turns rows with images into the arguments of `PoaForPreTraining`, with an elastic size drawn for each batch.

    Give `Trainer` the argument `remove_unused_columns=False`, so that it leaves the images to this collator. Everything
    random follows from torch's generator, which `Trainer` seeds, in workers too.

    Args:
        config: The configuration of the model.
        crops: How images are cropped, coloured and masked; the published way by default.
        teacher_temperature: Softmax temperature of the teacher.
        image_column: Name of the column with the images; needed unless exactly one holds images.

    Example:
        >>> from poa_hf import PoaConfig, PoaViTConfig, TextureDataset
        >>> crops = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=2)
        >>> config = PoaConfig(backbone_config=PoaViTConfig(image_size=32, patch_size=8))
        >>> batch = PoaDataCollator(config, crops)([TextureDataset()[0], TextureDataset()[1]])
        >>> batch["global_crops"].shape, batch["local_crops"].shape, batch["masks"].shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 3, 16, 16]), torch.Size([4, 16]))
    """

    def __init__(
        self,
        config: PoaConfig,
        crops: CropArguments | None = None,
        teacher_temperature: float = 0.07,
        image_column: str | None = None,
    ):
        self.crops = _with_statistics(crops or CropArguments(), config.backbone_config.num_channels)
        self.space, self.teacher_temperature = config.backbone_config.space, teacher_temperature
        self.grid = (self.crops.global_crop_size // config.backbone_config.patch_grid,) * 2
        self.image_column = image_column

    def __call__(self, rows: Sequence[Mapping[str, Any] | Any]) -> dict[str, Any]:
        """Return a batch of B images: global crops (2B, C, g, g), local crops (V * B, C, l, l), masks (2B, patches)."""
        args, rng = self.crops, np.random.default_rng(int(torch.randint(2**62, (1,))))
        images = IndexedImages(list(rows), self.image_column)
        parts = [multi_crop(self._opened(images, place), rng, args) for place in range(len(rows))]
        masks = block_masks(2 * len(rows), self.grid, rng, args.mask_ratio, args.mask_probability)
        drawn = {
            name: np.stack([parameters[name] for *_, parameters in parts], axis=1)  # (2 + V, B, ...)
            for name in parts[0][2]
        }
        batch: dict[str, Any] = {}
        stacked = (np.stack([crops[kind] for *crops, _ in parts], axis=1) for kind in (0, 1))  # (views, B, C, H, W)
        for name, views, crops in zip(
            ("global_crops", "local_crops"), (slice(2), slice(2, None)), stacked, strict=True
        ):
            pixels = torch.from_numpy(crops).flatten(0, 1)
            of_crops = {n: torch.from_numpy(a[views].reshape(-1, *a.shape[2:])) for n, a in drawn.items()}
            batch[name] = augment(pixels, of_crops, args.image_mean, args.image_std)
        trained = self.space.trained
        return batch | {
            "masks": torch.from_numpy(masks),
            "sub_network": trained[int(rng.integers(len(trained)))],
            "teacher_temperature": self.teacher_temperature,
        }

    def _opened(self, images: IndexedImages, place: int) -> Any:
        args = self.crops
        return open_lazily(images.row(place).image, args.max_image_pixels, args.num_channels, args.image_range)


def _with_statistics(crops: CropArguments, channels: int) -> CropArguments:
    """Return the arguments with a mean and a deviation for each channel, by default the usual ones."""
    if crops.num_channels == channels:
        return crops
    if not crops.has_default_statistics:
        raise ValueError(
            f"crops has an image_mean and image_std of {crops.num_channels} numbers, but the model takes {channels} "
            f"channels: give {channels} numbers."
        )
    mean, std = usual_statistics(channels)
    return dataclasses.replace(crops, image_mean=mean, image_std=std)


class TeacherCallback(TrainerCallback):
    """Moves the teacher of a `PoaForPreTraining` towards its student after each step of a `Trainer`.

    Args:
        momentum: Momentum of the moving average at the start of its cosine.
        final_momentum: Momentum at the end.

    Raises:
        ValueError: When the training begins, for weights of half precision, and for several GPUs in one process.
    """

    def __init__(self, momentum: float = 0.992, final_momentum: float = 0.9999):
        self.momentum, self.final_momentum = momentum, final_momentum

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        refuse_rounded_weights(kwargs["model"])
        if args.n_gpu > 1:
            raise ValueError(
                f"Trainer would cut each batch in {args.n_gpu} parts, one for each GPU, and so separate the two views "
                "of an image: start it by torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step - 1
        kwargs["model"].update_teacher(cosine_schedule(step, self.momentum, self.final_momentum, state.max_steps))
