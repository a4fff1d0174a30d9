"""Models, crops and batches of step_time.py and launches.py."""

PRESETS = {
    "cpu": dict(
        backbone=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=112),
        heads=dict(num_prototypes=[1024, 2048], head_hidden_size=512),
        batch=16, crops=dict(global_crop_size=112, local_crop_size=48, num_local_crops=4), size="192x6",
    ),
    "tiny": dict(
        backbone=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32,
                      min_num_hidden_layers=1, image_size=32),
        heads=dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32),
        batch=4, crops=dict(global_crop_size=32, local_crop_size=16, num_local_crops=8), size="32x1",
    ),
    "vit_large": dict(
        backbone={}, heads={}, batch=50, crops={}, size="small",
    ),
}  # fmt: skip
