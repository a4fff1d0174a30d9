"""The Hub's rules for the metadata of a model card, as far as its messages and documentation show them."""

from __future__ import annotations

import re

import yaml

# as the Hub's own error message lists them
LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
    """.split()
)
_BLOCK = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
_REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_TYPES = {
    "library_name": str,
    "pipeline_tag": str,
    "license_name": str,
    "license_link": str,
    "base_model_relation": str,
    "tags": list,
    "metrics": list,
    "model-index": list,
}


def card_data(content: str) -> dict:
    """Return the metadata of a card; empty if it has none."""
    match = _BLOCK.search(content)
    data = yaml.safe_load(match[2]) if match else None
    return data if isinstance(data, dict) else {}


def validate_card(content: str, repo_type: str = "model") -> tuple[list[str], list[str]]:
    """Return the errors, for which the Hub refuses a card, and the warnings."""
    match = _BLOCK.search(content)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        return [f"YAML metadata: {error}"], []
    if not isinstance(data, dict):
        return ["YAML metadata: must be a mapping"], []
    if repo_type != "model":
        return [], []
    errors = [f'"{key}" must be a {kind.__name__}' for key, kind in _TYPES.items() if _is_not(kind, data.get(key))]
    for licence in _listed(data.get("license")):
        if licence not in LICENCES:
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENCES))}, array]')
    for key in ("base_model", "datasets"):
        for value in _listed(data.get(key)):
            if not isinstance(value, str) or not _REPO_ID.fullmatch(value):
                errors.append(f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co.')
    if not errors:
        errors = [error for model in data.get("model-index") or [] for error in _model_errors(model)]
    return errors, []


def _model_errors(model) -> list[str]:
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        return ['"model-index[0].name" is required']
    errors = []
    for index, result in enumerate(model.get("results") or []):
        where = f"model-index[0].results[{index}]"
        required = {"task": ("type",), "dataset": ("name", "type")}
        for part, keys in required.items():
            found = result.get(part) or {}
            errors += [f'"{where}.{part}.{key}" is required' for key in keys if not isinstance(found.get(key), str)]
        kind = (result.get("dataset") or {}).get("type")
        if isinstance(kind, str) and not _REPO_ID.fullmatch(kind):
            errors.append(f'"{where}.dataset.type" with value "{kind}" fails to match the pattern of a dataset id')
        if not result.get("metrics"):
            errors.append(f'"{where}.metrics" is required')
        for metric in result.get("metrics") or []:
            if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                errors.append(f'"{where}.metrics" need a type and a value')
    return errors


def _is_not(kind: type, value) -> bool:
    return value is not None and not isinstance(value, kind)


def _listed(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
