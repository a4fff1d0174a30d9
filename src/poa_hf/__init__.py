"""Elastic self-supervised pre-training: one run, a ready vision model of every size.

Every public name is imported on first use: `import poa_hf` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._moved import install as _find_old_paths
from ._registration import register_when_needed as _register_when_needed

if TYPE_CHECKING:
    from .data.sources import open_dataset
    from .data.textures import TextureDataset
    from .elastic import ElasticSpace
    from .embedding.embed import embed
    from .embedding.embeddings import Embeddings
    from .evaluation.callback import KnnEvaluationCallback, WarmStartGuard
    from .evaluation.evaluator import evaluate_sizes
    from .evaluation.features import class_features
    from .evaluation.splits import open_splits
    from .evaluation.subject import load_subject
    from .evaluation.tasks.knn import KnnAccuracy
    from .models.configuration_gn_resnet import GnResNetConfig
    from .models.configuration_poa import PoaConfig
    from .models.configuration_poa_dinov2_registers import PoaDinov2RegistersConfig
    from .models.configuration_poa_dinov3_vit import PoaDinov3ViTConfig
    from .models.configuration_poa_resnet import PoaResNetConfig
    from .models.configuration_poa_swin import PoaSwinConfig
    from .models.configuration_poa_vit import PoaViTConfig
    from .models.modeling_gn_resnet import GnResNetBackbone, GnResNetForImageClassification, GnResNetModel
    from .models.modeling_poa_dinov2_registers import PoaDinov2RegistersModel
    from .models.modeling_poa_dinov3_vit import PoaDinov3ViTModel
    from .models.modeling_poa_pretraining import PoaForPreTraining, PoaForPreTrainingOutput
    from .models.modeling_poa_resnet import PoaResNetModel
    from .models.modeling_poa_swin import PoaSwinModel
    from .models.modeling_poa_vit import PoaViTModel
    from .official.weights import load_official_checkpoint
    from .publishing.export import extract_to
    from .publishing.push import PushOptions, push
    from .publishing.release import Release
    from .runs.load import load_run
    from .selection.costs import costs
    from .selection.select import Budget, select
    from .sub_network import SubNetwork
    from .training.arguments import PoaTrainingArguments
    from .training.trainer import PoaTrainer
    from .warm_start.config import warm_start_config
    from .warm_start.load import init_from
    from .warm_start.ordering.unit_order import UnitOrder, order_units

__version__ = "0.2.0.dev0"

__all__ = [
    "Budget",
    "ElasticSpace",
    "Embeddings",
    "GnResNetBackbone",
    "GnResNetConfig",
    "GnResNetForImageClassification",
    "GnResNetModel",
    "KnnAccuracy",
    "KnnEvaluationCallback",
    "PoaConfig",
    "PoaDinov2RegistersConfig",
    "PoaDinov2RegistersModel",
    "PoaDinov3ViTConfig",
    "PoaDinov3ViTModel",
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
    "PushOptions",
    "Release",
    "SubNetwork",
    "TextureDataset",
    "UnitOrder",
    "WarmStartGuard",
    "class_features",
    "costs",
    "embed",
    "evaluate_sizes",
    "extract_to",
    "init_from",
    "load_official_checkpoint",
    "load_run",
    "load_subject",
    "open_dataset",
    "open_splits",
    "order_units",
    "push",
    "select",
    "warm_start_config",
]

# The module of each name.
_MODULES = {
    "Budget": "selection.select",
    "ElasticSpace": "elastic",
    "Embeddings": "embedding.embeddings",
    "GnResNetBackbone": "models.modeling_gn_resnet",
    "GnResNetConfig": "models.configuration_gn_resnet",
    "GnResNetForImageClassification": "models.modeling_gn_resnet",
    "GnResNetModel": "models.modeling_gn_resnet",
    "KnnAccuracy": "evaluation.tasks.knn",
    "KnnEvaluationCallback": "evaluation.callback",
    "PoaConfig": "models.configuration_poa",
    "PoaDinov2RegistersConfig": "models.configuration_poa_dinov2_registers",
    "PoaDinov2RegistersModel": "models.modeling_poa_dinov2_registers",
    "PoaDinov3ViTConfig": "models.configuration_poa_dinov3_vit",
    "PoaDinov3ViTModel": "models.modeling_poa_dinov3_vit",
    "PoaForPreTraining": "models.modeling_poa_pretraining",
    "PoaForPreTrainingOutput": "models.modeling_poa_pretraining",
    "PoaResNetConfig": "models.configuration_poa_resnet",
    "PoaResNetModel": "models.modeling_poa_resnet",
    "PoaSwinConfig": "models.configuration_poa_swin",
    "PoaSwinModel": "models.modeling_poa_swin",
    "PoaTrainer": "training.trainer",
    "PoaTrainingArguments": "training.arguments",
    "PoaViTConfig": "models.configuration_poa_vit",
    "PoaViTModel": "models.modeling_poa_vit",
    "PushOptions": "publishing.push",
    "Release": "publishing.release",
    "SubNetwork": "sub_network",
    "TextureDataset": "data.textures",
    "UnitOrder": "warm_start.ordering.unit_order",
    "WarmStartGuard": "evaluation.callback",
    "class_features": "evaluation.features",
    "costs": "selection.costs",
    "embed": "embedding.embed",
    "evaluate_sizes": "evaluation.evaluator",
    "extract_to": "publishing.export",
    "init_from": "warm_start.load",
    "load_official_checkpoint": "official.weights",
    "load_run": "runs.load",
    "load_subject": "evaluation.subject",
    "open_dataset": "data.sources",
    "open_splits": "evaluation.splits",
    "order_units": "warm_start.ordering.unit_order",
    "push": "publishing.push",
    "select": "selection.select",
    "warm_start_config": "warm_start.config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_find_old_paths()
_register_when_needed()
