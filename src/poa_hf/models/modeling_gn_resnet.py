"""The plain GroupNorm ResNet: encoder, image classifier and backbone.

The parameters are named as in transformers' ResNet. This file and `configuration_gn_resnet.py` travel with published
models: they import nothing of poa_hf.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple

from .configuration_gn_resnet import GnResNetConfig


class GnResNetConvLayer(nn.Module):
    """Convolution without bias, padded to keep the size of its input (over the stride), GroupNorm and activation."""

    def __init__(
        self,
        config: GnResNetConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        has_activation: bool = True,
    ):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )
        self.normalization = nn.GroupNorm(config.num_groups, out_channels, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act] if has_activation else nn.Identity()

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(hidden_state)))


class GnResNetEmbeddings(nn.Module):
    """The stem: a convolution and a max pooling, each of which halves the resolution."""

    def __init__(self, config: GnResNetConfig):
        super().__init__()
        self.embedder = GnResNetConvLayer(config, config.num_channels, config.embedding_size, kernel_size=7, stride=2)
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return (B, embedding_size, H/4, W/4) of images (B, num_channels, H, W)."""
        return self.pooler(self.embedder(pixel_values))


class GnResNetShortCut(nn.Module):
    """Projects a block's input to the shape of its output."""

    def __init__(self, config: GnResNetConfig, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.normalization = nn.GroupNorm(config.num_groups, out_channels, eps=config.layer_norm_eps)

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.normalization(self.convolution(hidden_state))


class GnResNetBottleneck(GradientCheckpointingLayer):
    """A 1x1, a 3x3 and a 1x1 convolution around a shortcut.

    The 3x3 convolution has the stride, as in torchvision and timm ("v1.5"), not the first 1x1 one as in the paper.
    """

    def __init__(
        self, config: GnResNetConfig, in_channels: int, middle_channels: int, out_channels: int, stride: int = 1
    ):
        super().__init__()
        has_shortcut = in_channels != out_channels or stride != 1
        self.shortcut = GnResNetShortCut(config, in_channels, out_channels, stride) if has_shortcut else nn.Identity()
        self.layer = nn.Sequential(
            GnResNetConvLayer(config, in_channels, middle_channels),
            GnResNetConvLayer(config, middle_channels, middle_channels, kernel_size=3, stride=stride),
            GnResNetConvLayer(config, middle_channels, out_channels, has_activation=False),
        )
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.activation(self.layer(hidden_state) + self.shortcut(hidden_state))


class GnResNetStage(nn.Module):
    """The blocks of one resolution; in all stages but the first, the first block halves it."""

    def __init__(self, config: GnResNetConfig, stage: int):
        super().__init__()
        in_channels, out_channels = [config.embedding_size, *config.hidden_sizes][stage : stage + 2]
        middle = config.middle_widths[stage]
        first = GnResNetBottleneck(config, in_channels, middle, out_channels, stride=1 if stage == 0 else 2)
        others = (
            GnResNetBottleneck(config, out_channels, middle, out_channels) for _ in range(1, config.depths[stage])
        )
        self.layers = nn.Sequential(first, *others)

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.layers(hidden_state)


class GnResNetEncoder(nn.Module):
    """The stages, one after the other."""

    def __init__(self, config: GnResNetConfig):
        super().__init__()
        self.stages = nn.ModuleList(GnResNetStage(config, stage) for stage in range(config.num_stages))

    def forward(
        self, hidden_state: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return the last stage's output and, where asked for, the stem's and the output of every stage."""
        hidden_states = [hidden_state]
        for stage in self.stages:
            hidden_state = stage(hidden_state)
            if output_hidden_states:
                hidden_states.append(hidden_state)
        return hidden_state, tuple(hidden_states) if output_hidden_states else None


class GnResNetPreTrainedModel(PreTrainedModel):
    """What the models have in common: configuration and initialisation."""

    config_class = GnResNetConfig
    config: GnResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in models of transformers
    supports_gradient_checkpointing = True
    _no_split_modules = ["GnResNetEmbeddings", "GnResNetBottleneck"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):  # as in nn.Linear.reset_parameters
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)  # GroupNorm: ones and zeros


class GnResNetModel(GnResNetPreTrainedModel):
    """The encoder, without a classifier."""

    def __init__(self, config: GnResNetConfig):
        super().__init__(config)
        self.embedder = GnResNetEmbeddings(config)
        self.encoder = GnResNetEncoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Return the features of images (shapes for four stages).

        Args:
            pixel_values: (B, num_channels, H, W).
            output_hidden_states: Whether to return the output of the stem and of every stage.
            kwargs: Ignored.

        Returns:
            `last_hidden_state` (B, D, H/32, W/32) with D = hidden_sizes[-1]; `pooler_output` (B, D), its mean over all
            positions (transformers' `ResNetModel` adds two axes of size 1); `hidden_states`, if asked for, the first of
            which is the stem's (B, embedding_size, H/4, W/4).
        """
        return self.encode(self.embedder(pixel_values), output_hidden_states)

    def encode(
        self, embeddings: Tensor, output_hidden_states: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Return the output of `forward` from that of the stem (B, embedding_size, H/4, W/4)."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last_hidden_state, hidden_states = self.encoder(embeddings, output_hidden_states)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last_hidden_state,
            pooler_output=last_hidden_state.mean(dim=(2, 3)),
            hidden_states=hidden_states,
        )


class GnResNetForImageClassification(GnResNetPreTrainedModel):
    """The encoder and a linear classifier on its `pooler_output`.

    With `num_labels=0` in the configuration there is no classifier, and the logits are the features.

    Example:
        >>> import torch
        >>> config = GnResNetConfig(hidden_sizes=[32, 64], depths=[1, 1], base_width=32, num_groups=8, num_labels=5)
        >>> model = GnResNetForImageClassification(config).eval()
        >>> output = model(torch.rand(2, 3, 64, 64), labels=torch.tensor([0, 4]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([2, 5]), torch.Size([]))
    """

    def __init__(self, config: GnResNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.resnet = GnResNetModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """Return `logits` (B, num_labels) and, with labels, the `loss`.

        Args:
            pixel_values: (B, num_channels, H, W).
            labels: (B,), or (B, num_labels) for regression and several labels per image.
            output_hidden_states: Whether to return the output of the stem and of every stage.
            kwargs: Further arguments of the loss function.
        """
        outputs = self.resnet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        # kwargs has the number of images by which Trainer divides when it accumulates gradients
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class GnResNetBackbone(BackboneMixin, GnResNetPreTrainedModel):
    """The encoder as a backbone for detection and segmentation."""

    has_attentions = False

    def __init__(self, config: GnResNetConfig):
        super().__init__(config)
        self.num_features = [config.embedding_size, *config.hidden_sizes]
        self.resnet = GnResNetModel(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """Return `feature_maps`, the output (B, C, h, w) of each stage in `config.out_features`, in their order."""
        hidden_states = self.resnet(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        named = dict(zip(self.stage_names, hidden_states, strict=True))
        return BackboneOutput(
            feature_maps=tuple(named[name] for name in self.out_features), hidden_states=hidden_states
        )


__all__ = ["GnResNetBackbone", "GnResNetForImageClassification", "GnResNetModel", "GnResNetPreTrainedModel"]
