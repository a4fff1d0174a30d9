"""Parameter names of a stock `vit` in terms of the elastic ViT, whose names are those of `dinov2`."""

import re


def dinov2_name(vit_name: str) -> str:
    """Return what `dinov2` calls the parameter that a stock `vit` calls `vit_name`.

    >>> dinov2_name("layers.3.layernorm_before.weight")
    'encoder.layer.3.norm1.weight'
    """
    if not vit_name.startswith("layers."):
        return vit_name
    name = re.sub(r"^layers\.", "encoder.layer.", vit_name)
    return name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
