"""Private interfaces of other libraries that poa_hf uses (docs/private_interfaces.md) are still as it needs them.

Each test fails with a sentence that says which module to mend when a library changes.
"""

import torch
from transformers import AutoConfig, Dinov2Config, Dinov2Model, SwinConfig, SwinModel

from poa_hf._registration import AUTO_MODULE


def test_attention_layers_give_their_weights():
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    layers = [layer for layer in Dinov2Model(config).modules() if hasattr(layer, "q_proj") and hasattr(layer, "config")]
    assert layers, "transformers' attention layers have no q_proj or config any more: mend figures/patches.py"
    layers[-1].config = type(config).from_dict(config.to_dict(), attn_implementation="eager")
    output = layers[-1](torch.zeros(1, 5, 16))
    assert isinstance(output, tuple) and output[1] is not None and output[1].shape == (1, 2, 5, 5), (
        "transformers' attention layers do not return (features, weights) any more: mend figures/opened.py"
    )


def test_stock_swin_blocks_have_windows():
    config = SwinConfig(embed_dim=8, depths=[2], num_heads=[2], image_size=32, patch_size=4, window_size=4)
    windows = [
        (block.window_size, block.shift_size) for block in SwinModel(config).modules() if hasattr(block, "shift_size")
    ]
    assert windows == [(4, 0), (4, 2)], (
        "stock Swin's blocks have no window_size and shift_size any more: mend figures/opened.py"
    )


def test_auto_config_is_defined_where_registration_waits():
    assert AutoConfig.__module__ == AUTO_MODULE, (
        "transformers defines AutoConfig in another module: mend poa_hf/_registration.py, AUTO_MODULE"
    )


def test_fsspec_resets_its_lock():
    import fsspec.asyn

    assert callable(getattr(fsspec.asyn, "reset_lock", None)), (
        "fsspec has no asyn.reset_lock any more, which forked workers call before they read: mend data/workers.py"
    )


def test_accelerate_forgets_an_earlier_run():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    for precision in ("bf16", "no"):
        for state in (AcceleratorState, GradientState):
            assert callable(getattr(state, "_reset_state", None)), (
                f"Accelerate's {state.__name__} has no _reset_state any more: mend training/engines.py"
            )
            state._reset_state()
        assert Accelerator(mixed_precision=precision, cpu=True).mixed_precision == precision, (
            "an accelerator keeps the precision of an earlier one after _reset_state: mend training/engines.py"
        )


def test_the_launcher_says_what_it_launches():
    from .training.processes import launch_environment

    expected = {
        "fsdp2.yaml": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        "deepspeed_zero2.yaml": {"ACCELERATE_USE_DEEPSPEED": "true"},
    }
    for config, variables in expected.items():
        assert variables.items() <= launch_environment(config).items(), (
            f"`accelerate launch` does not set {', '.join(variables)} any more: mend training/engines.py"
        )


def test_fused_adamw_reads_found_inf():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    for found_inf, moved in ((1.0, False), (0.0, True)):
        parameter.grad = torch.ones(3)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        assert bool((parameter != 1).all()) is moved, (
            "torch's fused AdamW does not skip a step by its found_inf any more: mend training/optimization.py"
        )
