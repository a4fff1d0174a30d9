"""One training step in parts, as the trainer runs it and by plain stock models, for step_time.py."""

import copy
import time

import torch

from poa_hf.data import PretrainingLoader, augment
from poa_hf.data.textures import TextureDataset
from poa_hf.training.optimization import build_optimizer, hyperparameters_at, set_hyperparameters

from .plain_losses import Tokens
from .plain_losses import ours as heads_and_losses
from .regions import step_parts
from .timing import synchronize


class TimedStep:
    """A training step in parts, ours and plain; each call returns the seconds of every part."""

    def __init__(self, model, size, args, device, bf16):
        self.model, self.size, self.args, self.device, self.bf16 = model, size, args, device, bf16
        grid = (args.global_crop_size // model.config.backbone_config.patch_grid,) * 2
        dataset = TextureDataset(size=args.global_crop_size * 8 // 7)
        self.batches = iter(PretrainingLoader(dataset, args, args.per_device_train_batch_size, grid))
        self.values = hyperparameters_at(30_000, args, 1024)
        self.optimizer = build_optimizer(model, args)
        set_hyperparameters(self.optimizer, self.values)
        self.teacher = model.teacher.extract()
        self.intact = model.student.extract().train()
        self.elastic = model.student.extract(size).train()
        self.heads = copy.deepcopy(model)
        self.crops = self.load()

    def load(self):
        batch = next(self.batches)
        crops = [
            augment(batch[f"{kind}_crops"].to(self.device), batch[f"{kind}_augmentation"], self.args.image_mean,
                    self.args.image_std) for kind in ("global", "local")
        ]  # fmt: skip
        masked_patches = batch["masks"].flatten().nonzero().squeeze(1).to(self.device)
        return *crops, batch["masks"].to(self.device), masked_patches

    def timed(self, function, seconds, part):
        synchronize(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            result = function()
        synchronize(self.device)
        seconds[part] = seconds.get(part, 0) + time.perf_counter() - start
        return result

    def ours(self) -> dict[str, float]:
        """Time the step as the trainer runs it."""
        seconds = {}
        global_crops, local_crops, masks, masked_patches = self.timed(self.load, seconds, "data")
        start = time.perf_counter()

        def timed(function, part):
            return lambda *args, **kwargs: self.timed(lambda: function(*args, **kwargs), seconds, part)

        with step_parts(self.model, timed), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(global_crops, local_crops, masks, self.size, 0.07, masked_patches=masked_patches).loss
        self.timed(loss.backward, seconds, "optimiser and teacher update")  # only hands the gradient on
        self.timed(lambda: self.optimise(self.model, self.optimizer), seconds, "optimiser and teacher update")
        seconds["step"] = time.perf_counter() - start
        return seconds

    def plain(self) -> dict[str, float]:
        """Time the same passes of stock models of the same sizes."""
        seconds, (global_crops, local_crops, masks, masked_patches) = {}, self.crops

        def run(backbone, with_local=True):
            output = backbone(global_crops, bool_masked_pos=masks if with_local else None)
            local = backbone(local_crops).pooler_output if with_local else output.pooler_output[:0]
            return Tokens(output.pooler_output, local, output.last_hidden_state[:, 1:][masks])

        with torch.no_grad():
            teacher = self.timed(lambda: run(self.teacher, with_local=False), seconds, "teacher")
        tokens = [
            self.timed(lambda: run(self.intact), seconds, "intact"),
            self.timed(lambda: run(self.elastic), seconds, "elastic"),
        ]
        leaves = [leaf_tokens(branch) for branch in tokens]
        self.timed(
            lambda: self.heads_and_losses(self.heads, teacher, *leaves, masks, masked_patches),
            seconds,
            "heads and losses",
        )
        self.timed(lambda: backward(tokens[1], leaves[1]), seconds, "elastic")
        self.timed(lambda: backward(tokens[0], leaves[0]), seconds, "intact")
        for module in (self.intact, self.elastic, self.heads):
            module.zero_grad()
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.timed(lambda: self.optimise(self.model, self.optimizer), seconds, "optimiser and teacher update")
        seconds["step"] = sum(seconds.values())
        return seconds

    def heads_and_losses(self, model, teacher, intact, elastic, masks, masked_patches):
        patch_weights = (1 / masks.sum(dim=1).clamp(min=1))[masked_patches // masks.shape[1]]
        heads_and_losses(model, teacher, intact, elastic, patch_weights, 0.07).backward()

    def optimise(self, model, optimizer):
        for module in (model.student, model.student_head):
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.5)
        optimizer.step()
        model.update_teacher(self.values.teacher_momentum)
        optimizer.zero_grad()


def leaf_tokens(tokens: Tokens) -> Tokens:
    return Tokens(*(tensor.detach().requires_grad_() for tensor in tokens))


def backward(tokens: Tokens, leaves: Tokens) -> None:
    torch.autograd.backward(
        [tokens.global_, tokens.local, tokens.masked], [leaves.global_.grad, leaves.local.grad, leaves.masked.grad]
    )
