import pytest

from poa_hf.runs.compatibility import check_architecture

from ..conftest import tiny_config


def test_another_architecture_is_named_by_its_first_field(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    check_architecture(tiny_config(koleo_weight=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"has another architecture: its num_prototypes is .*, this model's is \[7\]"):
        check_architecture(tiny_config(num_prototypes=[7]), tmp_path)
