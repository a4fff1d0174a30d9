"""Average precision against pycocotools, whose numbers for these objects are kept in a fixture."""

import json

import numpy as np
import pytest

from poa_hf.evaluation.statistics.average_precision import average_precision

from ...conftest import ROOT

# random boxes of one to four classes with equal scores and equal overlaps among them, more than 100 objects of a class
# in an image, and a class that is only found; "expected" by pycocotools 2.0.11, areaRng all, maxDets 100
CASES = json.loads((ROOT / "tests" / "fixtures" / "average_precision.json").read_text())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_boxes_score_as_in_pycocotools(case):
    case = CASES[case]
    assert average_precision(case["found"], case["true"]) == pytest.approx(case["expected"], abs=1e-8)


def test_masks_that_fill_their_boxes_score_as_boxes():
    def as_masks(objects):
        masks = np.zeros((len(objects["labels"]), 110, 110), dtype=bool)
        for mask, (left, top, right, bottom) in zip(masks, objects["boxes"], strict=True):
            mask[max(top, 0) : bottom, max(left, 0) : right] = True
        others = {name: value for name, value in objects.items() if name != "boxes"}
        return {**others, "masks": masks}

    def within(objects):
        return {**objects, "boxes": np.clip(objects["boxes"], 0, 110).astype(int)}

    for case in CASES[:4]:
        found, true = ([within(objects) for objects in case[side]] for side in ("found", "true"))
        expected = average_precision(found, true)
        assert average_precision([*map(as_masks, found)], [*map(as_masks, true)]) == pytest.approx(expected)
        assert expected["map"] > 0


def test_mistakes_say_what_is_wrong():
    one = {"boxes": [[0, 0, 1, 1]], "labels": [0]}
    scored = {**one, "scores": [0.5]}
    for found, true, message in [
        ([], [one], "objects of 0 images, and true ones of 1"),
        ([{**scored, "labels": [0, 1]}], [one], "Image 0 has {'boxes': 1, 'labels': 2, 'scores': 1}"),
        ([one], [one], "Image 0 lacks scores"),
        ([{**scored, "scores": [float("nan")]}], [one], "not a number"),
        ([{**scored, "labels": ["cat"]}], [one], "Image 0 has labels that are not whole numbers: give the numbers"),
        ([scored], [{**one, "labels": [0.5]}], "Image 0 has labels that are not whole numbers"),
        ([scored], [{"boxes": [], "labels": []}], "No image has an object"),
    ]:
        with pytest.raises(ValueError, match=message):
            average_precision(found, true)
