"""Pre-train an elastic model with transformers' own `Trainer`, by a collator and a callback.

    python examples/pretrain_with_trainer.py --output_dir runs/with-trainer --max_steps 200
    torchrun --nproc-per-node 2 examples/pretrain_with_trainer.py --output_dir runs/with-trainer --max_steps 200
    poa extract runs/with-trainer --size small --output small

Takes the options of `TrainingArguments`, and `--dataset_name`, a Hub id or a folder of images. `poa pretrain` is faster
and exact on resume, and has the schedules of the method; this shows how little is needed around a stock loop.
"""

import sys
from dataclasses import dataclass

from transformers import HfArgumentParser, Trainer, TrainingArguments

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig, TextureDataset, open_dataset
from poa_hf.data.crop_arguments import CropArguments
from poa_hf.data.processor import evaluation_processor
from poa_hf.training.stock_trainer import PoaDataCollator, TeacherCallback


@dataclass
class DataArguments:
    """Where the images come from."""

    dataset_name: str = "textures"  # built in
    dataset_split: str = "train"


def main(argv: list[str]) -> None:
    data, args = HfArgumentParser((DataArguments, TrainingArguments)).parse_args_into_dataclasses(argv)
    args.remove_unused_columns = False  # the collator wants the images
    backbone = PoaViTConfig(
        image_size=32, patch_size=8, hidden_size=64, num_attention_heads=4, num_hidden_layers=4, min_hidden_size=32,
        min_num_hidden_layers=2, layerscale_value=1.0, initializer_range=0.1, drop_path_rate=0.0,
    )  # fmt: skip
    config = PoaConfig(
        backbone_config=backbone, num_prototypes=[64, 128], head_hidden_size=128, head_bottleneck_size=32,
        intact_weight=0.65, koleo_weight=0.3, initializer_range=0.1,
    )  # fmt: skip
    crops = CropArguments(
        global_crop_size=32, local_crop_size=16, num_local_crops=4, global_crop_scale=[0.5, 1.0],
        local_crop_scale=[0.12, 0.35],
    )  # fmt: skip
    if data.dataset_name == "textures":
        dataset = TextureDataset(length=50_000)  # `Trainer` shuffles a list of all numbers
    else:
        dataset = open_dataset(data.dataset_name, split=data.dataset_split, streaming=False)
    trainer = Trainer(
        PoaForPreTraining(config),
        args,
        data_collator=PoaDataCollator(config, crops, teacher_temperature=0.01),
        train_dataset=dataset,
        processing_class=evaluation_processor(crops.global_crop_size, crops.image_mean, crops.image_std),
        callbacks=[TeacherCallback(0.95, 0.995)],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
