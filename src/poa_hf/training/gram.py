"""The Gram teacher of a run with a `gram_weight`: which frozen model it is, and its features of patches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ..models.foreign_teacher import ForeignTeacher
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..models.saved import load_saved_model
from ..runs.atomic import written_folder
from ..runs.checkpoints import MAX_SHARD_SIZE
from ..runs.json_files import read_object
from ..runs.layout import CONFIG, RunFolder
from . import engine_states
from .arguments import PoaTrainingArguments

_OWN = "The run's own teacher at step 0"


class NoGramTeacher:
    """Stands for the Gram teacher of a run without one."""

    flops = 0

    def check(self, checkpoint: Path | None) -> None:
        """Check nothing."""

    def start(self) -> None:
        """Prepare nothing."""

    def __call__(self, batch: dict[str, Any], crops: Tensor) -> Tensor | None:
        """Return None."""
        return None


class GramTeacher:
    """A frozen model to whose similarities of patches the students are anchored.

    By default, it is the run's own teacher at step 0, which is kept in the run's folder, so that a resumed run has the
    same one. All processes call each method together.

    Args:
        model: The model that is trained.
        args: The arguments of the run.
        teacher: Another model as Gram teacher; None for the run's own teacher.
        accelerator: The accelerator of the run.

    Raises:
        ValueError: If the teacher cannot compute features of the crops' patches.
    """

    def __init__(
        self,
        model: PoaForPreTraining,
        args: PoaTrainingArguments,
        teacher: ForeignTeacher | None,
        accelerator: Accelerator,
    ):
        self.model, self.args, self.accelerator = model, args, accelerator
        self.path = RunFolder(Path(args.output_dir).resolve()).gram_teacher
        self.size = args.gram_teacher_size or args.global_crop_size
        backbone = model.config.backbone_config
        self._side = args.global_crop_size // backbone.crop_multiple  # of the last feature map
        self._times = backbone.crop_multiple // backbone.patch_grid  # tokens that stand for one of its positions
        self._is_own = teacher is None
        self._kept = self.path  # where the run's own teacher is read
        self.teacher: ForeignTeacher | None = None
        if self.size < args.global_crop_size:
            raise ValueError(
                f"gram_teacher_size {self.size} is below global_crop_size {args.global_crop_size}: the Gram teacher "
                "sees crops at least as large as the students' ones."
            )
        if teacher is not None:
            self._prepare(teacher)
        elif self.size % backbone.crop_multiple:
            below = self.size - self.size % backbone.crop_multiple
            raise ValueError(
                f"gram_teacher_size {self.size} is not a multiple of {backbone.crop_multiple} (pixels of a position of "
                f"the last feature map): use {below} or {below + backbone.crop_multiple}."
            )

    @property
    def flops(self) -> int:
        """Floating-point operations of its features of one crop."""
        return 0 if self.teacher is None else self.teacher.flops

    def check(self, checkpoint: Path | None) -> None:
        """Check that the run that is resumed has this Gram teacher; of its own one, load the copy that it kept.

        Args:
            checkpoint: The checkpoint that the run resumes from; None if it starts anew.

        Raises:
            ValueError: If it had another one or none.
        """
        if checkpoint is None:
            return
        before = read_object(checkpoint / CONFIG).get("gram_teacher")
        if not isinstance(before, dict):
            raise ValueError(
                f"{checkpoint} belongs to a run without gram_weight: start a new run from it with --init_from, or "
                "leave gram_weight out."
            )
        now = None if self.teacher is None else self.teacher.name
        if before.get("teacher") != now:
            names = ["the run's own teacher" if name is None else repr(name) for name in (before.get("teacher"), now)]
            raise ValueError(
                f"{checkpoint} belongs to a run whose Gram teacher is {names[0]}, this one's is {names[1]}: resume "
                "with the same --gram_teacher, or start anew."
            )
        if self._is_own:
            self._kept = RunFolder.containing(checkpoint.resolve()).gram_teacher
            self._load()
        assert self.teacher is not None
        if before.get("fingerprint") != self.teacher.fingerprint:
            raise ValueError(
                f"The Gram teacher of {checkpoint} has other weights than before: resume with the same one, or start "
                "anew."
            )

    def start(self) -> None:
        """Keep a copy of the run's own teacher, and load it; the folder of the run is known to be free."""
        if not self._is_own or self.path == self._kept and self.teacher is not None:
            return
        with written_folder(self.path, self.accelerator.is_main_process, self.accelerator.wait_for_everyone) as folder:
            if self.teacher is None:
                weights = engine_states.whole_state_dict(self.model)
                own = {name.removeprefix("teacher."): t for name, t in weights.items() if name.startswith("teacher.")}
                if self.accelerator.is_main_process:
                    self.model.teacher.save_pretrained(folder, state_dict=own, max_shard_size=MAX_SHARD_SIZE)
            elif self.accelerator.is_main_process:  # resumed from a checkpoint in another folder
                shutil.copytree(self._kept, folder, dirs_exist_ok=True)
        self._kept = self.path
        if self.teacher is None:
            self._load()

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any], crops: Tensor) -> Tensor:
        """Return its features of the patches of the global crops, one for each of the students' tokens (2B, tokens, D).

        Args:
            batch: A batch of the loader, with global crops of the Gram teacher's size.
            crops: The students' global crops (2B, C, H, W), which it sees where its size is not given.
        """
        assert self.teacher is not None
        if self.args.gram_teacher_size is not None:
            crops = self._undistorted(batch)
        patches = self.teacher(crops, (self._side, self._side)).patches
        assert patches is not None
        grid = patches.unflatten(1, (self._side, self._side))
        return grid.repeat_interleave(self._times, 1).repeat_interleave(self._times, 2).flatten(1, 2)

    def _undistorted(self, batch: dict[str, Any]) -> Tensor:
        """Return the global crops as they were cut, only flipped as the students' ones and normalised."""
        device, args = self.accelerator.device, self.args
        pixels = batch["global_crops"].to(device, non_blocking=True).float().div_(255)
        flip = batch["global_augmentation"]["flip"].to(device, non_blocking=True)
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (args.image_mean, args.image_std)
        )
        return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels).sub_(mean).div_(std)

    def _load(self) -> None:
        """Load the run's own teacher from where it is kept."""
        if not (self._kept / CONFIG).exists():
            raise ValueError(
                f"{self._kept} is not there, which holds the Gram teacher of the run: put it back, or start anew."
            )
        model, missing, _ = load_saved_model(AutoModel, self._kept)
        if missing:
            raise ValueError(f"{self._kept} lacks {missing[0]}: put back the Gram teacher of the run, or start anew.")
        self._prepare(ForeignTeacher(model, _OWN, self.size, self.args.image_mean, self.args.image_std))

    def _prepare(self, teacher: ForeignTeacher) -> None:
        args = self.args
        teacher.image_size = self.size
        dtype = torch.bfloat16 if args.bf16 else None
        device = self.accelerator.device
        teacher.prepare(self.size, args.image_mean, args.image_std, device, dtype, size_field="gram_teacher_size")
        if not teacher.patch_features:
            raise ValueError(f"{teacher.name} has no features of patches to anchor: give another gram_teacher.")
        self.teacher = teacher
        self.model.config.gram_teacher = {
            "teacher": None if self._is_own else teacher.name,
            "image_size": self.size,
            "fingerprint": teacher.fingerprint,
        }


def gram_teacher(
    model: PoaForPreTraining,
    args: PoaTrainingArguments,
    teacher: ForeignTeacher | PreTrainedModel | None,
    accelerator: Accelerator,
) -> NoGramTeacher | GramTeacher:
    """Return what gives the features of the Gram teacher that a model's `gram_weight` asks for.

    Args:
        model: The model that is trained.
        args: The arguments of the run.
        teacher: The Gram teacher; None for the run's own teacher at step 0.
        accelerator: The accelerator of the run.

    Raises:
        ValueError: For a teacher or arguments that do not fit the run.
    """
    if not model.config.gram_weight:
        given = "gram_teacher" if teacher is not None else "gram_teacher_size"
        if teacher is not None or args.gram_teacher_size is not None:
            raise ValueError(f"{given} is given, but no weight: add --model.gram_weight, or leave it out.")
        model.config.gram_teacher = None
        return NoGramTeacher()
    if teacher is not None and not isinstance(teacher, ForeignTeacher):
        teacher = ForeignTeacher(teacher, image_size=args.gram_teacher_size or args.global_crop_size)
    return GramTeacher(model, args, teacher, accelerator)
