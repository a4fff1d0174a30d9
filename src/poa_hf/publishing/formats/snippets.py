"""The code on a model card that loads the model and computes the features of an image, for each library.

Every function takes the name that the code loads: the id of a repository, `namespace/name`, or a folder.
"""

from __future__ import annotations

import json


def transformers_snippet(name: str, load_options: str = "", features: str = "pooler_output") -> str:
    """Return code for `AutoModel`; `features` is the part of the model's output that holds them.

    >>> print(transformers_snippet("me/poa-vit-s-extracted"))
    from transformers import AutoImageProcessor, AutoModel
    <BLANKLINE>
    processor = AutoImageProcessor.from_pretrained("me/poa-vit-s-extracted")
    model = AutoModel.from_pretrained("me/poa-vit-s-extracted")
    features = model(**processor(image, return_tensors="pt")).pooler_output
    """
    quoted = _quoted(name)
    return f"""from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained({quoted})
model = AutoModel.from_pretrained({quoted}{load_options})
features = model(**processor(image, return_tensors="pt")).{features}"""


def timm_snippet(name: str) -> str:
    """Return code for `timm.create_model`, without a classifier."""
    source = _quoted(f"{'hf-hub' if _is_on_hub(name) else 'local-dir'}:{name}")
    return f"""import timm

model = timm.create_model({source}, pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image).unsqueeze(0))"""


def onnx_snippet(name: str, batch_size: int | None = None) -> str:
    """Return code for ONNX Runtime; a model of a fixed batch size gets the image that many times."""
    download = "from huggingface_hub import snapshot_download\n" if _is_on_hub(name) else ""
    folder = f"snapshot_download({_quoted(name)})" if _is_on_hub(name) else _quoted(name)
    images = "image" if batch_size in (None, 1) else f"[image] * {batch_size}"
    return f"""import onnxruntime
{download}from transformers import AutoImageProcessor

folder = {folder}
processor = AutoImageProcessor.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder + "/model.onnx")
pixel_values = processor({images}, return_tensors="np")["pixel_values"]
(features,) = session.run(["pooler_output"], {{"pixel_values": pixel_values}})"""


def _is_on_hub(name: str) -> bool:
    return "/" in name


def _quoted(text: str) -> str:
    """Quote a string as Python does, with double quotes; JSON's escapes are Python's too."""
    return json.dumps(text, ensure_ascii=False)
