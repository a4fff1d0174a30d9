"""Private interfaces of other libraries that poa_hf uses (docs/private_interfaces.md) are still as it needs them.

Each test fails with a sentence that says which module to mend when a library changes.
"""

import torch
from transformers import AutoConfig, Dinov2Config, Dinov2Model, SwinConfig, SwinModel

from poa_hf._registration import AUTO_MODULE


def test_attention_layers_give_their_weights():
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    layers = [layer for layer in Dinov2Model(config).modules() if hasattr(layer, "q_proj") and hasattr(layer, "config")]
    assert layers, "transformers' attention layers lack q_proj or config: mend evaluation/alterations/saliency.py"
    layers[-1].config = type(config).from_dict(config.to_dict(), attn_implementation="eager")
    output = layers[-1](torch.zeros(1, 5, 16))
    assert isinstance(output, tuple) and output[1] is not None and output[1].shape == (1, 2, 5, 5), (
        "transformers' attention layers do not return (features, weights) any more: mend evaluation/opened.py"
    )


def test_stock_swin_blocks_have_windows():
    config = SwinConfig(embed_dim=8, depths=[2], num_heads=[2], image_size=32, patch_size=4, window_size=4)
    windows = [
        (block.window_size, block.shift_size) for block in SwinModel(config).modules() if hasattr(block, "shift_size")
    ]
    assert windows == [(4, 0), (4, 2)], (
        "stock Swin's blocks have no window_size and shift_size any more: mend evaluation/opened.py"
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


def test_streams_of_datasets_show_their_steps():
    import datasets
    from datasets import iterable_dataset
    from datasets.distributed import split_dataset_by_node

    from poa_hf.data import shards

    from .data.streams import EXACT, REREAD, SEPARABLE, memory_stream

    names = shards.SOURCES | shards.ROW_BY_ROW | shards.ROW_BY_ROW_IF_SINGLE | shards.EXACT_STATES | set(shards.CALLED)
    missing = sorted(name for name in names if not hasattr(iterable_dataset, name))
    assert not missing, f"datasets has no {', '.join(missing)} any more: mend data/shards.py"
    mend = "datasets' streams do not show their steps as they did: mend data/shards.py"
    stream = memory_stream()
    assert stream._distributed is None and split_dataset_by_node(stream, 0, 2)._distributed is not None, mend
    for kind, build in (SEPARABLE | EXACT | REREAD).items():
        assert (shards.Shards(build(stream)).in_order is None) == (kind in SEPARABLE), f"{kind}: {mend}"
    endless = datasets.interleave_datasets([stream.repeat(None), stream], stopping_strategy="all_exhausted")
    assert shards.Shards(endless).endless and shards.Shards(stream.repeat(None).skip(3)).endless, mend
    ending = datasets.interleave_datasets([stream.repeat(None), stream])
    for each in (stream.repeat(None).take(3), stream.repeat(2), ending):
        assert not shards.Shards(each).endless, mend
    assert shards.Shards(SEPARABLE["a generator"](stream)).may_be_endless, mend


def test_streams_of_datasets_show_where_they_decode():
    from datasets import iterable_dataset

    from poa_hf.data import decoding_steps
    from poa_hf.data.rows import StreamedImages

    from .data.test_decoding_steps import SEEN, UNSEEN, stream_with_broken_image

    mend = "datasets' streams decode images elsewhere or otherwise: mend data/decoding_steps.py"
    names = (decoding_steps.FORMATTED, decoding_steps.MAPPED, decoding_steps.FILTERED, decoding_steps.IN_THREADS)
    assert all(hasattr(iterable_dataset, name) for name in names), mend
    for kind, build in (SEEN | UNSEEN).items():
        images = StreamedImages(build(stream_with_broken_image()))
        try:
            rows = [row for shard in range(images.num_shards) for row in images.rows(images.open_shard(shard))]
        except ValueError as error:
            raise AssertionError(f"{kind}: {mend}") from error
        assert len(rows) == 4, f"{kind}: {mend}"


def test_damage_is_told_from_the_end_of_an_archive(tmp_path):
    import tarfile

    from poa_hf.data import open_dataset
    from poa_hf.data.damage import DamagedShard
    from poa_hf.data.rows import StreamedImages

    from .data.test_damage import member, overwritten, tar_of

    mend = "a damaged archive is not told from a sound one: mend data/damage.py"
    assert issubclass(tarfile.EOFHeaderError, tarfile.HeaderError) and tarfile.TarFile.tarinfo is tarfile.TarInfo, mend
    data = tar_of(range(12))
    for damaged in (
        None,
        data[: member(data, 16)],
        overwritten(data, 16, bytes(512)),
        overwritten(data, 16, b"x" * 512),
    ):
        (tmp_path / "train.tar").write_bytes(damaged or data)
        source = StreamedImages(open_dataset(str(tmp_path)))
        try:
            assert len(list(source.rows(source.open_shard(0)))) == 12 and damaged is None, mend
        except DamagedShard:
            assert damaged is not None, mend


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


def test_hooks_of_tensors_can_be_set_aside():
    from poa_hf.objective.early_gradients import differentiated

    parameter, calls = torch.ones(2, requires_grad=True), []
    parameter.register_hook(calls.append)
    loss, _ = differentiated(
        lambda gradients: (gradients.add(parameter.sum() + parameter.prod()), None), [], [parameter]
    )
    early = len(calls)
    loss.backward()
    assert (early, len(calls)) == (0, 1), (
        "hooks of tensors are not kept in Tensor._backward_hooks any more, so they are called for parts of a gradient: "
        "mend objective/early_gradients.py, _without_hooks"
    )


def test_gradients_are_handed_on_as_soon_as_they_are_complete():
    from poa_hf.objective.final_gradients import LayerSlice, layer_in_last_pass
    from poa_hf.slicing import Slice

    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    after, (connected,) = layer_in_last_pass(
        torch.ones(()), [second], [None], [LayerSlice(second, 0, Slice("second", None, 1, 1), None)]
    )
    done = []
    for parameter in (first, second):
        parameter.register_hook(lambda gradient, parameter=parameter: done.append(parameter))
    (after + (first.exp() * connected).sum()).backward()
    assert [parameter is second for parameter in done] == [True, False], (
        "autograd's nodes have no _set_sequence_nr any more, or it is not what they are ordered by: "
        "mend objective/final_gradients.py"
    )


def test_lists_of_tensors_are_updated_in_place():
    tensors, others = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.ones(3)]
    torch._foreach_lerp_(tensors, others, 0.5)
    torch._foreach_add_(tensors, torch._foreach_sub(others, tensors), alpha=0.5)
    torch._foreach_add_(tensors, torch._foreach_mul(others, torch.tensor(0.25)))
    rounded = [torch.empty(2, dtype=torch.bfloat16), torch.empty(3, dtype=torch.bfloat16)]
    torch._foreach_copy_(rounded, tensors)
    assert [tensor.tolist() for tensor in rounded] == [[1.0] * 2, [1.0] * 3], (
        "torch's _foreach functions compute something else: mend models/moving_average.py, slicing.py and "
        "objective/early_gradients.py"
    )


def test_models_are_made_without_initialising_them():
    from poa_hf.slicing import without_storage

    state = torch.get_rng_state()
    with without_storage():
        model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28))
    assert all(parameter.is_meta for parameter in model.parameters()) and torch.equal(state, torch.get_rng_state()), (
        "transformers' no_init_weights initialises models, which changes the random state: mend slicing.py, "
        "without_storage"
    )


def test_elastic_models_have_all_that_their_parents_make():
    """Their constructors skip those of the stock classes, which would build every block twice."""
    from poa_hf import (
        PoaDinov2RegistersConfig,
        PoaDinov2RegistersModel,
        PoaDinov3ViTConfig,
        PoaDinov3ViTModel,
        PoaSwinConfig,
        PoaSwinModel,
        PoaViTConfig,
        PoaViTModel,
    )

    fields = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32)
    for model_class, config in (
        (PoaViTModel, PoaViTConfig(**fields)),
        (PoaDinov2RegistersModel, PoaDinov2RegistersConfig(**fields)),
        (PoaDinov3ViTModel, PoaDinov3ViTConfig(**fields)),
        (PoaSwinModel, PoaSwinConfig(embed_dim=16, depths=[2, 2], image_size=32, window_size=4)),
    ):
        ours = dict(model_class(config).named_modules())
        stock = dict(model_class.stock_class(config.stock_config(config.space.full)).named_modules())
        # stock blocks have a module for stochastic depth, ours a number
        missing = {
            f"{name}.{attribute}".lstrip(".")
            for name, module in stock.items()
            if "drop_path" not in name
            for attribute in vars(module)
            if not hasattr(ours[name], attribute)
        }
        assert not missing, (
            f"{model_class.stock_class.__name__}'s constructor makes {', '.join(sorted(missing))}, which "
            f"{model_class.__name__}'s does not: mend models/{model_class.__module__.rpartition('.')[2]}.py"
        )


def test_conversions_of_a_module_go_through_apply():
    from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

    from poa_hf import PoaDinov3ViTConfig, PoaDinov3ViTModel

    fields = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    config = PoaDinov3ViTConfig(**fields, pos_embed_shift=0.5, pos_embed_jitter=2.0)
    model = PoaDinov3ViTModel(config)
    for converted in (model.half(), model.to(torch.float64), model.bfloat16()):
        assert converted.rope_embeddings.inv_freq.dtype == torch.float32, (
            "torch converts modules otherwise than by _apply: mend models/modeling_poa_dinov3_vit.py"
        )
    ours, stock = model.float().rope_embeddings, DINOv3ViTRopePositionEmbedding(config)
    for training in (False, True):
        found = []
        for module in (ours, stock):
            torch.manual_seed(0)
            found.append(torch.cat(module.train(training)(torch.zeros(1, 3, 32, 48))))
        assert torch.equal(*found), (
            "transformers computes DINOv3's rotary positions otherwise: mend models/modeling_poa_dinov3_vit.py"
        )


def test_checkpointing_calls_the_function_that_it_is_given():
    from transformers.modeling_layers import GradientCheckpointingLayer

    from poa_hf import PoaSwinConfig, PoaSwinModel

    model = PoaSwinModel(PoaSwinConfig(embed_dim=16, depths=[2, 2], image_size=32, window_size=4)).train()
    layers = []

    def checkpoint(function, *args):
        # a partial of forward with the layer, or before transformers 5.23 of a method bound to it
        layers.append(type(function.args[0] if function.args else function.func.__self__).__name__)
        return function(*args)

    assert issubclass(GradientCheckpointingLayer, torch.nn.Module)
    model._set_gradient_checkpointing(True, checkpoint)
    model(torch.zeros(1, 3, 32, 32))
    assert layers == ["PoaSwinLayer"] * 4, (
        "transformers checkpoints other modules, or gives the checkpoint function something else than a partial of a "
        "layer's forward: mend models/elastic_model.py, slicing.py (checkpoint_with_slices) and "
        "models/modeling_poa_swin.py (PoaSwinStage)"
    )


def test_attention_implementations_are_kept_in_the_configuration():
    from poa_hf import PoaViTConfig, PoaViTModel

    config = PoaViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, min_hidden_size=8, image_size=32)
    for name in ("sdpa", "eager"):
        model = PoaViTModel._from_config(config, attn_implementation=name)
        found = {
            model.extract("8x1").config._attn_implementation,
            model.sliced("8x1").plain.config._attn_implementation,
        }
        assert found == {name} and model._supports_sdpa and model._supports_attention_backend, (
            "the configuration does not keep the attention implementation in _attn_implementation any more: mend "
            "models/elastic_model.py"
        )


def test_backbones_in_configurations_are_made_by_auto_config():
    from poa_hf import PoaConfig, PoaSwinConfig

    assert type(PoaConfig(backbone_config={"model_type": "poa_swin"}).backbone_config) is PoaSwinConfig, (
        "transformers does not make configurations of sub_configs_defaults any more: mend models/configuration_poa.py"
    )


def test_fake_tensors_take_the_attention_kernel_of_cpus():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cpu"):
        tensor = torch.empty(1, 2, 5, 8, requires_grad=True)
        storage = tensor.untyped_storage()
        output = torch.nn.functional.scaled_dot_product_attention(tensor, tensor, tensor)
        shared = storage is tensor[:, :1].untyped_storage()
    assert "ScaledDotProductFlashAttentionForCpu" in type(output.grad_fn).__name__, (
        "fake tensors take another attention kernel than CPUs: mend models/flops.py (_CPU_ATTENTION)"
    )
    assert shared, "tensors that share a storage do not give the same storage object any more: mend selection/costs.py"


def test_copies_of_a_function_are_compiled_by_themselves():
    from poa_hf.models.compiled_blocks import BlockCompiler

    class Scaled(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(size))

        def forward(self, values):
            return values * self.weight

    sizes = range(1, 13)  # more than the recompilations that torch allows by default
    model, compiler = torch.nn.ModuleList(map(Scaled, sizes)), BlockCompiler(backend="eager")
    compiler.attach(model, [str(number) for number in range(len(sizes))])
    for size, block in zip(sizes, model, strict=True):
        assert block(torch.ones(size)).tolist() == [1.0] * size
    assert (compiler.compilations, compiler.recompilations) == (len(sizes), 0), (
        "torch keeps compiled code or finds compilers in another way: mend models/compiled_blocks.py, _new_function"
    )


def test_one_axis_can_be_left_open():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    doubled = torch.compile(lambda values: values * 2, dynamic=False, backend=backend)
    for rows in (5, 3, 8):
        values = torch.ones(rows, 4)
        torch._dynamo.maybe_mark_dynamic(values, 0)
        assert doubled(values).shape == (rows, 4)
    assert len(graphs) == 1, "axes are not left open any more: mend models/compiled_blocks.py, _call_of_rows"


def test_dinov2_attention_is_projections_around_an_attention_function():
    """What packed crops take apart."""
    from transformers import Dinov2Config, Dinov2Model

    from poa_hf.models.packed_crops import Crops, packed_attention

    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).eval()
    attention, tokens = model.encoder.layer[0].attention, torch.randn(3, 5, 16)
    rows = packed_attention(attention, tokens.flatten(0, 1), [Crops(3, 5)])
    torch.testing.assert_close(rows.unflatten(0, (3, 5)), attention(tokens)[0])
    assert isinstance(model.layernorm, torch.nn.LayerNorm) and callable(model.embeddings)
