"""The contents of a model card: the facts of a run, its owner's text, and what follows from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ...elastic import ElasticSpace
from ...locations import leads_outside
from ...models.configuration_poa import PoaConfig
from ...models.modeling_poa_pretraining import PoaForPreTraining
from ...runs.comparison import Comparison, choose, one_per_measure
from ...runs.evaluations import Evaluation
from ...runs.facts import RunFacts
from ...selection.costs import Costs, costs
from ...sub_network import SubNetwork
from .owner import OwnerFacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardFacts:
    """The facts of a model and its run, for cards.

    Args:
        run: The configuration of the model, and what its run has recorded.
        owner: What the run's owner states about it. The owner's name for the training images has precedence.
    """

    run: RunFacts
    owner: OwnerFacts = OwnerFacts()

    @classmethod
    def read(
        cls, model_or_config: PoaForPreTraining | PoaConfig, run: str | Path | None = None, **owner: str | None
    ) -> CardFacts:
        """Read the facts of the model in the folder `run`: the output_dir of a run, one of its checkpoints or any saved
        `PoaForPreTraining`. Without a folder only the configuration is known.

        Args:
            owner: Fields of `OwnerFacts` that replace those of the run's `card.yaml`.

        Raises:
            ValueError: If the folder holds no model, or its `card.yaml` cannot be used.
        """
        config = model_or_config.config if isinstance(model_or_config, PoaForPreTraining) else model_or_config
        if run is None or not Path(run).is_dir():
            return cls(RunFacts(config), OwnerFacts.read(None, **owner))
        facts = RunFacts.read(run, config)
        if facts.no_model:
            raise ValueError(facts.no_model)
        if facts.no_evaluations:
            logger.warning("%s Cards give no results.", facts.no_evaluations)
        owner_facts = OwnerFacts.read(facts.folder, **owner)
        if owner_facts.dataset is not None:
            facts = replace(
                facts,
                dataset=owner_facts.dataset,
                dataset_id=owner_facts.dataset,
                dataset_config=None,
                dataset_split=None,
                datasets=(),
            )
        return cls(facts, owner_facts)

    @property
    def config(self) -> PoaConfig:
        assert isinstance(self.run.config, PoaConfig)  # `read` takes nothing else
        return self.run.config

    @property
    def space(self) -> ElasticSpace:
        """All sizes of the run."""
        return self.run.space

    @property
    def licence_file(self) -> Path | None:
        """The text of the owner's licence in the run's folder, which lies beside each card; None if it lies elsewhere.

        Raises:
            ValueError: If the owner names a file that is not there, or a link to one outside the run.
        """
        name, folder = self.owner.license_link, self.run.folder
        if folder is None or name is None or "/" in name:  # a web address
            return None
        path = folder.path / name
        if leads_outside(path, folder.path):
            raise ValueError(f"{path} leads to a file outside the run: put the text of the licence itself there.")
        if not path.is_file():
            raise ValueError(f"{path} does not exist, which license_link names: put the text of the licence there.")
        return path

    @cached_property
    def costs(self) -> dict[SubNetwork, Costs]:
        """The costs of every size, counted at the first use, which takes seconds for hundreds of sizes.

        The first use must not happen while another thread makes models.
        """
        return costs(self.config)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The comparable sets of records of this model, in the order in which they count.

        Records of another step of the run are left out; records without a step are assumed to be of this model.
        """
        return [found for found in self.run.comparisons if found.step in (None, self.run.steps)]

    @property
    def quality(self) -> Comparison | None:
        """The set that pictures and tables of sizes show: k-NN, or a linear probe if no size was measured by k-NN."""
        return choose(self.comparisons)

    def results(self, size: SubNetwork) -> list[Evaluation]:
        """The records that count for a size, one per measure and dataset, the one that counts most first."""
        return [found.records[size] for found in one_per_measure(self.comparisons, size)]
