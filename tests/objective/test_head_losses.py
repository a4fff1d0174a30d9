"""The heads' losses in chunks, beside the plain equations with all logits at once."""

import pytest
import torch
from torch.nn.functional import log_softmax, normalize

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.objective import losses
from poa_hf.objective.losses import SinkhornKnopp

from ..conftest import random_batch, tiny_config

SIZE = SubNetwork(16, 2)
TEMPERATURE = 0.05


def model_with_bent_prototypes(**overrides) -> PoaForPreTraining:
    """Prototypes of lengths other than 1, so that both of their parameters matter."""
    model = PoaForPreTraining(tiny_config(num_prototypes=[12, 37], **overrides))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for heads in (model.student_head, model.teacher_head):
            for head in heads:
                head.prototypes.weight_g.uniform_(0.5, 1.5, generator=generator)
                head.prototypes.weight_v.normal_(generator=generator)
        for parameter in model.teacher.parameters():
            parameter.mul_(0.9)
    return model.train()


def plain_sinkhorn(logits):
    assignments = (logits / TEMPERATURE).exp()
    for _ in range(3):
        assignments = assignments / assignments.sum(dim=0)
        assignments = assignments / assignments.sum(dim=1, keepdim=True)
    return assignments


def plain_loss(model, batch, dtype, sizes=(SIZE,)):
    """The sum of all terms but KoLeo from the definitions, in `dtype` from the backbones' features on."""
    config, masks = model.config, batch["masks"]
    batch_size, lam, tau = len(masks) // 2, config.intact_weight, config.student_temperature
    views = len(batch["local_crops"]) // batch_size

    def tokens(backbone, heads, prototypes, hide):
        glob = backbone(batch["global_crops"], bool_masked_pos=masks if hide else None).last_hidden_state
        kinds = [glob[:, 0], glob[:0, 0], glob[:, 1:][masks]]
        if views:
            kinds[1] = backbone(batch["local_crops"]).last_hidden_state[:, 0]
        logits = [
            [(rows @ each.weight.T).to(dtype) for rows, each in zip(heads(kind), prototypes, strict=True)]
            for kind in kinds
        ]
        return list(zip(*logits, strict=True))

    def cross_entropy(targets, logits):
        return -(targets * log_softmax(logits / tau, dim=-1)).sum(dim=-1)

    def teacher_tokens(size):
        backbone = model.teacher if size is None else model.teacher.sliced(size)
        heads = model.teacher_head if size is None else model.teacher_head.sliced(size.width)
        with torch.no_grad():
            return tokens(backbone, heads, model.teacher_head.prototypes, hide=False)

    teachers = [teacher_tokens(size if config.elastic_teacher else None) for size in (None, *sizes)]
    prototypes = model.student_head.prototypes
    intact = tokens(model.student, model.student_head, prototypes, hide=True)
    elastic = [
        tokens(model.student.sliced(size), model.student_head.sliced(size.width), prototypes, hide=True)
        for size in sizes
    ]
    shares = [lam] + [(1 - lam) / len(sizes)] * len(sizes) if sizes else [1]
    weights = (masks / masks.sum(dim=1, keepdim=True).clamp(min=1))[masks].to(dtype)
    total = 0
    for h in range(len(intact)):
        students = [intact[h], *(each[h] for each in elastic)]
        for weight, teacher, (glob, local, patches) in zip(shares, teachers, students, strict=True):
            targets, patch_targets = plain_sinkhorn(teacher[h][0]), plain_sinkhorn(teacher[h][2])
            first, second = targets.chunk(2)
            cross = 2 * cross_entropy(torch.cat([second, first]), glob).mean()
            for view in local.split(batch_size) if views else ():
                cross = cross + cross_entropy(first, view).mean() + cross_entropy(second, view).mean()
            masked = (cross_entropy(patch_targets, patches) * weights).sum() / (2 * batch_size)
            total = total + weight * (cross / (2 + 2 * views) + masked)
        for share, each in zip(shares[1:], elastic, strict=True):
            for own, other in zip(intact[h][:2], each[h][:2], strict=True):
                if len(own):
                    same_view = cross_entropy((own.detach() / tau).softmax(dim=-1), other).mean()
                    total = total + share * config.same_view_weight * same_view
    return total / len(intact)


def gradients(model, loss):
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


CASES = {
    "usual": dict(batch={}),
    "no local crops": dict(batch=dict(num_local=0)),
    "one image": dict(batch=dict(num_images=1)),
    "no masked patch": dict(batch={}, unmasked=True),
    "not predicted yet": dict(batch={}, predict_masked_patches=False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1, 100, 2**23])
def test_chunks_equal_the_plain_equations_in_value_and_gradient(monkeypatch, chunk, case):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    case = CASES[case]
    model, batch = model_with_bent_prototypes(koleo_weight=0.0), random_batch(**case["batch"])
    if case.get("unmasked"):
        batch["masks"][:] = False
    predict = case.get("predict_masked_patches", True)
    output = model(**batch, sub_network=SIZE, teacher_temperature=TEMPERATURE, predict_masked_patches=predict)
    found = gradients(model, output.loss)
    if not predict:
        batch["masks"] = torch.zeros_like(batch["masks"])
    model.double(), batch.update({name: t.double() for name, t in batch.items() if t.is_floating_point()})
    exact = plain_loss(model, batch, torch.float64)
    torch.testing.assert_close(output.loss.double(), exact, rtol=1e-6, atol=0)
    expected = gradients(model, exact)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():  # some are 0 but for rounding: those of the keys' biases
        assert (found[name] - gradient).norm() < 3e-6 * gradient.norm() + 3e-7 * largest, name


@pytest.mark.parametrize(
    "sizes",
    [(), (SubNetwork(16, 1), SIZE), (SubNetwork(16, 1), SubNetwork(24, 2), SubNetwork(32, 1))],
    ids=["none", "two", "three"],
)
@pytest.mark.parametrize("fields", [{"same_view_weight": 0.0}, {"same_view_weight": 0.5, "elastic_teacher": True}])
def test_several_elastic_students_share_the_loss_in_value_and_gradient(sizes, fields):
    model, batch = model_with_bent_prototypes(koleo_weight=0.0, **fields), random_batch()
    output = model(**batch, sub_network=sizes, teacher_temperature=TEMPERATURE)
    found = gradients(model, output.loss)
    expected = plain_loss(model, batch, torch.float32, sizes)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)
    by_plain = gradients(model, expected)
    largest = max(gradient.norm() for gradient in by_plain.values())
    for name, gradient in by_plain.items():
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-5 * largest, name
    names = {name for name in output.losses if name.startswith("distill")}
    assert bool(names) == bool(sizes)
    alone = [model(**batch, sub_network=size, teacher_temperature=TEMPERATURE).losses for size in sizes]
    for name in names:  # as logged, the mean over the elastic students
        mean = torch.stack([losses[name] for losses in alone]).mean()
        torch.testing.assert_close(output.losses[name], mean, rtol=1e-5, atol=1e-7)


def test_koleo_is_the_mean_over_all_students():
    model, batch = model_with_bent_prototypes(koleo_weight=0.1), random_batch()

    def koleo_of(*sizes):
        return model(**batch, sub_network=sizes, teacher_temperature=TEMPERATURE).losses["koleo_loss"]

    intact, first, second = koleo_of(), koleo_of(SIZE), koleo_of(SubNetwork(24, 2))
    torch.testing.assert_close(koleo_of(SIZE, SubNetwork(24, 2)), (2 * first + 2 * second - intact) / 3)


@pytest.mark.parametrize("chunk", [7, 2**23])
@pytest.mark.parametrize("is_elastic", [False, True])
def test_prototype_losses_equal_their_definition_to_a_millionth(monkeypatch, chunk, is_elastic):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    generator = torch.Generator().manual_seed(0)
    features, intact, prototypes = (
        normalize(torch.randn(*shape, generator=generator), dim=-1) for shape in ((23, 6), (23, 6), (19, 6))
    )
    targets = 2 * torch.rand(23, 19, generator=generator)
    weights, same_view_weights = torch.rand(2, 23, generator=generator)
    found = torch.zeros_like(features), torch.zeros_like(prototypes)
    rows, same_view = losses.prototype_losses(
        features,
        prototypes,
        lambda rows: targets[rows],
        0.1,
        weights,
        (intact, same_view_weights) if is_elastic else None,
        found,
    )
    features, prototypes = (tensor.double().requires_grad_() for tensor in (features, prototypes))
    scores = log_softmax(features @ prototypes.T / 0.1, dim=-1)
    exact = -(targets * scores).sum(dim=-1)
    torch.testing.assert_close(rows.double(), exact, rtol=1e-6, atol=0)
    total = (weights * exact).sum()
    if is_elastic:
        same_target = (intact.double() @ prototypes.detach().T / 0.1).softmax(dim=-1)
        exact_same_view = -(same_target * scores).sum(dim=-1)
        torch.testing.assert_close(same_view.double(), exact_same_view, rtol=1e-6, atol=0)
        total = total + (same_view_weights * exact_same_view).sum()
    else:
        assert same_view is None
    for gradient, expected in zip(found, torch.autograd.grad(total, [features, prototypes]), strict=True):
        assert (gradient - expected).norm() < 1e-6 * expected.norm()


def test_bfloat16_is_as_close_to_float64_as_the_plain_equations_in_bfloat16():
    """The same autocast, the same features: chunks add no error of their own."""
    model, batch = model_with_bent_prototypes(koleo_weight=0.0), random_batch(num_images=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch, sub_network=SIZE, teacher_temperature=TEMPERATURE).loss
        plain = plain_loss(model, batch, torch.float32)
    found, rounded = gradients(model, loss), gradients(model, plain)
    model.double(), batch.update({name: t.double() for name, t in batch.items() if t.is_floating_point()})
    exact = plain_loss(model, batch, torch.float64)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 2 * abs(plain - exact) + 1e-3 * exact
    expected = gradients(model, exact)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        error, plain_error = (gradient - found[name]).norm(), (gradient - rounded[name]).norm()
        # the gradient of a key's bias is 0 but for rounding, which is compared on the scale of the others
        assert error < 1.5 * plain_error + 1e-3 * max(gradient.norm(), 1e-3 * largest), name


def test_gradients_of_a_scaled_loss_and_of_a_second_backward_pass(tiny_model):
    batch = random_batch()
    loss = tiny_model(**batch, sub_network=SIZE, teacher_temperature=TEMPERATURE).loss
    parameter = tiny_model.student_head[1].prototypes.weight_v
    (once,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    (again,) = torch.autograd.grad(3 * loss, parameter)
    torch.testing.assert_close(again, 3 * once)


def test_without_gradients_the_loss_is_the_same(tiny_model):
    batch = random_batch()
    arguments = dict(**batch, sub_network=SIZE, teacher_temperature=TEMPERATURE)
    with torch.no_grad():
        without = tiny_model(**arguments)
    output = tiny_model(**arguments)
    assert torch.equal(without.loss, output.loss) and output.losses.keys() == without.losses.keys()
    assert not any(term.requires_grad for term in output.losses.values())


def test_masked_patches_may_be_given_as_indices(tiny_model):
    batch = random_batch()
    arguments = dict(**batch, sub_network=SIZE, teacher_temperature=TEMPERATURE)
    index = batch["masks"].flatten().nonzero().squeeze(1)
    assert torch.equal(tiny_model(**arguments).loss, tiny_model(**arguments, masked_patches=index).loss)


@pytest.mark.parametrize("chunk", [1, 50, 2**23])
def test_assignments_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    logits = torch.randn(17, 11, generator=torch.Generator().manual_seed(0))
    exact = plain_sinkhorn(logits.double())
    assignments = SinkhornKnopp(logits, TEMPERATURE)
    torch.testing.assert_close(assignments(logits[3:9]).double(), exact[3:9], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(assignments(logits).double(), exact, rtol=1e-5, atol=1e-9)


def test_assignments_of_bfloat16_logits_are_computed_in_float32():
    logits = normalize(torch.randn(40, 8), dim=1).bfloat16()
    assignments = SinkhornKnopp(logits, TEMPERATURE)(logits)
    assert assignments.dtype == torch.float32
    torch.testing.assert_close(assignments.double(), plain_sinkhorn(logits.double()), rtol=1e-4, atol=1e-7)


def test_no_logits_outlive_their_chunk(monkeypatch):
    """The most that lies in memory at a time grows with the chunk, not with heads, branches and rows."""
    from torch.profiler import ProfilerActivity, profile

    def peak(num_prototypes, chunk):
        monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
        torch.manual_seed(0)
        config = tiny_config(num_prototypes=num_prototypes)
        model, batch = PoaForPreTraining(config), random_batch(num_images=16, num_local=8)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            model(**batch, sub_network=SIZE, teacher_temperature=TEMPERATURE).loss.backward()
        live = most = 0
        for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                most = max(most, live)
        return most

    rows, prototypes = 32 + 8 * 16 + 72, 8_000
    one_branch = 4 * rows * prototypes  # bytes of its logits, of one head
    backbones, one, four = (peak(heads, 2**15) for heads in ([8], [prototypes], [prototypes] * 4))
    parameters = 4 * prototypes * 9
    assert one - backbones < one_branch
    assert four - one < 3 * 3 * parameters + one_branch / 10  # gradients, a few times over


@pytest.mark.parametrize("width", [32, 16])
def test_heads_together_compute_what_each_does(width):
    heads = model_with_bent_prototypes().student_head
    features = torch.randn(5, width, requires_grad=True)
    scale = heads.in_features / width
    together = heads.sliced(width)(features)
    with torch.no_grad():
        for head in heads:
            head.mlp[0].weight[:, :width] *= scale
    padded = torch.nn.functional.pad(features, (0, heads.in_features - width))
    torch.testing.assert_close(together, torch.stack([head(padded, project=False) for head in heads]))
