"""Stochastic depth by subset computes the same compiled or not."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from poa_hf.models.stochastic_depth import Subset, add_residual


def test_stochastic_depth_runs_on_a_rescaled_subset():
    hidden, seen = torch.randn(10, 3, 4), []

    def branch(kept, index):
        seen.append(index)
        return kept * 2

    output = add_residual(hidden, branch, drop_rate=0.25)
    (index,) = seen
    assert len(index) == len(set(index.tolist())) == 7  # floor(10 * 0.75)
    expected = hidden.clone()
    expected[index] += hidden[index] * 2 * (10 / 7)
    torch.testing.assert_close(output, expected)
    assert len(add_residual(hidden[:1], branch, 0.9)) == 1  # at least one image is kept


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("length", "kept"), [(6, 4), (5, 5), (7, 1)])
def test_rows_of_a_subset_and_their_gradients(length, kept, compiled):
    """Against plain indexing, in float64."""
    torch.manual_seed(0)
    index = torch.randperm(length)[:kept]
    tensor, factors, weights = (torch.randn(length, 3, 4, dtype=torch.float64) for _ in range(3))

    def computed(tensor, factors, index):
        subset = Subset(index, len(tensor))
        return subset.added(tensor, subset.of(tensor).square() * subset.of(factors), 1.5)

    def expected(tensor, factors, index):
        added = torch.zeros_like(tensor)
        added[index] = tensor[index].square() * factors[index] * 1.5
        return tensor + added

    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    results = []
    for function in (torch.compile(computed, backend=backend, fullgraph=True) if compiled else computed, expected):
        inputs = [tensor.clone().requires_grad_(), factors.clone().requires_grad_()]
        output = function(*inputs, index)
        results.append([output, *torch.autograd.grad(output, inputs, weights)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert len(graphs) == 2 * compiled and not [
        graph for graph in graphs if "index_add" in graph or "index_put" in graph
    ]
