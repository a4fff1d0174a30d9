"""A frozen model of another's as teacher: what it takes as input, and where its features are.

Any model that `AutoModel` loads will do if it computes features of images. What is read from its output:

- the image's feature: `pooler_output` if the model has one; else the class token; else the mean of the patches;
- the patches' features: `last_hidden_state`, a feature map (ConvNets) or tokens. The patches are the last tokens; the
  ones before them are class and register tokens.
"""

from __future__ import annotations

import copy
import inspect
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..formatting import one_line
from ..locations import shown_name
from ..objective.feature_matching import TeacherFeatures
from .flops import flop_counter
from .modeling_poa_pretraining import PoaForPreTraining
from .saved import load_saved_processor

_MOST_PREFIX_TOKENS = 64  # class and register tokens


class ForeignTeacher:
    """A frozen model whose features the students learn.

    Args:
        model: The model, which is set to evaluation mode and gets no gradients. Of a model of images and texts, the
            vision tower is taken; of a pre-training run, the teacher.
        name: What messages and records call it; by default the Hub id or the last part of the path that it came from.
        image_size: Side in pixels of the images that it is given; by default that of its image processor, else of its
            configuration, else that of the global crops.
        image_mean: Mean of each channel that it expects to be subtracted from pixels in 0..1; by default that of its
            image processor, else the same as in the run.
        image_std: Standard deviation of each channel; likewise.
        has_pooler: Whether its `pooler_output` is trained. It is not where a checkpoint lacks the pooler.

    Raises:
        ValueError: If it does not compute features of images.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str | None = None,
        image_size: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        has_pooler: bool = True,
    ):
        self.name = name or _name_of(model)
        self.model = _image_model(model, self.name).eval().requires_grad_(False)
        self.num_channels = int(getattr(self.model.config, "num_channels", 3))
        processor = _Processor.beside(model.name_or_path or "", self.num_channels)
        self.image_size = image_size or processor.image_size or _side(getattr(self.model.config, "image_size", None))
        self.image_mean, self.image_std = image_mean or processor.mean, image_std or processor.std
        self.image_features = self.patch_features = self.flops = 0  # `prepare` finds them out
        self.fingerprint = _fingerprint(self.model)
        self._has_pooler = has_pooler
        if self.image_size == _NOT_SQUARE:
            raise ValueError(
                f"{self.name} takes images that are not square, which the crops do not fit: give a teacher of square "
                "images, or a foreign_teacher_size."
            )

    def prepare(
        self,
        crop_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype | None = None,
        size_field: str = "foreign_teacher_size",
    ) -> None:
        """Put the model on its device, and find out which features it computes of the run's crops.

        Args:
            crop_size: Side of the global crops in pixels.
            image_mean: Mean that was subtracted from the crops.
            image_std: Standard deviation that the crops were divided by.
            device: Where the model runs.
            dtype: What the model computes in, by autocast; the weights of linear and convolution layers are rounded to
                it once. None computes in the type of the weights.
            size_field: The argument by which users set `image_size`.

        Raises:
            ValueError: If the model cannot take such images, or its features are not a function of them.
        """
        self.image_size = self.image_size or crop_size
        mean, std = self.image_mean or image_mean, self.image_std or image_std
        if not len(mean) == len(std) == len(image_mean) == self.num_channels:
            raise ValueError(
                f"{self.name} takes images of {self.num_channels} channels, and the crops have {len(image_mean)}: give "
                "a teacher for such images."
            )
        ours = [torch.tensor(list(values), device=device).view(1, -1, 1, 1) for values in (image_mean, image_std)]
        theirs = [torch.tensor(list(values), device=device).view(1, -1, 1, 1) for values in (mean, std)]
        # (crop * our std + our mean - their mean) / their std
        self._scale, self._shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        self._dtype = dtype
        if dtype is not None:
            self.model = copy.deepcopy(self.model)  # the caller's keeps its weights
            for module in self.model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(dtype)
        self.model.to(device)
        self._probe(crop_size, device, size_field)

    def _probe(self, crop_size: int, device: torch.device, size_field: str) -> None:
        """Run the model on noise, and take note of the sizes of its features."""
        size = self.image_size
        crops = torch.rand(1, self.num_channels, crop_size, crop_size, generator=torch.Generator().manual_seed(0))
        crops = crops.to(device)
        try:
            with flop_counter() as counter:
                images, patches = self._features(crops)
            again, _ = self._features(crops)
        except Exception as error:  # a model that was made for something else can fail in any way
            reason = one_line(error, 150)
            raise ValueError(
                f"{self.name} cannot compute features of images of {size}x{size} pixels ({reason}): give another "
                f"{size_field}, or another teacher."
            ) from error
        if not torch.equal(images, again):
            raise ValueError(
                f"{self.name} computes other features of the same image each time, as models do that mask patches at "
                "random: give a teacher that does not, such as its encoder as a plain model."
            )
        self.flops = counter.get_total_flops()
        self.image_features = images.shape[-1]
        self.patch_features = 0 if patches is None else patches.shape[1]

    @torch.no_grad()
    def __call__(self, crops: Tensor, grid: tuple[int, int] | None) -> TeacherFeatures:
        """Compute the features of crops.

        Args:
            crops: (N, C, H, W), normalised as `prepare` was told.
            grid: Height and width of the students' grid of patches, to which the features of patches are resized; None
                for images only.
        """
        images, patches = self._features(crops)
        if grid is None or patches is None:
            return TeacherFeatures(images)
        if patches.shape[-2:] != grid:
            # the mean of what a larger square shows, or values between those of smaller ones
            patches = F.interpolate(patches, size=grid, mode="bilinear", antialias=True)
        return TeacherFeatures(images, patches.flatten(2).transpose(1, 2))

    @torch.no_grad()
    def _features(self, crops: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features of images (N, D) and of patches (N, D, height, width), if there are any, in float32."""
        pixels = crops * self._scale + self._shift
        size = self.image_size
        if size is not None and pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
        with torch.autocast(pixels.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            output = self.model(pixel_values=pixels.to(self.model.dtype), **self._options())
        hidden = getattr(output, "last_hidden_state", None)
        patches, class_token = (None, None) if hidden is None else self._split(hidden, pixels.shape[-2:])
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._has_pooler:
            images = pooled.flatten(1)
        elif class_token is not None:
            images = class_token
        elif patches is not None:
            images = patches.mean(dim=(-2, -1))
        else:
            raise ValueError("its output has neither pooler_output nor tokens of a square image")
        return images.float(), None if patches is None else patches.float()

    def _options(self) -> dict[str, Any]:
        """Return what the model needs for images of another size than those of its position embeddings."""
        own_size = _side(getattr(self.model.config, "image_size", None))
        takes = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        return {"interpolate_pos_encoding": True} if takes and own_size != self.image_size else {}

    def _split(self, hidden: Tensor, size: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """Return the feature map (N, D, height, width) and the class token (N, D) in a last hidden state."""
        if hidden.dim() == 4:
            return hidden, None
        grid = self._grid(hidden.shape[1], size)
        if grid is None:
            return None, None
        height, width = grid
        num_prefix = hidden.shape[1] - height * width
        patches = hidden[:, num_prefix:].transpose(1, 2).unflatten(2, (height, width))
        return patches, hidden[:, 0] if num_prefix else None

    def _grid(self, num_tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
        """Return how many patches lie in a column and in a row; None if the tokens are not a grid."""
        patch = _side(getattr(self.model.config, "patch_size", None))
        if patch is not None and patch > 0:
            height, width = size[0] // patch, size[1] // patch
            if 0 <= num_tokens - height * width <= _MOST_PREFIX_TOKENS:
                return height, width
        # stages that halve the grid (Swin), and models that do not say how large their patches are
        for num_prefix in range(min(_MOST_PREFIX_TOKENS, num_tokens - 1) + 1):
            side = math.isqrt(num_tokens - num_prefix)
            if side * side == num_tokens - num_prefix:
                return side, side
        return None


def _image_model(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the part of a model that computes features of images."""
    if isinstance(model, PoaForPreTraining):
        return model.teacher
    tower = getattr(model, "vision_model", None)
    model = tower if isinstance(tower, PreTrainedModel) and "pixel_values" != model.main_input_name else model
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{name} is a {model.config.model_type!r} model, which does not take images: give a vision model as "
            "teacher."
        )
    return model


def _fingerprint(model: nn.Module) -> str:
    """Return a checksum of the first values of every parameter."""
    checksum = 0
    for name, tensor in sorted(model.state_dict().items()):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensor.flatten()[:1024].float().cpu().numpy().tobytes(), checksum)
    return f"{checksum:08x}"


def _name_of(model: PreTrainedModel) -> str:
    path = model.name_or_path
    if not path:
        return type(model).__name__
    return shown_name(path) if Path(path).expanduser().is_dir() else path


_NOT_SQUARE = -1


def _side(size: Any) -> int | None:
    """Return the side of a square as configurations and image processors write it."""
    if isinstance(size, list | tuple):
        sides = {*size}
        return _NOT_SQUARE if len(sides) != 1 else _side(sides.pop())
    return size if type(size) is int and size > 0 else None


class _Processor:
    """What a saved image processor does to the pixels, as far as it matters here."""

    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @classmethod
    def beside(cls, location: str | Path, num_channels: int) -> _Processor:
        """Read the processor that was saved beside a model; one without values if there is none."""
        values = cls()
        try:
            processor: Any = load_saved_processor(location) if str(location) else None
        except ValueError:
            processor = None
        if processor is None:
            return values
        for name in ("crop_size", "size"):
            size = dict(getattr(processor, name, None) or {})
            sides = [size.get("height"), size.get("width")]
            if name == "crop_size" and not getattr(processor, "do_center_crop", False):
                continue
            values.image_size = values.image_size or _side(sides if all(sides) else size.get("shortest_edge"))
        # pixels in 0..1 are multiplied by this
        factor = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0)
        mean, std = processor.image_mean, processor.image_std
        if not getattr(processor, "do_normalize", True) or mean is None or std is None:
            mean, std = [0.0] * num_channels, [1.0] * num_channels
        values.mean = [value / factor for value in mean]
        values.std = [value / factor for value in std]
        return values
