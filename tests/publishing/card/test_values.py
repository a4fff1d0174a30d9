from poa_hf.publishing.card.values import image_words, training_time
from poa_hf.runs.training_time import ComputePart


def test_times_add_up_by_device():
    parts = [
        ComputePart("CPU", 1, 0, 1, 12.34), ComputePart("CPU", 1, 1, 2, 20), ComputePart("CPU", 2, 2, 3, 600),
        ComputePart("NVIDIA A100", 8, 3, 4, 2 * 3600),
    ]  # fmt: skip
    assert training_time(parts) == (
        "32 s on a CPU, then 10 min on CPUs (2 processes), then 2 h on 8 x NVIDIA A100 (16 device hours)"
    )
    assert training_time([]) == ""


def test_images_of_other_channels():
    assert image_words(3) == "a PIL image" and "grey" in image_words(1)
    assert "(4, height, width)" in image_words(4) and "torchvision" in image_words(5)
    assert image_words(4, "timm").startswith("a float tensor of shape (4, height, width)")
