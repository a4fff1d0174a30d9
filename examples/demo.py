"""A demo in the browser: what each size of an elastic model sees in a photograph.

    pip install 'poa_hf[demo]'
    python examples/demo.py runs/mine                             # a run, or an elastic model from a folder or the Hub
    python examples/demo.py runs/mine --dataset_name my/photos    # the images among which the nearest are found

A slider of parameters picks the size. Its attention, the components of its patches and the images nearest to the
photograph are shown. docs/demo.md says how to put it on a Space.
"""

import argparse
import os
import sys
from functools import lru_cache

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from poa_hf import Budget, costs, load_subject, open_dataset, select
from poa_hf.data.decoding import UndecodableImage, open_image
from poa_hf.data.processor import decoding_of, prepared_images
from poa_hf.embedding.features import embedder
from poa_hf.embedding.rows import ImageRows
from poa_hf.figures.images import attention_panels, pca_panels
from poa_hf.figures.patches import attention_maps, patch_features, patch_pca

SIDE = 448  # pixels of the pictures that are shown
STOPS = 50  # of the slider
TO_TRY = 6  # images of the dataset that are offered as photographs
GRID = 14  # patches along a side, where a model's image size gives fewer


class Looker:
    """An elastic model and a gallery of images, and what each size makes of a photograph.

    Args:
        source: The model, as `load_subject` takes it.
        dataset_name: The images of the gallery, as `open_dataset` takes them.
        count: Images of the gallery at most.

    Raises:
        ValueError: For a model of one size, or a dataset without an image.
    """

    def __init__(self, source: str, dataset_name: str = "textures", count: int = 200):
        self.subject = load_subject(source)
        self.model, self.processor = self.subject.model.eval(), self.subject.processor
        self.config = self.model.config
        if not hasattr(self.config, "space"):
            raise ValueError(f"{source} has only one size: give a run of poa pretrain, or an ordered family.")
        if self.config.num_channels != 3:
            raise ValueError(f"{source} takes images of {self.config.num_channels} channels: the demo shows RGB only.")
        self.costs = costs(self.config)
        images = images_of(dataset_name, TO_TRY + count, decoding_of(self.processor))
        self.to_try, self.gallery = images[:TO_TRY], images[TO_TRY:] or images  # apart, so that none finds itself
        self.features_of_gallery = lru_cache(maxsize=8)(self._features_of_gallery)

    @property
    def range(self) -> tuple[int, int]:
        """The parameters of the smallest and of the largest size."""
        counts = [cost.parameters for cost in self.costs.values()]
        return min(counts), max(counts)

    def size(self, max_params: float) -> str:
        """The largest size within a number of parameters."""
        return str(select(self.config, Budget(max_params=max(max_params, self.range[0])), self.costs).best)

    def look(self, image: Image.Image, size: str) -> tuple[Image.Image | None, Image.Image]:
        """Return the attention of a size, None for a family without a class token, and the components of its patches.

        The colours of the components are turned towards those of the full size, so that they can be compared.
        """
        pixels = self._large(image)
        mean, std = self.processor.image_mean, self.processor.image_std
        features, full = (patch_features(self.model, pixels, each) for each in (size, str(self.config.space.full)))
        components = pca_panels(pixels, {"": patch_pca(features, reference=full)}, mean, std)
        attention = None
        if self.config.has_class_token:
            maps = attention_maps(self.model, pixels, size)
            attention = picture(attention_panels(pixels, {"": maps}, mean, std)[""][0])
        return attention, picture(components[""][0])

    def nearest(self, image: Image.Image, size: str, top: int = 6) -> list[tuple[Image.Image, str]]:
        """Return the images of the gallery that are nearest to a photograph by the cosine of their features."""
        similarity = self.features_of_gallery(size) @ self._features([image], size)[0]
        values, places = similarity.topk(min(top, len(self.gallery)))
        return [
            (self.gallery[place].resize((160, 160)), f"{value:.2f}")
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]

    def _features_of_gallery(self, size: str) -> torch.Tensor:
        return self._features(self.gallery, size)

    def _features(self, images: list[Image.Image], size: str) -> torch.Tensor:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with embedder(self.subject, size, device) as run:
            batches = [run.of_images(images[at : at + 50]).images for at in range(0, len(images), 50)]
        return normalize(torch.from_numpy(np.concatenate(batches)))  # (N, D)

    def _large(self, image: Image.Image) -> torch.Tensor:
        """Prepare an image as an evaluation does, but with more patches where the model's image size has few."""
        side = self.processor.crop_size["height"]
        scale = min(4, max(1, -(-GRID * self.config.crop_multiple // side)))
        size = {"shortest_edge": round(self.processor.size["shortest_edge"] * scale)}
        crop_size = {"height": side * scale, "width": side * scale}
        return prepared_images(self.processor, [image], size=size, crop_size=crop_size)  # (1, 3, H, W)


def images_of(dataset_name: str, count: int, decoding: dict) -> list[Image.Image]:
    """Return the first images of a dataset that can be decoded."""
    rows = ImageRows(open_dataset(dataset_name), limit=count)
    images = []
    for row in rows.all_rows():
        try:
            images.append(open_image(row.image, rows.max_image_pixels, **decoding))
        except UndecodableImage:
            continue
    if not images:
        raise ValueError(f"{dataset_name} has no image that can be decoded: name other images.")
    return images


def picture(panel) -> Image.Image:
    """Return a panel (h, w, 3) in 0..1 at the size in which it is shown; patches keep their edges."""
    return Image.fromarray((panel * 255).round().astype("uint8")).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def titled(title: str, kind: type, **options):
    """Add a title and an output below it: a label would cover a corner of the picture."""
    gr.Markdown(f"### {title}")
    return kind(label=title, show_label=False, interactive=False, **options)


def build(looker: Looker) -> gr.Blocks:
    """Lay out the page."""
    low, high = looker.range
    step = -(-(high - low) // STOPS)

    def show(image: Image.Image | None, max_params: float):
        size = looker.size(max_params)
        parameters = looker.costs[looker.config.space.resolve(size)].parameters
        chosen = f"**{size}** with {parameters:,} parameters, {parameters / high:.0%} of the full size"
        if image is None:
            return chosen, None, None, None
        return chosen, *looker.look(image, size), looker.nearest(image, size)

    with gr.Blocks(title="Every size of one model") as page:
        gr.Markdown(f"# Every size of one model\n\nWhat the sizes of `{looker.subject.name}` see in a photograph.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(looker.to_try[0], type="pil", label="Photograph", height=320)
                budget = gr.Slider(low, low + STOPS * step, high, step=step, label="Parameters at most")
                chosen = gr.Markdown(show(None, high)[0])
                gr.Examples([[each] for each in looker.to_try], [image], label="Images to try")
            with gr.Column(scale=2, min_width=280):
                with gr.Row():
                    with gr.Column(min_width=280, visible=looker.config.has_class_token):
                        attention = titled("Where the class token looks", gr.Image, height=320)
                    with gr.Column(min_width=280):
                        components = titled("Patches: like colours, like features", gr.Image, height=320)
                nearest = titled("Nearest images, and the cosine of their features", gr.Gallery, columns=3)
        outputs = [chosen, attention, components, nearest]
        gr.on([page.load, image.change, budget.release, budget.input], show, [image, budget], outputs,
              trigger_mode="always_last", show_progress="hidden")  # fmt: skip
    return page


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    # a Space gives no arguments, but has variables
    parser.add_argument("model", nargs="?", default=os.environ.get("POA_MODEL"), help="or the variable POA_MODEL")
    parser.add_argument("--dataset_name", default=os.environ.get("POA_DATASET", "textures"), help="or POA_DATASET")
    parser.add_argument("--gallery_images", type=int, default=200, help="images of the gallery at most")
    parser.add_argument("--port", type=int, help="7860, or the next one that is free, by default")
    options = parser.parse_args(argv)
    if not options.model:
        parser.error("name a model: python examples/demo.py RUN")
    if options.gallery_images < 1:
        parser.error(f"--gallery_images is {options.gallery_images}: give at least 1")
    return options


if __name__ == "__main__":
    options = parse(sys.argv[1:])
    try:
        looker = Looker(options.model, options.dataset_name, options.gallery_images)
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    build(looker).launch(server_port=options.port)
