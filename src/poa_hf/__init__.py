"""Elastic self-supervised pre-training: one run, a ready vision model of every size."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from .elastic import ElasticSpace, SubNetwork
from .evaluation.callback import KnnEvaluationCallback, WarmStartGuard
from .models.configuration_gn_resnet import GnResNetConfig
from .models.configuration_poa import PoaConfig
from .models.configuration_poa_resnet import PoaResNetConfig
from .models.configuration_poa_swin import PoaSwinConfig
from .models.configuration_poa_vit import PoaViTConfig
from .models.modeling_gn_resnet import GnResNetBackbone, GnResNetForImageClassification, GnResNetModel
from .models.modeling_poa_pretraining import PoaForPreTraining, PoaForPreTrainingOutput
from .models.modeling_poa_resnet import PoaResNetModel
from .models.modeling_poa_swin import PoaSwinModel
from .models.modeling_poa_vit import PoaViTModel
from .official.weights import load_official_checkpoint
from .training.arguments import PoaTrainingArguments
from .training.trainer import PoaTrainer
from .warm_start.config import warm_start_config
from .warm_start.load import init_from

__version__ = "0.1.0.dev0"

AutoConfig.register("poa_vit", PoaViTConfig, exist_ok=True)
AutoModel.register(PoaViTConfig, PoaViTModel, exist_ok=True)
AutoConfig.register("poa_swin", PoaSwinConfig, exist_ok=True)
AutoModel.register(PoaSwinConfig, PoaSwinModel, exist_ok=True)
AutoConfig.register("poa_resnet", PoaResNetConfig, exist_ok=True)
AutoModel.register(PoaResNetConfig, PoaResNetModel, exist_ok=True)
AutoConfig.register("gn_resnet", GnResNetConfig, exist_ok=True)
AutoModel.register(GnResNetConfig, GnResNetModel, exist_ok=True)
AutoModelForImageClassification.register(GnResNetConfig, GnResNetForImageClassification, exist_ok=True)
AutoBackbone.register(GnResNetConfig, GnResNetBackbone, exist_ok=True)
AutoConfig.register("poa", PoaConfig, exist_ok=True)
AutoModel.register(PoaConfig, PoaForPreTraining, exist_ok=True)

__all__ = [
    "ElasticSpace",
    "GnResNetBackbone",
    "GnResNetConfig",
    "GnResNetForImageClassification",
    "GnResNetModel",
    "KnnEvaluationCallback",
    "PoaConfig",
    "PoaForPreTraining",
    "PoaForPreTrainingOutput",
    "PoaResNetConfig",
    "PoaResNetModel",
    "PoaSwinConfig",
    "PoaSwinModel",
    "PoaTrainer",
    "PoaTrainingArguments",
    "PoaViTConfig",
    "PoaViTModel",
    "SubNetwork",
    "WarmStartGuard",
    "init_from",
    "load_official_checkpoint",
    "warm_start_config",
]
