"""Configuration of pre-training: an elastic backbone, projection heads and the weights of the loss."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, check_ranges
from .elastic_config import BLOCKS, SIZE, BackboneField, CheckedFieldsMixin, ElasticConfigMixin


@strict
class PoaConfig(CheckedFieldsMixin, PreTrainedConfig):
    """Configuration of pre-training: an elastic backbone, projection heads and the weights of the loss.

    The defaults are the published ones (arXiv 2408.01031).

    Args:
        backbone_config: An elastic configuration such as `PoaViTConfig`, or its fields as a dictionary with a
            `model_type` (`poa_vit` if it has none). None means the default `PoaViTConfig`.
        head_num_layers: Number of linear layers of each head's MLP.
        head_hidden_size: Width of the hidden layers of each head's MLP.
        head_bottleneck_size: Number of features that a head compares with its prototypes.
        num_prototypes: Number of prototypes of each head; there are as many heads as numbers.
        intact_weight: Lambda, the intact student's share of the loss, from 0 to 1; the rest is the elastic student's.
            At 1 the intact student trains alone, and no elastic student is computed.
        same_view_weight: Weight of the same-view losses, by which the elastic student agrees with the intact one, in
            the elastic student's share of the loss. There is one loss of global and one of local crops; at 0.5 they
            weigh together as much as the cross-view losses do.
        elastic_teacher: Whether the targets of an elastic student are those of the teacher's sub-network of its size,
            which takes one more pass, instead of the whole teacher's.
        koleo_weight: Weight of the KoLeo regulariser; 0 leaves it out.
        gram_weight: Weight of Gram anchoring (arXiv 2508.10104, section 4), which keeps the similarities of patches to
            each other what they are to an earlier teacher, for a short stage at a high resolution; 0 leaves it out.
        student_temperature: Softmax temperature of both students.
        initializer_range: Standard deviation of the initial weights of the heads' MLPs.
        warm_started_from: Name of the pre-trained model that training began with; set by `init_from`.
        units_ordered_on: Number of images by whose features the units were put in order of importance; set by
            `order_units`.
        distillation: The frozen teacher that the students learn from, and how: the fields of
            `objective.distillation.DistillationSpec`. Set by `PoaTrainer` for a `foreign_teacher`.
        gram_teacher: The frozen model that is the Gram teacher: its name (None for the run's own teacher at step 0), a
            checksum of its weights and the size of the images that it sees. Set by `PoaTrainer` for a `gram_weight`.

    Raises:
        ValueError: If the backbone is not elastic or has no mask token, there is no head, or a number is out of range.

    Example:
        >>> config = PoaConfig(backbone_config={"model_type": "poa_vit", "hidden_size": 768}, num_prototypes=[4096])
        >>> config.backbone_config.space.full
        SubNetwork(width=768, depths=(24,))
    """

    model_type = "poa"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="poa_vit")}

    ranges = {
        "units_ordered_on": COUNT,
        "head_num_layers": BLOCKS,
        **dict.fromkeys(("head_hidden_size", "head_bottleneck_size"), SIZE),
        "num_prototypes": Range(2, 2**24, whole=True),
        "intact_weight": SHARE,
        "same_view_weight": NOT_NEGATIVE,
        "koleo_weight": NOT_NEGATIVE,
        "gram_weight": NOT_NEGATIVE,
        "student_temperature": POSITIVE,
        "initializer_range": NOT_NEGATIVE,
    }

    backbone_config: BackboneField = None  # type: ignore[assignment]
    head_num_layers: int = 3
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    num_prototypes: list[int] = field(default_factory=lambda: [8192, 16384, 32768, 65536])
    intact_weight: float | int = 0.8
    same_view_weight: float | int = 1.0
    elastic_teacher: bool = False
    koleo_weight: float | int = 0.1
    gram_weight: float | int = 0.0
    student_temperature: float | int = 0.1
    initializer_range: float = 0.02
    warm_started_from: str | None = None
    units_ordered_on: int | None = None
    distillation: dict[str, Any] | None = None
    gram_teacher: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            # the parent class makes a configuration of this dictionary
            object.__setattr__(self, "backbone_config", {"model_type": "poa_vit", **self.backbone_config})
        super().__post_init__(**kwargs)
        self.complete()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration of a dictionary, which may be that of an elastic backbone alone."""
        model_type = str(config_dict.get("model_type"))
        if model_type in CONFIG_MAPPING and issubclass(CONFIG_MAPPING[model_type], ElasticConfigMixin):
            config_dict = {"backbone_config": config_dict}
        return super().from_dict(config_dict, **kwargs)

    def complete(self) -> None:
        """Check all fields, and those of the backbone."""
        check_ranges(self, self.ranges)
        if not isinstance(self.backbone_config, ElasticConfigMixin):
            raise ValueError(
                f"backbone_config is a plain {getattr(self.backbone_config, 'model_type', None)!r}: "
                "give an elastic one, such as PoaViTConfig."
            )
        self.backbone_config.complete()
        self.check_distillation(self.distillation)
        if not self.backbone_config.has_mask_token:
            raise ValueError("use_mask_token is off in backbone_config, but masked prediction needs the mask token.")

    def check_distillation(self, distillation: dict[str, Any] | None) -> None:
        """Refuse settings that have no use where the students learn from a foreign teacher.

        Args:
            distillation: What the field of this name holds, or will hold.

        Raises:
            ValueError: For an elastic teacher, and for a weight of same-view losses where there are none.
        """
        if distillation is None:
            return
        if self.elastic_teacher:
            raise ValueError(
                "elastic_teacher takes sub-networks of the run's own teacher: leave it out, or the foreign teacher."
            )
        if self.same_view_weight != 1 and distillation.get("loss") == "features":
            raise ValueError(
                "same_view_weight changes nothing where the students match a foreign teacher's features: leave it out, "
                "or give --foreign_teacher_loss prototypes."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, without those of how the model was made that are None."""
        fields = super().to_dict()
        for name in ("warm_started_from", "units_ordered_on", "distillation", "gram_teacher"):
            if fields.get(name) is None:
                fields.pop(name, None)
        return fields
