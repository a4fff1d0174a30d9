"""Configuration of pre-training: an elastic backbone, projection heads and the weights of the loss."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .elastic_config import BackboneField, ElasticConfigMixin


@strict
class PoaConfig(PreTrainedConfig):
    """
    Args:
        backbone_config: An elastic configuration (`PoaViTConfig`, ...), or its fields with `model_type`.
        head_num_layers: Linear layers of each head's MLP.
        head_hidden_size: Width of the MLP.
        head_bottleneck_size: Features that are compared with the prototypes.
        num_prototypes: Prototypes of each head; as many heads as numbers.
        intact_weight: Lambda, the share of the intact student in the loss; the rest is the elastic student's. At 1 the
            intact student trains alone, and no elastic one is computed.
        koleo_weight: Weight of the KoLeo regulariser; 0 leaves it out.
        student_temperature: Softmax temperature of both students.
    """

    model_type = "poa"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="poa_vit")}

    backbone_config: BackboneField = None  # type: ignore[assignment]  # the default is made in `__post_init__`
    head_num_layers: int = 3
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    num_prototypes: list[int] = field(default_factory=lambda: [8192, 16384, 32768, 65536])
    intact_weight: float | int = 0.8
    koleo_weight: float | int = 0.1
    student_temperature: float | int = 0.1
    initializer_range: float = 0.02
    warm_started_from: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            fields = {"model_type": "poa_vit", **self.backbone_config}
            setattr(self, "backbone_config", fields)  # noqa: B010  # of which transformers makes a configuration
        super().__post_init__(**kwargs)
        if not isinstance(self.backbone_config, ElasticConfigMixin):
            raise ValueError(
                f"backbone_config is a plain {getattr(self.backbone_config, 'model_type', None)!r}: "
                "give an elastic one, such as PoaViTConfig."
            )
        if not self.num_prototypes or min(self.num_prototypes) < 2:
            raise ValueError(f"num_prototypes {self.num_prototypes} needs at least one head of 2 prototypes or more.")
        for name in ("head_num_layers", "head_hidden_size", "head_bottleneck_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1.")
        if not getattr(self.backbone_config, "use_mask_token", True):
            raise ValueError("use_mask_token is off in backbone_config: masked prediction needs the mask token.")
        if not 0 <= self.koleo_weight < float("inf"):
            raise ValueError(f"koleo_weight {self.koleo_weight} must be 0 or more.")
        if not 0 <= self.intact_weight <= 1:
            raise ValueError(f"intact_weight {self.intact_weight} must lie between 0 and 1.")
        if not 0 < self.student_temperature < float("inf"):
            raise ValueError(f"student_temperature {self.student_temperature} must be positive.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary; `warm_started_from` only where there is one."""
        fields = super().to_dict()
        if fields.get("warm_started_from") is None:
            fields.pop("warm_started_from", None)
        return fields
