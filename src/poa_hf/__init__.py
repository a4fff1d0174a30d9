"""Elastic self-supervised pre-training: one run, a ready vision model of every size."""

from transformers import AutoConfig, AutoModel

from .elastic import ElasticSpace, SubNetwork
from .models.configuration_poa import PoaConfig
from .models.configuration_poa_vit import PoaViTConfig
from .models.modeling_poa_pretraining import PoaForPreTraining, PoaForPreTrainingOutput
from .models.modeling_poa_vit import PoaViTModel
from .official import load_official_checkpoint
from .training.arguments import PoaTrainingArguments
from .training.trainer import PoaTrainer

__version__ = "0.1.0.dev0"

AutoConfig.register("poa_vit", PoaViTConfig, exist_ok=True)
AutoModel.register(PoaViTConfig, PoaViTModel, exist_ok=True)
AutoConfig.register("poa", PoaConfig, exist_ok=True)
AutoModel.register(PoaConfig, PoaForPreTraining, exist_ok=True)

__all__ = [
    "ElasticSpace",
    "PoaConfig",
    "PoaForPreTraining",
    "PoaForPreTrainingOutput",
    "PoaTrainer",
    "PoaTrainingArguments",
    "PoaViTConfig",
    "PoaViTModel",
    "SubNetwork",
    "load_official_checkpoint",
]
