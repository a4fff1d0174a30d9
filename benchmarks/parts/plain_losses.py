"""The heads and losses of a step on precomputed features: ours, and straightforward implementations to compare with.
All give the same loss and gradient."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from poa_hf.objective.branches import Batch, Branch
from poa_hf.objective.early_gradients import differentiated
from poa_hf.objective.losses import koleo
from poa_hf.objective.objective import LossWeights, poa_loss


class Tokens(NamedTuple):
    """A branch's features of B images with V local views: `global_` (2B, D), `local` (V*B, D), and those of the masked
    patches, `masked` (M, D)."""

    global_: Tensor
    local: Tensor
    masked: Tensor

    def joined(self) -> Tensor:
        return torch.cat(self)


def ours(model, teacher, intact, elastic, patch_weights, temperature):
    """Return a function that computes our objective on precomputed features."""
    counts = [len(kind) for kind in intact]

    def loss(gradients, *features):
        def branch(tokens, heads, full):
            return GivenFeatures(None, heads, full.prototypes, tokens=Tokens(*tokens))

        heads = gradients.on_leaves(model.student_head.sliced(elastic.global_.shape[-1]))
        weights = LossWeights(model.config.intact_weight, model.config.koleo_weight, model.config.student_temperature)
        crops, local_crops = (torch.empty(count, 0) for count in counts[:2])
        return poa_loss(
            GivenBatch(crops, local_crops, torch.empty(counts[0], 0, dtype=torch.bool), None, weights=patch_weights),
            branch(teacher, model.teacher_head, model.teacher_head),
            branch(features[:3], model.student_head, model.student_head),
            [lambda: branch(features[3:], heads, model.student_head)],
            weights,
            temperature,
            gradients,
        )

    total, _ = differentiated(loss, [*intact, *elastic], model.student_head.parameters())
    return total


@dataclass(frozen=True)
class GivenBatch(Batch):
    """A stand-in for a batch: as many crops as features, and the weights of masked patches."""

    weights: Tensor | None = None

    @property
    def patch_weights(self) -> Tensor:
        return self.weights


@dataclass(frozen=True)
class GivenFeatures(Branch):
    """A branch whose features were computed before."""

    tokens: Tokens | None = None

    def global_tokens(self, batch, masks):
        return torch.cat([self.tokens.global_, self.tokens.masked])

    def local_tokens(self, batch):
        return self.tokens.local


def cross_entropy(targets, logits, temperature):
    """Return the cross-entropy of each row of logits (..., K) with soft targets, without a log-softmax."""
    scores = logits.float() / temperature
    return scores.logsumexp(dim=-1) * targets.sum(dim=-1) - (targets * scores).sum(dim=-1)


def sinkhorn(logits, temperature):
    """Return the targets (N, K) of logits (N, K) by Sinkhorn-Knopp, in float32 and in one process."""
    assignments = (logits.float() / temperature - logits.max() / temperature).exp()
    assignments /= assignments.sum()
    count, num_prototypes = assignments.shape
    for _ in range(3):
        assignments /= (assignments.sum(dim=0) * num_prototypes).clamp_(min=1e-30)
        assignments /= (assignments.sum(dim=1, keepdim=True) * count).clamp_(min=1e-30)
    return assignments.mul_(count)


def log_softmax_cross_entropy(targets, logits, temperature):
    return -(targets * log_softmax(logits / temperature, dim=-1, dtype=torch.float32)).sum(dim=-1)


def all_heads_at_once(model, teacher, intact, elastic, patch_weights, temperature):
    """Compute the loss as the authors do: all logits, then float32 targets and log-softmaxes, then the losses."""
    with torch.no_grad():
        targets = [
            [sinkhorn(class_tokens, temperature), sinkhorn(masked, temperature)]
            for class_tokens, _, masked in all_logits(model.teacher_head, model.teacher_head, teacher)
        ]
    elastic_heads = model.student_head.sliced(elastic.global_.shape[-1])
    intact_logits = all_logits(model.student_head, model.student_head, intact)
    elastic_logits = all_logits(elastic_heads, model.student_head, elastic)
    losses = [
        head_loss(model.config, *logits, patch_weights, log_softmax_cross_entropy)
        for logits in zip(targets, intact_logits, elastic_logits, strict=True)
    ]
    return sum(losses) / len(losses) + koleo_loss(model.config, intact, elastic)


def head_by_head(model, teacher, intact, elastic, patch_weights, temperature):
    """Compute the loss head by head, without log-softmaxes; autograd keeps the logits until the backward pass."""
    losses = []
    elastic_heads = model.student_head.sliced(elastic.global_.shape[-1])
    with torch.no_grad():
        teacher_logits = list(all_logits(model.teacher_head, model.teacher_head, teacher))
    intact_logits = all_logits(model.student_head, model.student_head, intact)
    elastic_logits = all_logits(elastic_heads, model.student_head, elastic)
    for (class_tokens, _, masked), *students in zip(teacher_logits, intact_logits, elastic_logits, strict=True):
        with torch.no_grad():
            targets = [sinkhorn(class_tokens, temperature), sinkhorn(masked, temperature)]
        losses.append(head_loss(model.config, targets, *students, patch_weights, cross_entropy))
    return sum(losses) / len(losses) + koleo_loss(model.config, intact, elastic)


def all_logits(heads, full, tokens):
    """Yield the logits of each head, of the tokens of each kind."""
    for projected, prototypes in zip(heads(tokens.joined()), full.prototypes, strict=True):
        yield split(prototypes(projected), tokens)


def head_loss(config, targets, intact, elastic, patch_weights, cross_entropy):
    """Return one head's loss from (class token, patch) targets and both students' (global, local, masked) logits."""
    (first, second), temperature = targets[0].chunk(2), config.student_temperature
    total, batch_size = 0.0, len(first)
    views = len(intact[1]) // batch_size
    for weight, (global_, local, masked) in ((config.intact_weight, intact), (1 - config.intact_weight, elastic)):
        cross = 2 * cross_entropy(torch.cat([second, first]), global_, temperature).mean()
        if views:
            local = local.unflatten(0, (views, batch_size))
            cross = cross + cross_entropy(first + second, local, temperature).mean(dim=1).sum()
        patches = cross_entropy(targets[1], masked, temperature) * patch_weights
        total = total + weight * (cross / (2 + 2 * views) + patches.sum() / (2 * batch_size))
    for own, other in zip(intact[:2], elastic[:2], strict=True):
        same_view = (own.detach().float() / temperature).softmax(dim=-1)
        loss = cross_entropy(same_view, other, temperature).sum() / max(1, len(own))
        total = total + (1 - config.intact_weight) * loss
    return total


def koleo_loss(config, intact, elastic):
    views = [*intact.global_.chunk(2), *elastic.global_.chunk(2)]
    return config.koleo_weight * sum(koleo(view) for view in views) / 2


def split(logits, tokens):
    return logits.split([len(tokens.global_), len(tokens.local), len(tokens.masked)])
