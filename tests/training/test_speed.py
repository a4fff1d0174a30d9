"""What a log says about speed: operations against PyTorch's counter, rates against known ones."""

import pytest
import torch

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig, PoaSwinConfig, PoaTrainer
from poa_hf.models.compiled_blocks import BlockCompiler
from poa_hf.models.flops import flop_counter
from poa_hf.training.speed import SpeedLog, StepFlops, measured_flops, peak_flops, speed_summary

from ..conftest import tiny_backbone
from .test_gram import dinov2
from .test_trainer import arguments, images, metrics, new_model

SMALL_HEADS = dict(num_prototypes=[32], head_hidden_size=16, head_bottleneck_size=8)


@pytest.mark.parametrize(
    "backbone",
    [
        tiny_backbone(drop_path_rate=0.0),
        PoaSwinConfig(image_size=32, embed_dim=16, depths=[1, 3], num_heads=[2, 4], min_embed_dim=8, min_depths=[1, 1],
                      window_size=2, drop_path_rate=0.0),
        PoaResNetConfig(embedding_size=4, hidden_sizes=[64, 128], depths=[1, 3], base_width=32, num_groups=4,
                        min_base_width=16, min_depths=[1, 1]),
    ],
    ids=["vit", "swin", "resnet"],
)  # fmt: skip
def test_operations_of_a_step_are_those_that_pytorch_counts(backbone, tmp_path):
    config = PoaConfig(backbone_config=backbone, **SMALL_HEADS)
    args = arguments(tmp_path, per_device_train_batch_size=4, mask_ratio=[0.5, 0.5], mask_probability=1.0)
    counted = StepFlops(config, args)
    model = PoaForPreTraining(config).train()
    grid = 32 // backbone.patch_grid
    masks = torch.arange(grid * grid).expand(8, -1) % 2 == 0  # half of the patches of each global crop
    global_crops, local_crops = torch.randn(8, 3, 32, 32), torch.randn(8, 3, 16, 16)
    for size in backbone.space:
        with flop_counter() as counter:
            model(global_crops, local_crops, masks, size, 0.07).loss.backward()
        # Logits that are computed a second time are not counted. The first layer has no gradient of its input, which
        # counts in a ResNet this small.
        assert counted.of_step(size) == pytest.approx(counter.get_total_flops(), rel=0.2)


class WithoutModules:
    """Instead of PyTorch's counts by module, whose hooks refuse gradients of a module's inputs that are leaves."""

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(
    "gram_weight, options",
    [
        (1.0, dict(gram_teacher_size=64)),
        (0.0, dict(foreign_teacher_loss="features")),
        (0.0, dict(foreign_teacher_loss="prototypes")),
        (0.0, dict(foreign_teacher_loss="features", foreign_teacher_patches=False)),
    ],
)
def test_what_frozen_teachers_compute_is_counted(tmp_path, gram_weight, options):
    """The rest of the step is that of the same model."""
    config = PoaConfig(backbone_config=tiny_backbone(), gram_weight=gram_weight, **SMALL_HEADS)
    options |= dict(max_steps=1, mask_ratio=[0.5, 0.5], mask_probability=1.0, masked_prediction_start_step=0)
    teacher = None if gram_weight else dinov2()
    trainer = PoaTrainer(PoaForPreTraining(config), arguments(tmp_path, **options), images(), foreign_teacher=teacher)
    step, counts = trainer.optimizer_step, []

    def counted(*args):
        counter = flop_counter()
        counter.mod_tracker = WithoutModules()
        with counter:
            step(*args)
        counts.append(counter.get_total_flops())

    trainer.optimizer_step = counted
    trainer.train()
    size = config.backbone_config.space.sub_network_at(0)
    assert trainer.speed.flops.of_step(size) == pytest.approx(counts[0], rel=0.1)


def test_rates_of_known_devices_and_no_guess_for_others():
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert peak_flops("NVIDIA H100 PCIe", torch.bfloat16) == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", torch.float32) == 19.5e12
    assert peak_flops("NVIDIA L40S", torch.bfloat16) == 362e12
    assert peak_flops("NVIDIA H200 NVL", torch.bfloat16) == 835e12
    assert peak_flops("NVIDIA GH200 480GB", torch.bfloat16) == 989e12
    assert peak_flops("NVIDIA A10G", torch.bfloat16) == 70e12
    unknown = ["A card of tomorrow", "NVIDIA RTX A4000", "NVIDIA RTX A3000", "NVIDIA RTX A1000", "NVIDIA GB200", ""]
    for name in [*unknown, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A100X"]:
        assert peak_flops(name, torch.bfloat16) is None, name
    assert measured_flops(torch.device("cpu"), torch.float32, seconds=0.01) > 1e8


def test_a_line_of_the_log():
    values = speed_summary([1.0, 2.0, 6.0], [3e12, 3e12, 12e12], 4e12, torch.device("cpu"))
    assert values == {"step_seconds": 2.0, "slowest_step_seconds": 6.0, "tflops": 2.0, "mfu": 0.5}
    assert "mfu" not in speed_summary([1.0], [1e12], None, torch.device("cpu"))


def test_a_line_of_the_log_of_a_gpu(tmp_path, monkeypatch):
    """With a GPU that is not there: its maker's rate, and its memory in GB of 1e9 bytes."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 31_000_000_000)
    config, device = PoaConfig(backbone_config=tiny_backbone(), **SMALL_HEADS), torch.device("cuda")
    size = config.backbone_config.space.sub_network_at(0)
    for options, peak in (({}, 67e12), ({"bf16": True}, 989e12)):
        log = SpeedLog(config, arguments(tmp_path, **options), device, None)
        values = log.values([2.0], [(size,)])
        assert values["peak_memory_gb"] == 31.0 and values["mfu"] == pytest.approx(values["tflops"] * 1e12 / peak)
        assert values["tflops"] * 1e12 == pytest.approx(log.flops.of_step(size) / 2)


def test_recompilations_are_said_when_there_are_more(tmp_path, caplog):
    config, compiler = PoaConfig(backbone_config=tiny_backbone(), **SMALL_HEADS), BlockCompiler(backend="aot_eager")
    log = SpeedLog(config, arguments(tmp_path), torch.device("cpu"), compiler)
    for recompilations, warnings in ((0, 0), (2, 1), (2, 1), (3, 2)):
        compiler.recompilations, compiler.seconds = recompilations, 1.5
        assert log.values([1.0], [()])["compile_seconds"] == 1.5
        assert len(caplog.records) == warnings
    assert "2 blocks were compiled more than once" in caplog.text and "--compile off" in caplog.text


def test_the_log_of_a_run_and_its_profile(tmp_path):
    args = arguments(tmp_path, profile_steps="2:3", measure_peak=True)
    PoaTrainer(new_model(), args, images()).train()
    for line in metrics(tmp_path):
        assert 0 < line["step_seconds"] <= line["slowest_step_seconds"] and line["tflops"] > 0 < line["mfu"] < 1
    profile = tmp_path / "profile"
    assert "aten::mm" in (profile / "kernels.txt").read_text()
    assert '"traceEvents"' in (profile / "trace.json").read_text()
    PoaTrainer(new_model(), arguments(tmp_path / "plain"), images()).train()
    assert "mfu" not in metrics(tmp_path / "plain")[-1] and not (tmp_path / "plain" / "profile").exists()


@pytest.mark.parametrize("steps", ["3", "5:2", "0:3", "a:b", "1:2:3", ""])
def test_profile_steps_that_are_none_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match="profile_steps is .*: give the first and the last step, such as 20:25"):
        arguments(tmp_path, profile_steps=steps)
