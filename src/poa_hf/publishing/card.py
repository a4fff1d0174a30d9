"""The short model card that an extracted checkpoint carries."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..elastic import SubNetwork
from ..models.configuration_poa import PoaConfig
from .formats import Format

_TEMPLATE = """---
{{ card_data }}
---
# {{ title }}

A {{ kind }} of {{ parameters }} parameters, cut from an elastic model that was pre-trained without labels by POA
([arXiv 2408.01031](https://arxiv.org/abs/2408.01031)). The run gave {{ sizes }} sizes; this is the one of width
{{ width }} and depth {{ depth }}. It gives features; it has no classifier.

```python
{{ load }}
```

{{ needs }}
"""


def write_card(
    folder: Path, config: PoaConfig, sub_network: SubNetwork, format: Format, name: str, parameters: int
) -> None:
    """Write `README.md` into `folder`, the checkpoint of `sub_network` of a run with `config`, called `name`."""
    card = ModelCard.from_template(
        ModelCardData(
            library_name=format.library,
            pipeline_tag="image-feature-extraction",
            tags=["poa", "self-supervised", format.name],
        ),
        template_str=_TEMPLATE,
        title=f"{name} ({sub_network})",
        kind=format.kind,
        parameters=f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}",
        sizes=len(config.backbone_config.space),
        width=sub_network.width,
        depth="-".join(map(str, sub_network.depths)),
        load=format.load.format(folder=name),
        needs=format.needs,
    )
    (folder / "README.md").write_text(card.content)
