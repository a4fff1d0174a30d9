"""The code on a model card that loads the model and computes the features of an image, for each library.

Every function takes the name that the code loads: the id of a repository, `namespace/name`, or a folder.
"""

from __future__ import annotations

import json

from ..card.markdown import code


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


def timm_hints(name: str) -> str:
    """Say in Markdown how transformers loads a model of timm."""
    return f"""With `timm` installed, `transformers` loads it too, as a `TimmWrapperModel` and without remote code:

{code(transformers_snippet(name), "python")}

The image processor is then timm's transform, which needs torchvision (timm installs it) and resizes with Pillow, as
this run's evaluations do."""


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


def onnx_hints(image: tuple[int, int, int], batch_size: int | None, half: bool) -> str:
    """Say in Markdown how TensorRT and Core ML run an ONNX model.

    Args:
        image: The shape (C, H, W) of an image.
        batch_size: The number of images in each batch; None if batches of any size are taken.
        half: Whether the model is in float16.
    """
    options = ["--onnx=model.onnx", "--saveEngine=model.plan"]
    if batch_size is None:
        shape = "x".join(map(str, image))
        counts = {"min": 1, "opt": 16, "max": 64}
        options += [f"--{bound}Shapes=pixel_values:{count}x{shape}" for bound, count in counts.items()]
    if half:
        options.append("--stronglyTyped")
    command = " \\\n  ".join(["trtexec", *options])
    batches = " for batches of 1 to 64 images" if batch_size is None else ""
    fixed = " It works best on batches of one size (`poa extract --onnx_batch`)." if batch_size is None else ""
    return f"""On NVIDIA GPUs, TensorRT builds an engine from `model.onnx`{batches}:

```shell
{command}
```

ONNX Runtime uses TensorRT with `providers=["TensorrtExecutionProvider", "CUDAExecutionProvider"]`.
On Apple devices it uses Core ML with
`providers=[("CoreMLExecutionProvider", {{"ModelFormat": "MLProgram"}}), "CPUExecutionProvider"]`.{fixed}
The file has been checked with ONNX Runtime on a CPU only."""


def _is_on_hub(name: str) -> bool:
    return "/" in name


def _quoted(text: str) -> str:
    """Quote a string as Python does, with double quotes; JSON's escapes are Python's too."""
    return json.dumps(text, ensure_ascii=False)
