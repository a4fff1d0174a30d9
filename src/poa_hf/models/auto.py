"""Registers every model with transformers' auto classes when it is imported."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_gn_resnet import GnResNetConfig
from .configuration_poa import PoaConfig
from .configuration_poa_dinov2_registers import PoaDinov2RegistersConfig
from .configuration_poa_dinov3_vit import PoaDinov3ViTConfig
from .configuration_poa_resnet import PoaResNetConfig
from .configuration_poa_swin import PoaSwinConfig
from .configuration_poa_vit import PoaViTConfig
from .modeling_gn_resnet import GnResNetBackbone, GnResNetForImageClassification, GnResNetModel
from .modeling_poa_dinov2_registers import PoaDinov2RegistersModel
from .modeling_poa_dinov3_vit import PoaDinov3ViTModel
from .modeling_poa_pretraining import PoaForPreTraining
from .modeling_poa_resnet import PoaResNetModel
from .modeling_poa_swin import PoaSwinModel
from .modeling_poa_vit import PoaViTModel

_MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    PoaViTConfig: PoaViTModel,
    PoaDinov2RegistersConfig: PoaDinov2RegistersModel,
    PoaDinov3ViTConfig: PoaDinov3ViTModel,
    PoaSwinConfig: PoaSwinModel,
    PoaResNetConfig: PoaResNetModel,
    GnResNetConfig: GnResNetModel,
    PoaConfig: PoaForPreTraining,
}
for _config_class, _model_class in _MODELS.items():
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModel.register(_config_class, _model_class, exist_ok=True)
AutoModelForPreTraining.register(PoaConfig, PoaForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(GnResNetConfig, GnResNetForImageClassification, exist_ok=True)
AutoBackbone.register(GnResNetConfig, GnResNetBackbone, exist_ok=True)
