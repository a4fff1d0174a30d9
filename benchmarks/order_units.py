"""Which criterion orders the units of a trained model best, for slices of it without any training.

    python benchmarks/order_units.py --folder runs/order            # trains five small models: an hour of one core
    python benchmarks/order_units.py --folder runs/order --models runs/one runs/two --dataset_name path/to/cifar10

Models of the quickstarts' families are trained on the built-in textures at their full size alone, so that the order of
their units is chance; or `--models` are runs or stock models. Each criterion orders a copy of each model's units by
256 and by 2,048 training images. Measured is the k-NN accuracy (k = 20) of all smaller widths, at the least and at the
full depth, as plain slices, on images that neither training nor ordering has seen. What is measured is kept in
`--folder`, so that a program that was stopped goes on where it was. The last line is one JSON object: for each
criterion, the mean gain in each model over random orders.

Criteria are an objective and how changes of it without a unit are added up (`parts/unit_scores.py`):
  features, features_patches   random directions of the features of whole images, without and with patches'
  similarities                 an image's similarity to one other image minus that to another
  loss, new_loss               the self-supervised loss of crops, with the trained heads and with new ones
  agreement, contrast          the agreement of crops without heads, as in SnapViT, and InfoNCE
  signed                       changes added up with their sign
  snapvit                      squared gradients of the agreement with respect to the weights, as in SnapViT
  activation_weight            activation times weight for heads and hidden units, the features' criterion for channels
  variance                     of channels; for heads and hidden units, the features' criterion
  magnitude, random, reversed, as_it_is
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from parts.machine import table_head, versions
from parts.unit_scores import Reader, Scores, crop_scores, whole_image_scores
from torch import Tensor

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, init_from, load_run, warm_start_config
from poa_hf.cli.main import main as poa
from poa_hf.data.processor import evaluation_processor
from poa_hf.data.sources import open_dataset
from poa_hf.data.textures import EVALUATION_TEXTURES, TextureDataset
from poa_hf.evaluation.tasks.knn import knn_predictions
from poa_hf.models.unit_groups import permute_units
from poa_hf.warm_start.ordering.images import crops_of, pixel_batches

# Configuration, seed and steps.
TRAINED = {
    "vit_a": ("quickstart", 0, 500),
    "vit_b": ("quickstart", 1, 300),
    "swin_a": ("quickstart_swin", 0, 300),
    "swin_b": ("quickstart_swin", 1, 250),
    "resnet_a": ("quickstart_resnet", 0, 200),
}
WHOLE = {"features": {}, "features_patches": {"patches": True}, "similarities": {"pairs": True}}
CROPS = ("loss", "new_loss", "agreement", "contrast")
RANDOM_ORDERS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where models and what was measured are kept")
    parser.add_argument("--models", type=Path, nargs="+", help="runs or stock models; trained here if not given")
    parser.add_argument("--dataset_name", default="textures", help="labelled images with a train and a test split")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 2048], help="multiples of 32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of images, crops and directions")
    parser.add_argument("--objectives", nargs="+", choices=[*WHOLE, *CROPS], default=[*WHOLE, *CROPS])
    parser.add_argument("--memory_images", type=int, default=2000, help="whose labels vote")
    parser.add_argument("--test_images", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for folder in options.models or [trained(name, options.folder / name) for name in TRAINED]:
        measure(folder, options)
    report(options)


def trained(name: str, folder: Path) -> Path:
    """Train a model at its full size alone, unless it is there."""
    config, seed, steps = TRAINED[name]
    if not (folder / "model.safetensors").exists():
        command = ["pretrain", "--config", config, "--output_dir", str(folder), "--seed", str(seed)]
        command += ["--max_steps", str(steps), "--model.intact_weight", "1", "--dataloader_num_workers", "0"]
        resume = ["--resume_from_checkpoint", "true"] if list(folder.glob("checkpoint-*")) else []
        if status := poa([*command, "--disable_tqdm", *resume]):
            raise SystemExit(status)
    return folder


def load(folder: Path) -> tuple[PoaForPreTraining, PoaTrainingArguments]:
    """A run's model and crops; or a stock model with new heads, and crops of its size."""
    torch.manual_seed(0)
    if (arguments := folder / "training_args.json").exists():
        fields = json.loads(arguments.read_text())
        known = {name: fields[name] for name in fields if name in PoaTrainingArguments.__dataclass_fields__}
        return load_run(folder), PoaTrainingArguments(**known)
    backbone = warm_start_config(folder, drop_path_rate=0.0)
    heads = dict(num_prototypes=[256, 512], head_hidden_size=128, head_bottleneck_size=32, initializer_range=0.1)
    model = PoaForPreTraining(PoaConfig(backbone_config=backbone, **heads)).eval()
    init_from(model, folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    colours = {name: processor[name] for name in ("image_mean", "image_std")}
    size = crops_of(backbone).global_crop_size
    return model, PoaTrainingArguments(global_crop_size=size, local_crop_size=size // 2, num_local_crops=2, **colours)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Measure all orders of a model that are not in the cache yet."""
    cache = Cache(options.folder / f"{folder.name}-{Path(options.dataset_name).name}.json")
    model, args = load(folder)
    backbone, space = model.teacher, model.config.backbone_config.space
    groups, depths = backbone.unit_groups(), (space.smallest.depths, space.full.depths)
    sizes = [size for size in space if size.width < space.full.width and size.depths in depths]
    data = [labelled(options, split, args) for split in ("train", "test")]

    def knn(orders: dict[str, list[int]]) -> dict[str, float]:
        ordered = copy.deepcopy(backbone)
        permute_units(ordered, groups, orders)
        return {str(size): 100 * accuracy(ordered.extract(size), backbone, data) for size in sizes}

    def orders(scores: Scores) -> dict[str, list[int]]:
        return {group.name: group.order_by(scores[group.name]) for group in groups}

    def random(seed: int) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return orders({group.name: torch.rand(group.count, generator=generator) for group in groups})

    cache.keep("as_it_is", lambda: knn({}))
    for seed in range(RANDOM_ORDERS):
        cache.keep(f"random,{seed}", lambda seed=seed: knn(random(seed)))
    cache.keep("magnitude", lambda: knn(orders(Reader(backbone, groups).magnitudes())))
    channels = [group.name for group in groups if group.outputs_of]
    readers = Reader(backbone, groups).readers_weights()
    for seed in options.seeds:
        for objective in options.objectives:
            counts = [count for count in options.images if f"{objective}-absolute,{count},{seed}" not in cache.values]
            for count, scores in scores_of(model, objective, args, options.dataset_name, seed, counts).items():
                named = derived(objective, scores, readers, channels)
                # the absolute one comes last: it says that all are there
                named |= {f"{objective}-{how}": scores[how] for how in ("squared", "absolute")}
                for name, values in named.items():
                    cache.keep(f"{name},{count},{seed}", lambda values=values: knn(orders(values)))


def scores_of(
    model: PoaForPreTraining, objective: str, args: PoaTrainingArguments, name: str, seed: int, counts: list[int]
) -> dict[int, dict[str, Scores]]:
    """Scores of an objective by numbers of images."""
    if not counts:
        return {}
    dataset = open_dataset(name, streaming=False)
    if objective in WHOLE:
        config = model.config.backbone_config
        batches = list(pixel_batches(dataset, config, max(counts), crops=args, seed=seed))
        return whole_image_scores(model, torch.cat(batches), counts, seed, **WHOLE[objective])
    if objective == "new_loss":
        torch.manual_seed(seed + 1)
        fresh = PoaForPreTraining(model.config)
        model = copy.deepcopy(model)
        for heads in (model.student_head, model.teacher_head):
            heads.load_state_dict(fresh.student_head.state_dict())
    return crop_scores(model, objective.removeprefix("new_"), dataset, args, counts, seed)


def derived(objective: str, scores: dict[str, Scores], readers: Scores, channels: list[str]) -> dict[str, Scores]:
    """Further criteria that an objective's pass gives, by their names."""
    if objective == "loss":
        return {"loss-signed": {name: values.abs() for name, values in scores["signed"].items()}}
    if objective == "agreement":
        return {"snapvit": scores["weights"]}
    if objective != "features":
        return {}
    absolute = scores["absolute"]
    products = {name: scores["activations"][name] * weight for name, weight in readers.items()}
    found = {
        "reversed": {name: -values for name, values in absolute.items()},
        "activation_weight": absolute | products,
    }
    if channels:
        found["variance"] = absolute | {name: scores["variance"][name] for name in channels}
    return found


def labelled(options: argparse.Namespace, split: str, args: PoaTrainingArguments) -> tuple[Tensor, Tensor]:
    """Images as evaluations see them, and their labels."""
    count = options.memory_images if split == "train" else options.test_images
    if options.dataset_name == "textures":
        seed, length = EVALUATION_TEXTURES[split]
        dataset = TextureDataset(seed=seed, length=length)
        rows = [dataset[i] for i in range(count)]
    else:
        rows = list(open_dataset(options.dataset_name, None, split).decode(True).take(count))
    image, label = (next(name for name in rows[0] if word in name) for word in ("im", "label"))
    processor = evaluation_processor(args.global_crop_size, args.image_mean, args.image_std)
    pixels = processor([row[image].convert("RGB") for row in rows], return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor([row[label] for row in rows])


@torch.no_grad()
def accuracy(extracted, backbone, data) -> float:
    (memory, labels), (test, expected) = (
        (torch.cat([backbone.image_tokens(extracted(part))[0] for part in pixels.split(500)]), labels)
        for pixels, labels in data
    )
    return (knn_predictions(memory, labels, test, ks=[20])[20] == expected).float().mean().item()


class Cache:
    """Accuracies by criterion, images and seed, in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, name: str, compute: Callable[[], dict[str, float]]) -> None:
        if name not in self.values:
            self.values[name] = compute()
            self.path.write_text(json.dumps(self.values))
            mean = statistics.mean(self.values[name].values())
            print(f"{self.path.stem} {name}: {mean:.2f}", flush=True)


def report(options: argparse.Namespace) -> None:
    """The mean gain over random orders, by criterion and model, over sizes and seeds."""
    gains: dict[str, dict[str, list[float]]] = {}
    spread, paths = {}, sorted(options.folder.glob(f"*-{Path(options.dataset_name).name}.json"))
    for path in paths:
        means = {name: statistics.mean(values.values()) for name, values in Cache(path).values.items()}
        random = [mean for name, mean in means.items() if name.startswith("random,")]
        spread[path.stem] = statistics.stdev(random)
        for name, mean in means.items():
            criterion = name.rsplit(",", 1)[0]  # without the seed
            gains.setdefault(criterion, {}).setdefault(path.stem, []).append(mean - statistics.mean(random))
    table = {name: {model: statistics.mean(all_) for model, all_ in models.items()} for name, models in gains.items()}
    ranked = sorted(table.items(), key=lambda item: -min(item[1].values()))
    print(table_head("CPU, 1 thread"))
    print(f"| criterion, images | {' | '.join(path.stem for path in paths)} | mean | worst | seeds |")
    print(f"| --- | {'--- | ' * len(paths)}--- | --- | --- |")
    for name, models in ranked:
        cells = [f"{models[path.stem]:+.1f}" if path.stem in models else "" for path in paths]
        cells += [f"{statistics.mean(models.values()):+.1f}", f"{min(models.values()):+.1f}"]
        counts = sorted({len(values) for values in gains[name].values()})
        cells.append(str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}")
        print(f"| {name} | {' | '.join(cells)} |")
    figures = {"gains": table, "random_orders_deviation": spread, "options": vars(options), **versions()}
    print(json.dumps(figures, default=str))


if __name__ == "__main__":
    main()
