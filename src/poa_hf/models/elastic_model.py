"""What the elastic models have in common: sub-networks that run on slices of their weights, and extraction."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..slicing import (
    Slice,
    SlicedModel,
    SliceRules,
    checkpoint_with_slices,
    slice_plan,
    sliced_tensors,
    without_storage,
)
from ..sub_network import SubNetwork
from .activation_checkpointing import is_activation_checkpointing
from .compiled_blocks import BlockCompiler, block_kind
from .elastic_config import ElasticConfigMixin
from .unit_groups import UnitGroup

# Building a plain model takes 50 ms and keeping one 1 MB, so a model keeps those of all sizes of a published space.
PLAIN_MODELS_KEPT = 512

if TYPE_CHECKING:
    _Model = PreTrainedModel
else:
    _Model = object


class ElasticModelMixin(_Model):
    """A model that holds smaller ones: their parameters are slices of its own.

    The configuration says which sizes exist (`space`), what a size is as a model of the same class (`plain_config`) and
    as a stock model (`stock_config`). A family sets the attributes below and defines `image_tokens`
    (docs/new_family.md).

    Attributes:
        slice_rules: Where the model keeps its blocks and channel groups.
        stock_class: Class of the extracted models, whose parameters have the same names.
        patch_embedding: Pattern of the patch embedding's parameters, whose learning rate is lower.
        decayed_vectors: Pattern of vectors that get weight decay, although vectors have none.
    """

    config: ElasticConfigMixin
    slice_rules: SliceRules
    stock_class: type[PreTrainedModel]
    patch_embedding: str | None = None
    decayed_vectors: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model that was saved by this class; `init_from` starts from others.

        Raises:
            ValueError: If it is a whole pre-training run, or of another type, whose files have other names for the
                weights of its blocks.
        """
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        saved_type, own_type = model.config.model_type, type(model.config).model_type
        if any(name.startswith("teacher.") for name in info["unexpected_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds teacher, student and heads: load a PoaForPreTraining, and take "
                "its `teacher`."
            )
        if saved_type != own_type and any(map(cls.slice_rules.is_in_block, info["missing_keys"])):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {saved_type}, in whose file blocks have other names than in a "
                f"{own_type}'s: start from it by warm_start_config and init_from."
            )
        return (model, info) if with_info else model

    def post_init(self) -> None:
        """Check the configuration, whose fields may have been set since it was made, and initialise the weights."""
        self.config.complete()
        super().post_init()

    def sliced(
        self,
        sub_network: SubNetwork | str | None = None,
        dtype: torch.dtype | None = None,
        compiler: BlockCompiler | None = None,
    ) -> ElasticModelMixin | SlicedModel:
        """Return a sub-network that computes with slices of this model's weights as they are now.

        In training, make it once per step and call it for every batch.

        Args:
            sub_network: A size, or its text or name. For the full size and None, the model itself is returned, unless
                its weights are to be rounded or its blocks to be compiled.
            dtype: What the weights of linear and convolution layers are rounded to, once for all calls. Give the type
                of the autocast that the model is called under, which would otherwise round them at every call.
            compiler: Compiles the blocks; None runs them as they are.

        Raises:
            ValueError: If the size is not in the space.
        """
        if sub_network is None and dtype is None and compiler is None:
            return self  # without the space, which strict graphs (torch.export) cannot trace
        space = self.config.space
        sub_network = space.full if sub_network is None else space.resolve(sub_network)
        if sub_network == space.full and dtype is None and compiler is None:
            return self
        plain, plan = self._plain_model(sub_network, compiler)
        return SlicedModel(plain, self, plan, dtype)

    def outputs_of(
        self, sub_networks: Sequence[SubNetwork | str], pixel_values: Tensor
    ) -> Iterator[tuple[SubNetwork, Any]]:
        """Yield the output of each sub-network for a batch, in any order.

        Each is what `forward(pixel_values, sub_network)` returns, to the last bit; a family may compute once what
        several have in common.

        Args:
            sub_networks: The sizes, or their texts or names, each once.
            pixel_values: (B, C, H, W).
        """
        for sub_network in map(self.config.space.resolve, sub_networks):
            yield sub_network, self.sliced(sub_network)(pixel_values)

    def extract(self, sub_network: SubNetwork | str | None = None) -> PreTrainedModel:
        """Return a sub-network as a stock model with a copy of its weights, in evaluation mode.

        It computes what `forward(..., sub_network=sub_network)` does, to the last bit. (With gradients, a Swin may
        differ by rounding: torch attends by another kernel where the position bias needs a gradient.)

        Args:
            sub_network: A size, or its text or name; None means the full size.

        Raises:
            ValueError: If the size is not in the space.
        """
        space = self.config.space
        sub_network = space.full if sub_network is None else space.resolve(sub_network)
        config = self.config.stock_config(sub_network)
        config._attn_implementation = self.config._attn_implementation
        with without_storage():
            stock = self.stock_class(config)
        plan = self._plan_for(stock, sub_network)
        with torch.no_grad():
            tensors = sliced_tensors(self, plan)
        for name, tensor in tensors.items():
            if plan[name].scale == 1:  # a view of the full model's tensor; scaled slices are copies already
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            path, _, leaf = name.rpartition(".")
            module = stock.get_submodule(path)
            is_parameter = leaf in dict(module.named_parameters(recurse=False))
            setattr(module, leaf, nn.Parameter(tensor) if is_parameter else tensor)
        return stock.eval()

    def feature_size(self, sub_network: SubNetwork | str | None = None) -> int:
        """Return the number of channels D of a sub-network's features."""
        space = self.config.space
        sub_network = space.full if sub_network is None else space.resolve(sub_network)
        model = self if sub_network == space.full else self._plain_model(sub_network)[0]
        return model.config.hidden_size

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters by layer (`SliceRules.layer_indices`), from the input to the output."""
        parameters = dict(self.named_parameters())
        # the same for as long as the model lives, and reading names takes a millisecond
        indices = self.__dict__.setdefault("_layer_indices", {})
        if indices.keys() != parameters.keys():
            indices.clear()
            indices.update(self.slice_rules.layer_indices(parameters, self.config.space.full.depths))
        layers: list[list[nn.Parameter]] = [[] for _ in range(max(indices.values()) + 1)]
        for name, parameter in parameters.items():
            layers[indices[name]].append(parameter)
        return layers

    def image_tokens(self, output: Any) -> tuple[Tensor, Tensor]:
        """Return the features that the projection heads read from the output of a forward pass.

        Args:
            output: What `forward` returns.

        Returns:
            The images' features (B, D), and one token for each square of the masks' grid (B, squares, D).
        """
        raise NotImplementedError

    def unit_groups(self) -> list[UnitGroup]:
        """Return the units that can change places without changing the function, for `order_units`.

        Together they cover every axis that slicing cuts. A family that does not say what its units are has none.
        """
        return []

    def _plan_for(self, plain: nn.Module, sub_network: SubNetwork) -> dict[str, Slice]:
        return slice_plan(self, plain, self.slice_rules, self.config.space.full.depths, sub_network.depths)

    def num_block_kinds(self) -> int:
        """Return how many kinds of blocks all sizes have together, of which each needs code of its own."""
        kinds: set[Hashable] = set()
        # blocks of a shallower size have the places of the first ones of a deeper size
        deepest = {size.width: size for size in sorted(self.config.space, key=lambda size: size.depths)}
        for size in deepest.values():
            plain, _ = self._plain_model(size)
            kinds |= {block_kind(plain.get_submodule(name)) for name in plain.slice_rules.block_names(plain)}
        return len(kinds)

    def _plain_model(
        self, sub_network: SubNetwork, compiler: BlockCompiler | None = None
    ) -> tuple[ElasticModelMixin, dict[str, Slice]]:
        """Return the sub-network as a model without storage, in the mode of this model, and how its tensors are cut."""
        # Plain models hold no weights, and their mode is set at each use: results do not depend on which ones are kept.
        kept = self.__dict__.setdefault("_plain_models", {})
        # each thread has its own, as a call swaps the plain model's tensors
        key = (sub_network, self.config._attn_implementation, threading.get_ident(), compiler)
        if key not in kept:
            config = self.config.plain_config(sub_network)
            config._attn_implementation = self.config._attn_implementation
            with without_storage():
                plain = type(self)(config)
            if len(kept) >= PLAIN_MODELS_KEPT:
                kept.pop(next(iter(kept), None), None)
            if compiler is not None:
                compiler.attach(plain, self.slice_rules.block_names(plain))
            kept[key] = plain, self._plan_for(plain, sub_network)
        plain, plan = kept[key]
        if plain.training != self.training:
            plain.train(self.training)
        for name in ("output_hidden_states", "output_attentions"):
            if getattr(plain.config, name) != getattr(self.config, name):
                setattr(plain.config, name, getattr(self.config, name))
        if (enabled := is_activation_checkpointing(self)) != is_activation_checkpointing(plain):
            plain._set_gradient_checkpointing(enabled, checkpoint_with_slices)
        return plain, plan

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_plain_models"}
