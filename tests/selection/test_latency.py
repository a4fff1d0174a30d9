import time

import pytest
import torch
from transformers import PreTrainedConfig

from poa_hf.selection.latency import measure_latency


class Sleeper(torch.nn.Module):
    """A model whose passes take the given milliseconds, one after the other; the last for all that follow."""

    def __init__(self, *milliseconds: float):
        super().__init__()
        self.config = PreTrainedConfig(image_size=8, num_channels=3)
        self.milliseconds, self.passes, self.shapes = list(milliseconds), 0, set()

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.shapes.add(tuple(images.shape))
        time.sleep(self.milliseconds[min(self.passes, len(self.milliseconds) - 1)] / 1000)
        self.passes += 1


def test_warm_up_does_not_count_and_the_median_does():
    model = Sleeper(300, 20, 200, 20)
    measured = measure_latency(model, batch_size=4, repeats=6, warmup=1)
    assert model.passes == 7 and model.shapes == {(4, 3, 8, 8)}
    assert 20 <= measured.median_ms < 120  # one of six took 200 ms
    assert measured.images_per_second == pytest.approx(4000 / measured.median_ms)
    assert 0 <= measured.iqr_ms < 150


def test_a_slow_model_is_repeated_less():
    model = Sleeper(30)
    measure_latency(model, repeats=100, warmup=100, max_seconds=0.01)
    assert model.passes == 1 + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, r"repeats \(0\) must be at least 1"),
        ({"batch_size": 0}, "batch_size .*0"),
        ({"warmup": -1}, r"warmup \(-1\) not negative"),
        ({"device": "abacus"}, "Device 'abacus' is not available here: use cpu"),
        ({"device": "meta"}, "Device 'meta' is not available here"),
        ({"device": "cpu:1"}, "Device 'cpu:1' is not available here"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(Sleeper(0), **options)
