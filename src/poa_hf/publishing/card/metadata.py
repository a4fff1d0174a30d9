"""The Hub's rules for the metadata of a model card, as far as they can be checked without the Hub.

The lists of licences and tasks are copies, so that a mistake is found offline and before anything is written. They come
from modelcard.md, docs/hub/model-cards.md and docs/hub/repositories-licenses.md of github.com/huggingface/hub-docs and
from packages/tasks/src/pipelines.ts of github.com/huggingface/huggingface.js, as of 2026-11. The Hub checks each card
again when it is uploaded; its answer counts.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ...formatting import one_line
from ...locations import is_hub_id

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()
)
PIPELINE_TAGS = frozenset(
    """
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation fill-mask sentence-similarity text-to-speech
    text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression text-ranking time-series-forecasting
    text-to-video image-text-to-text visual-question-answering document-question-answering
    zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d
    image-feature-extraction video-text-to-text keypoint-detection visual-document-retrieval any-to-any
    """.split()
)
_RELATIONS = ("adapter", "finetune", "merge", "quantized")


def check_license(license: str | None, license_name: str | None = None, license_link: str | None = None) -> None:
    """Check the metadata of a licence.

    Args:
        license: An identifier of the Hub, or `other`.
        license_name: The name of a licence without identifier.
        license_link: Its web address, or `LICENSE`, a file in the repository.

    Raises:
        ValueError: If the Hub would refuse it.
    """
    problems = _license_problems({"license": license, "license_name": license_name, "license_link": license_link})
    if problems:
        raise ValueError(problems[0])


def card_problems(content: str) -> list[str]:
    """Return what the Hub would refuse in a card, one sentence for each problem.

    >>> card_problems("---\\nlicense: mitt\\n---\\n# A card")
    ["license 'mitt' is not an identifier of the Hub (did you mean mit?): for another licence write other, with ..."]
    """
    match = re.match(r"\A---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", content, re.DOTALL)
    if match is None:
        return ["The card does not begin with metadata between lines of ---."]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"The metadata is not valid YAML: {one_line(error)}."]
    if not isinstance(data, dict):
        return ["The metadata is not a mapping of names to values."]
    problems = _license_problems(data)
    for name in ("library_name", "license_name", "license_link", "thumbnail", "new_version"):
        if name in data and not _is_text(data[name]):
            problems.append(f'"{name}" must be a string.')
    if "pipeline_tag" in data and data["pipeline_tag"] not in PIPELINE_TAGS:
        problems.append(f'"pipeline_tag" {data["pipeline_tag"]!r} is not a task of the Hub.')
    problems += _lists(data, "tags", _is_text, "a string")
    problems += _lists(data, "metrics", _is_text, "a string")
    problems += _lists(data, "datasets", is_hub_id, "the id of a dataset")
    problems += _lists(data, "base_model", is_hub_id, "the id of a model")
    problems += _lists(data, "language", _is_language, "a code of two or three letters")
    if data.get("base_model_relation", "finetune") not in _RELATIONS:
        problems.append(f'"base_model_relation" must be one of {", ".join(_RELATIONS)}.')
    if "co2_eq_emissions" in data:
        emissions = data["co2_eq_emissions"]
        emissions = emissions.get("emissions") if isinstance(emissions, dict) else emissions
        if not _is_number(emissions):
            problems.append('"co2_eq_emissions" needs its emissions, a number of grams.')
    return problems + _model_index_problems(data.get("model-index", []))


def _license_problems(data: Mapping[str, Any]) -> list[str]:
    license, name, link = (data.get(key) for key in ("license", "license_name", "license_link"))
    problems = []
    for one in license if isinstance(license, list) else [license] if license is not None else []:
        if one not in LICENSES:
            near = difflib.get_close_matches(str(one).lower(), sorted(LICENSES), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            problems.append(
                f"license {one!r} is not an identifier of the Hub{hint}: for another licence write other, with "
                "license_name and license_link."
            )
    if license == "other" and not (name and link):
        problems.append("license other needs a license_name and a license_link.")
    if license != "other" and (name or link):
        problems.append("license_name and license_link are for license other only.")
    if name and not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", str(name)):
        problems.append(
            f"license_name {name!r} must consist of lowercase letters, digits, dots and dashes, such as my-license-1.0."
        )
    if link and not re.fullmatch(r"LICENSE(?:\.md)?|https?://\S+", str(link)):
        problems.append(f"license_link {link!r} must be LICENSE, LICENSE.md or a web address.")
    return problems


def _lists(data: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool], expected: str) -> list[str]:
    """Return the problems of a field that may hold one value or a list."""
    if name not in data:
        return []
    values = data[name] if isinstance(data[name], list) else [data[name]]
    return [f'"{name}" {value!r} is not {expected}.' for value in values if not is_valid(value)]


def _model_index_problems(models: Any) -> list[str]:
    if not isinstance(models, list):
        return ['"model-index" must be a list.']
    problems = []
    for i, model in enumerate(models):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not _is_text(model.get("name")):
            problems.append(f'"{where}.name" is required.')
            continue
        if not isinstance(model.get("results"), list) or not model["results"]:
            problems.append(f'"{where}.results" must be a non-empty list.')
            continue
        for j, result in enumerate(model["results"]):
            problems += _result_problems(result, f"{where}.results[{j}]")
    return problems


def _result_problems(result: Any, where: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{where}" must hold a task, a dataset and metrics.']
    task, dataset, metrics = (result.get(name) for name in ("task", "dataset", "metrics"))
    problems = []
    if not isinstance(task, dict) or task.get("type") not in PIPELINE_TAGS:
        problems.append(f'"{where}.task.type" must be a task of the Hub.')
    if not isinstance(dataset, dict) or not is_hub_id(dataset.get("type")):
        problems.append(f'"{where}.dataset.type" must be the id of a dataset.')
    elif not all(_is_text(dataset.get(name, "-")) for name in ("config", "split", "revision")):
        problems.append(f'"{where}.dataset" must have a string as config, split and revision.')
    if not isinstance(dataset, dict) or not _is_text(dataset.get("name")):
        problems.append(f'"{where}.dataset.name" is required.')
    if not isinstance(metrics, list) or not metrics:
        return [*problems, f'"{where}.metrics" must be a non-empty list.']
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not _is_text(metric.get("type")):
            problems.append(f'"{where}.metrics[{k}].type" is required.')
        elif not _is_number(metric.get("value")) and not _is_text(metric.get("value")):
            problems.append(f'"{where}.metrics[{k}].value" must be a number.')
        elif not _is_text(metric.get("name", "-")):
            problems.append(f'"{where}.metrics[{k}].name" must be a string.')
    return problems


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_language(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[a-z]{2,3}|code|multilingual", value))
