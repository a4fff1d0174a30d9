"""The layout of a run's folder: every file that a command or the trainer keeps in it, under one name.

All code that reads or writes a run asks this module where a file lies, so that its name, who writes it, whether it is
published with a supernet and whether overwriting the run removes it are each decided once:

- `ENTRIES` describes the folder of a run (`output_dir`).
- `CHECKPOINT_PARTS` and `has_optimizer_state` say what a checkpoint (`checkpoint-<step>`) needs to be complete.
- `RunFolder` gives the paths of one run.

Written by users, so never removed: `card.yaml`, `LICENSE`, and whatever else lies in the folder, such as models that
`poa extract --output` or examples/quickstart.py put there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.json"
# the two names of weights are those of transformers, repeated here so that importing this module takes no time
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = "model*.safetensors*"  # one file, or several and their index: those that `is_weights` knows
PROCESSOR = "preprocessor_config.json"
RECIPE = "config.yaml"
TRAINING_ARGUMENTS = "training_args.json"
METRICS = "metrics.jsonl"
SKIPPED_IMAGES = "skipped_images.jsonl"
TEACHER_FEATURES = "teacher_features.safetensors"
GRAM_TEACHER = "gram_teacher"
TRAINING_TIME = "compute.json"
EVALUATIONS = "evaluations.json"
CONVERSION = "conversion.json"
UNIT_ORDER = "unit_order.json"
OWNER = "card.yaml"
SIZES = "sizes.json"
PROFILE = "profile"
REPORT = "report"
TRAINER_STATE = "trainer_state.json"
COUNTS = "counts.json"
CHECKSUMS = "checksums.json"
LOCK = ".lock"
OPTIMIZER_STATE = "optimizer.bin"
DEEPSPEED_STATE = "pytorch_model"  # a folder: model and optimizer in parts, one of each process
CHECKPOINT = "checkpoint-"
ABANDONED = "abandoned-"  # before the name of a checkpoint that lies after the one that a run went back to


@dataclass(frozen=True)
class Entry:
    """Files or folders of one kind in a run's folder.

    Args:
        pattern: Their names, as `Path.glob` takes them.
        content: What they hold.
        writer: Who writes them.
        removed: Whether they are removed when the run is overwritten. Only the owner's text and the lock stay.
        published: Whether they are part of a published supernet, and downloaded with it.
        names: A regular expression of their names, where the pattern alone would take files of users too.
        parts: A regular expression of the names in a folder that are the run's; None for files.
    """

    pattern: str
    content: str
    writer: str
    removed: bool = True
    published: bool = False
    names: str = ".*"
    parts: str | None = None

    def paths(self, folder: Path) -> list[Path]:
        """The files or folders of this kind that exist in the folder of a run, by name."""
        return sorted(path for path in folder.glob(self.pattern) if re.fullmatch(self.names, path.name))

    def own(self, path: Path) -> list[Path]:
        """What of one of them is the run's: all of it, or of a folder with files of others its own files."""
        if self.parts is None or path.is_symlink() or not path.is_dir():
            return [path]
        content = sorted(path.iterdir())
        own = [each for each in content if re.fullmatch(self.parts, each.name)]
        return [path] if own == content else own


_WEIGHT_NAMES = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
_REPORT_NAMES = (
    r"index\.html|(quality-\d+|pareto-(parameters|flops|latency-\d+)|curve-\d+|loss(-terms)?|learning-rate|knn|"
    r"feature-spread|effective-rank|teacher-entropy|prototype-use|crops|attention|patch-pca)(-dark)?\.png"
)

_LATENCIES = Entry(
    *("latency-*.json", "measured latencies of sizes on one device", "poa select"),
    names=r"latency-\w+-b\d+(-compiled)?\.json",
)
_IMAGE_IDS = Entry(
    *("image_ids-*.jsonl", "the images of each step, one file per process", "training with log_image_ids"),
    names=r"image_ids-\d+\.jsonl",
)
ENTRIES = (
    Entry(CONFIG, "the configuration of the run's last model", "training, poa convert", published=True),
    Entry(
        *(WEIGHT_FILES, "teacher, student and heads of the last model", "training, poa convert"),
        published=True,
        names=_WEIGHT_NAMES,
    ),
    Entry(PROCESSOR, "the image processor for evaluation", "training, poa convert", published=True),
    Entry(CHECKSUMS, "sizes and SHA-256 of the model's files", "training"),
    Entry(RECIPE, "the resolved recipe", "poa pretrain", published=True),
    Entry(TRAINING_ARGUMENTS, "the arguments of the trainer", "training", published=True),
    Entry(METRICS, "one line of losses and statistics per logging step", "training"),
    Entry(TRAINING_TIME, "devices and wall-clock seconds of each part of the run", "training", published=True),
    _IMAGE_IDS,
    Entry(SKIPPED_IMAGES, "the images that could not be decoded, with the reasons", "training"),
    Entry(TEACHER_FEATURES, "a foreign teacher's features of all images", "training with cache_teacher"),
    Entry(
        *(GRAM_TEACHER, "a folder with the teacher at step 0, as a model", "training with gram_weight"),
        parts=rf"config\.json|{_WEIGHT_NAMES}",
    ),
    Entry(CHECKPOINT + "*", "a checkpoint", "training", names=rf"{CHECKPOINT}\d+", parts=".*"),
    Entry(
        *(f"{ABANDONED}{CHECKPOINT}*", "a checkpoint after the one that a run went back to", "training"),
        names=rf"{ABANDONED}{CHECKPOINT}\d+",
        parts=".*",
    ),
    Entry(EVALUATIONS, "one record per evaluation", "poa evaluate, training with eval_steps", published=True),
    _LATENCIES,
    Entry(
        *(PROFILE, "a folder with a trace of some steps and a table of their kernels", "training with profile_steps"),
        parts=r"trace\.json|kernels\.txt",
    ),
    Entry(REPORT, "a folder with the report's page and its pictures", "poa report", parts=_REPORT_NAMES),
    Entry(
        UNIT_ORDER, "the order of units before sub-networks were trained", "poa pretrain with order_units, poa order"
    ),
    Entry(CONVERSION, "where converted weights came from", "poa convert"),
    Entry(SIZES, "the costs, quality and repository of each size", "poa push", published=True),
    Entry(
        ".*lock", "who writes, at this moment: into the folder, or into a file", "training, poa evaluate", removed=False
    ),
    Entry(OWNER, "licence, contact and description for model cards", "the owner of the run", False, published=True),
    Entry(
        *("LICENSE*", "the text of a licence that card.yaml names", "the owner of the run", False),
        published=True,
        names=r"LICENSE(\.md)?",
    ),
)
# What a complete checkpoint holds besides its weights and the optimizer's state. Each process writes a data state.
CHECKPOINT_PARTS = (CONFIG, TRAINER_STATE, COUNTS, "data_state_0.json")


def is_checkpoint_name(name: str) -> bool:
    """Whether a file name is that of a checkpoint, `checkpoint-<step>`."""
    return re.fullmatch(rf"{CHECKPOINT}\d+", name) is not None


def is_weights(name: str) -> bool:
    """Whether a file name is one of those that weights are saved under: one file, or several and their index."""
    return re.fullmatch(_WEIGHT_NAMES, name) is not None


def data_state(checkpoint: Path, rank: int) -> Path:
    """Where one process keeps its place in the data."""
    return checkpoint / f"data_state_{rank}.json"


def data_states(checkpoint: Path) -> list[Path]:
    """The data states in a checkpoint, by process."""
    paths = checkpoint.glob("data_state_*.json")
    return sorted(paths, key=lambda path: int(path.stem.rpartition("_")[2]))


def has_optimizer_state(checkpoint: Path) -> bool:
    """Whether the optimizer's state is there: a file, or DeepSpeed's folder."""
    return (checkpoint / OPTIMIZER_STATE).is_file() or (checkpoint / DEEPSPEED_STATE).is_dir()


def published_patterns() -> list[str]:
    """Patterns of the files of a published supernet that are downloaded to load it."""
    return [entry.pattern for entry in ENTRIES if entry.published]


def latency_name(device_type: str, batch_size: int, compiled: bool = False) -> str:
    """The name of the file with latencies, such as `latency-cpu-b1.json`."""
    return f"latency-{device_type}-b{batch_size}{'-compiled' if compiled else ''}.json"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files. Nothing is read, and no file needs to exist.

    Example:
        >>> run = RunFolder.containing("/data/runs/vit/checkpoint-100")
        >>> str(run.metrics), str(run.checkpoint(200))
        ('/data/runs/vit/metrics.jsonl', '/data/runs/vit/checkpoint-200')
    """

    path: Path

    @classmethod
    def containing(cls, run_or_checkpoint: str | Path) -> RunFolder:
        """The run's folder, given that folder or one of the run's checkpoints; or the folder of a saved model."""
        path = Path(run_or_checkpoint).absolute()
        return cls(path.parent if path.name.startswith(CHECKPOINT) else path)

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def processor(self) -> Path:
        return self.path / PROCESSOR

    @property
    def checksums(self) -> Path:
        return self.path / CHECKSUMS

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE

    @property
    def training_arguments(self) -> Path:
        return self.path / TRAINING_ARGUMENTS

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def skipped_images(self) -> Path:
        return self.path / SKIPPED_IMAGES

    @property
    def teacher_features(self) -> Path:
        return self.path / TEACHER_FEATURES

    @property
    def gram_teacher(self) -> Path:
        return self.path / GRAM_TEACHER

    @property
    def training_time(self) -> Path:
        return self.path / TRAINING_TIME

    @property
    def evaluations(self) -> Path:
        return self.path / EVALUATIONS

    @property
    def conversion(self) -> Path:
        return self.path / CONVERSION

    @property
    def unit_order(self) -> Path:
        return self.path / UNIT_ORDER

    @property
    def owner(self) -> Path:
        return self.path / OWNER

    @property
    def profile(self) -> Path:
        return self.path / PROFILE

    @property
    def report(self) -> Path:
        return self.path / REPORT

    def image_ids(self, rank: int) -> Path:
        """The log of the images that one process has trained on."""
        return self.path / f"image_ids-{rank}.jsonl"

    def logs_of_images(self) -> list[Path]:
        """The logs of all processes that exist, by name."""
        return _IMAGE_IDS.paths(self.path)

    def latency(self, device_type: str, batch_size: int, compiled: bool = False) -> Path:
        """Measured latencies on a kind of device, such as `cpu`."""
        return self.path / latency_name(device_type, batch_size, compiled)

    def latencies(self) -> list[Path]:
        """The files with latencies that exist, by name."""
        return _LATENCIES.paths(self.path)

    def checkpoint(self, step: int) -> Path:
        return self.path / f"{CHECKPOINT}{step}"

    def removed(self) -> Iterator[Path]:
        """All existing files and folders that belong to the run, which overwriting it removes."""
        for entry in ENTRIES:
            if entry.removed:
                for path in entry.paths(self.path):
                    yield from entry.own(path)

    def misplaced(self) -> Path | None:
        """A folder where a run keeps a file, or a file where it keeps a folder; None if there is none."""
        paths = ((path, entry) for entry in ENTRIES for path in entry.paths(self.path) if path.exists())
        return next((path for path, entry in paths if path.is_dir() != (entry.parts is not None)), None)
