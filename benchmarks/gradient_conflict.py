"""Whether the intact and the elastic student pull shared weights in the same direction.

    python benchmarks/gradient_conflict.py runs/quickstart/checkpoint-300 runs/quickstart/checkpoint-900 --plot docs

For each checkpoint of a run, the gradients of the intact student's loss and of each size's loss as the elastic student,
without KoLeo, on the same batches of the run's own images. Compared on the weights that the size holds:

- `cosine`, by layer, between both gradients: 1 means the same direction, 0 that one does nothing for the other, below 0
  that they are in conflict;
- `agreement`, the cosine between the size's gradient and that of the whole loss, with all sizes as often as they are
  drawn: below 0 a step would make the size worse;
- `ceiling`, the cosine between the gradients of the size's loss on two halves of the images: what noise leaves of 1;
- `norm`, that of the size's gradient over the intact student's.

The last line is one JSON object.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from parts.machine import device_name, table_head, versions
from torch import Tensor

from poa_hf import PoaForPreTraining, PoaTrainingArguments, SubNetwork
from poa_hf.cli.recipe import read_recipe
from poa_hf.models.complete import load_complete
from poa_hf.training.optimization import hyperparameters_at
from poa_hf.training.preparation import coloured_crops, seed_step, training_loader

Gradients = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders of checkpoints of one run")
    parser.add_argument("--run", type=Path, help="the run's folder; the one that holds the first checkpoint by default")
    parser.add_argument("--batches", type=int, default=16, help="batches whose gradients are averaged")
    parser.add_argument("--sizes", nargs="+", help="sizes to compare; all by default")
    parser.add_argument("--plot", type=Path, help="folder for a picture, gradient_conflict.svg")
    options = parser.parse_args()
    run = options.run or options.checkpoints[0].parent
    recipe = read_recipe({"config": str(run / "config.yaml"), "output_dir": str(run), "dataloader_num_workers": 0}, {})
    batches = list(first_batches(recipe, options.batches))
    print(
        f"{table_head(device_name())}; {run.name}, {options.batches} batches of {len(batches[0]['masks']) // 2} images"
    )
    found = {}
    for folder in options.checkpoints:
        model = load_complete(folder).train()
        step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
        found[step] = compare(model, recipe.training, batches, step, options.sizes)
        report(step, found[step])
    if options.plot is not None:
        plot(found, options.plot / "gradient_conflict.svg")
    print(json.dumps({"run": run.name, "batches": options.batches, "device": device_name(), **versions(),
                      "steps": found}))  # fmt: skip


def first_batches(recipe, count: int) -> Iterable[dict]:
    """Yield the inputs of the model for a run's first batches, by `PoaForPreTraining.forward`'s names."""
    loader = iter(training_loader(recipe.data.open_dataset(), recipe.model, recipe.training, Accelerator()))
    for step in range(count):
        batch = next(loader)
        seed_step(recipe.training.seed, step, 0)
        crops = coloured_crops(batch, recipe.training, torch.device("cpu"))
        yield {"global_crops": crops["global"], "local_crops": crops["local"], "masks": batch["masks"]}


def compare(
    model: PoaForPreTraining, args: PoaTrainingArguments, batches: list[dict], step: int, names: list[str] | None
) -> dict[str, dict]:
    """Return what the sizes' gradients have in common with the intact student's, by size."""
    space, intact_weight = model.config.backbone_config.space, model.config.intact_weight
    model.config.koleo_weight = 0.0
    values = hyperparameters_at(step, args, args.per_device_train_batch_size)
    fields = dict(teacher_temperature=values.teacher_temperature, predict_masked_patches=values.predict_masked_patches)

    def mean_gradients(size: SubNetwork | None, part: list[dict]) -> Gradients:
        model.config.intact_weight = 1.0 if size is None else 0.0
        model.zero_grad()
        for index, batch in enumerate(part):
            seed_step(args.seed, index, 0)
            (model(**batch, sub_network=size or (), **fields).loss / len(part)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    half = len(batches) // 2

    def both_halves(size: SubNetwork | None) -> tuple[Gradients, Gradients]:
        return mean_gradients(size, batches[:half]), mean_gradients(size, batches[half:])

    halves = {size: both_halves(size) for size in (None, *(size for size in space if size != space.full))}
    means = {size: {name: (a[name] + b[name]) / 2 for name in a} for size, (a, b) in halves.items()}
    drawn = Counter(space.trained)
    whole = {name: intact_weight * gradient for name, gradient in means[None].items()}
    for size, count in drawn.items():
        for name, gradient in means[size].items():
            whole[name] = whole[name] + (1 - intact_weight) * count / drawn.total() * gradient
    chosen = [space.resolve(name) for name in names] if names else [size for size in means if size is not None]
    layers = layers_of(model)
    result = {}
    for size in chosen:
        own = means[size]
        result[str(size)] = {
            "cosine": {layer: cosine(own, means[None], parameters) for layer, parameters in layers.items()},
            "mean_cosine": cosine(own, means[None], own),
            "agreement": cosine(own, whole, own),
            "ceiling": cosine(*halves[size], own),
            "norm": norm(own, own, own) / norm(means[None], own, own),
        }
    result["intact"] = {"ceiling": cosine(*halves[None], means[None])}
    return result


def layers_of(model: PoaForPreTraining) -> dict[str, list[str]]:
    """Return the names of the parameters of each layer: embeddings, blocks, the norm and the heads."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    first, *blocks, last = [[names[parameter] for parameter in layer] for layer in model.student.layers()]
    heads = [name for name in names.values() if name.startswith("student_head.")]
    numbered = {f"block {number}": block for number, block in enumerate(blocks, 1)}
    return {"embeddings": first, **numbered, "norm": last, "heads": heads}


def norm(gradients: Gradients, held: Gradients, names: Iterable[str]) -> float:
    """Return the norm of gradients on the entries that a size holds, where its own gradient is not 0."""
    return sum(float((gradients[name] * (held[name] != 0)).square().sum()) for name in names) ** 0.5


def cosine(own: Gradients, other: Gradients, names: Iterable[str]) -> float | None:
    """Return the cosine of two gradients on the entries that a size holds; None where it holds none."""
    names = list(names)
    dot = sum(float((own[name] * other[name]).sum()) for name in names)
    length = norm(own, own, names) * norm(other, own, names)
    return dot / length if length else None


def report(step: int, found: dict[str, dict]) -> None:
    print(f"\nstep {step}; intact student, two halves: {found['intact']['ceiling']:.2f}")
    sizes = {name: values for name, values in found.items() if name != "intact"}
    layers = list(next(iter(sizes.values()))["cosine"])
    titles = " ".join(f"{layer:>10}" for layer in layers)
    print(f"{'size':<10} {'agreement':>9} {'ceiling':>8} {'norm':>6} {'cosine':>7}   {titles}")
    for name, values in sizes.items():
        cells = " ".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in values["cosine"].values())
        print(
            f"{name:<10} {values['agreement']:>9.2f} {values['ceiling']:>8.2f} {values['norm']:>6.2f} "
            f"{values['mean_cosine']:>7.2f}   {cells}"
        )


def plot(found: dict[int, dict], path: Path) -> None:
    """Draw the cosine of each size at the last checkpoint over the layers of the backbone, 0 for the embeddings."""
    from poa_hf.figures.charts import LIGHT, line_chart

    last = found[max(found)]
    lines = {}
    for name, values in last.items():
        if name != "intact":
            by_layer = [value for layer, value in values["cosine"].items() if layer != "heads"]
            held = [index for index, value in enumerate(by_layer) if value is not None]
            lines[name] = (held, [by_layer[index] for index in held])
    layers = "layer: 0 embeddings, then the blocks, last the norm"
    figure = line_chart(
        LIGHT, lines, (0, "conflict below"), bottom=-0.1, x_name=layers, y_name="cosine with the intact gradient"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
