"""Whole batches from worker processes."""

import pytest
import torch
from torch.utils.data import IterableDataset

from poa_hf.data.workers import batch_loader, worker_share


class Shares(IterableDataset):
    """Yields this worker's share, and the threads that it may use."""

    def __iter__(self):
        yield (*worker_share(), torch.get_num_threads())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_worker_knows_its_share(num_workers):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = list(batch_loader(Shares(), num_workers))
    assert found == ([(0, 1, torch.get_num_threads())] if num_workers == 0 else [(0, 2, 1), (1, 2, 1)])
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
