from poa_hf.publishing.card.values import crop_sizes, image_words, settings, training_time
from poa_hf.runs.training_time import ComputePart

from .helpers import facts_of


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


def test_arguments_that_are_no_numbers_are_not_told():
    """The file of the arguments is read as it is, since a card says less where it is damaged."""
    names = ["warmup_steps", "weight_decay", "teacher_momentum", "global_crop_size", "local_crop_size"]
    names += ["num_local_crops", "elastic_start_step", "num_elastic_students", "learning_rate", "bf16"]
    for value in ("many", [1], {"a": 1}, None):
        facts = facts_of(arguments=dict.fromkeys(names, value), batch_size=4)
        assert settings(facts) == settings(facts_of(batch_size=4)) and crop_sizes(facts) == crop_sizes(facts_of())
    facts = facts_of(arguments={"warmup_steps": 2000, "weight_decay": "much", "final_weight_decay": 0.4, "bf16": True})
    told = settings(facts)
    assert (told["warm-up"], told["precision"]) == ("2,000 steps", "bfloat16 (autocast)") and "weight decay" not in told
