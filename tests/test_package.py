"""What `import poa_hf` does and leaves undone, in processes of their own."""

import pytest
import torch
from transformers import AutoModel

import poa_hf
from poa_hf import GnResNetConfig, GnResNetForImageClassification, data

from .conftest import golden_config, run_python

HEAVY = "not {'torch', 'transformers', 'datasets', 'accelerate', 'PIL', 'numpy'} & set(sys.modules)"


def succeeds(code: str) -> str:
    return run_python("-W", "error::DeprecationWarning:__main__", "-c", code).stdout


def test_nothing_heavy_is_imported_until_a_name_is_used():
    succeeds(
        f"import sys, poa_hf, poa_hf.data, poa_hf.training.arguments; assert {HEAVY}\n"
        "assert 'PoaTrainer' in dir(poa_hf) and 'torch' not in sys.modules\n"
        "poa_hf.PoaTrainingArguments(); assert 'torch' not in sys.modules\n"
        "poa_hf.SubNetwork(384, 12); assert 'torch' not in sys.modules\n"
        "poa_hf.PoaViTModel; assert 'torch' in sys.modules"
    )


def test_every_public_name_is_there():
    assert set(poa_hf.__all__) == set(poa_hf._MODULES) <= set(dir(poa_hf))
    assert [name for name in dir(poa_hf) if not name.startswith("__")] == sorted(poa_hf.__all__)
    for name in poa_hf.__all__:
        assert getattr(poa_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'PoaVit'"):
        poa_hf.PoaVit  # noqa: B018
    for name in data.__all__:
        assert getattr(data, name).__name__ == name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pre-training model, its elastic teacher and a ResNet classifier, each saved."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = poa_hf.PoaForPreTraining(golden_config("vit"))
    model.save_pretrained(root / "run")
    model.teacher.save_pretrained(root / "teacher")
    resnet = GnResNetConfig(embedding_size=8, hidden_sizes=[32, 64], depths=[1, 1], base_width=8, num_groups=4)
    GnResNetForImageClassification(resnet).save_pretrained(root / "resnet")
    return root


@pytest.mark.parametrize(
    "start",
    [
        "import poa_hf; from transformers import AutoModel",
        "from transformers import AutoModel; import poa_hf",
        pytest.param("import poa_hf, transformers; AutoModel = transformers.AutoModel", marks=pytest.mark.slow),
        pytest.param("from poa_hf import SubNetwork; from transformers import AutoModel", marks=pytest.mark.slow),
        pytest.param(
            "from poa_hf.models.configuration_poa import PoaConfig; from transformers import AutoModel",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from poa_hf.models.modeling_poa_vit import PoaViTModel; from transformers import AutoModel",
            marks=pytest.mark.slow,
        ),
        pytest.param("import poa_hf.slicing; from transformers import AutoModel", marks=pytest.mark.slow),
        pytest.param("import poa_hf.objective.heads; from transformers import AutoModel", marks=pytest.mark.slow),
        pytest.param("import poa_hf; from transformers import AutoConfig, AutoModel", marks=pytest.mark.slow),
        "import poa_hf; import transformers.models.auto.image_processing_auto; from transformers import AutoModel",
        pytest.param(
            "import poa_hf; from transformers import Trainer; from transformers import AutoModel",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_auto_classes_know_our_models_in_every_order(folders, start):
    code = f"{start}\nprint(*(type(AutoModel.from_pretrained(f)).__name__ for f in ('run', 'teacher', 'resnet')))"
    result = run_python("-c", f"import os; os.chdir({str(folders)!r})\n{code}")
    assert result.stdout.split() == ["PoaForPreTraining", "PoaViTModel", "GnResNetModel"]


def test_other_auto_classes(folders):
    code = """
import poa_hf
from transformers import AutoConfig
assert type(AutoConfig.from_pretrained("teacher")).__name__ == "PoaViTConfig"
from transformers import AutoBackbone, AutoModelForImageClassification, AutoModelForPreTraining, BitImageProcessorPil
assert type(AutoBackbone.from_config(AutoConfig.from_pretrained("resnet"))).__name__ == "GnResNetBackbone"
assert type(AutoModelForImageClassification.from_pretrained("resnet")).__name__ == "GnResNetForImageClassification"
assert type(AutoModelForPreTraining.from_pretrained("run")).__name__ == "PoaForPreTraining"
from transformers import pipeline
features = pipeline("image-feature-extraction", model="teacher", image_processor=BitImageProcessorPil())
assert type(features.model).__name__ == "PoaViTModel"
"""
    succeeds(f"import os; os.chdir({str(folders)!r})\n{code}")


@pytest.mark.slow
def test_spawned_processes_and_pickles(folders, tmp_path):
    (tmp_path / "spawned.py").write_text(
        "import multiprocessing, pickle\n"
        "import poa_hf\n"
        "def size(config): return type(config).__name__, str(config.space.full)\n"
        "if __name__ == '__main__':\n"
        "    config = poa_hf.PoaViTConfig()\n"
        "    assert pickle.loads(pickle.dumps(poa_hf.PoaTrainingArguments())) == poa_hf.PoaTrainingArguments()\n"
        "    assert pickle.loads(pickle.dumps(poa_hf.PoaViTModel)) is poa_hf.PoaViTModel\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(*pool.map(size, [config])[0])\n"
    )
    assert run_python(str(tmp_path / "spawned.py")).stdout.split() == ["PoaViTConfig", "1024x24"]


def test_waiting_leaves_no_trace():
    succeeds(
        "import sys, inspect, poa_hf\n"
        "from poa_hf._registration import _Finder\n"
        "import transformers.models.auto.configuration_auto as auto\n"
        "assert not any(isinstance(finder, _Finder) for finder in sys.meta_path)\n"
        "assert 'class AutoConfig' in inspect.getsource(auto)\n"
        "assert type(auto.__spec__.loader).__name__ == 'SourceFileLoader'\n"
        "assert 'poa_hf.models' not in sys.modules\n"
        "assert 'poa_hf' in auto.AutoConfig.from_pretrained.__func__.__code__.co_filename\n"
        "assert auto.AutoConfig.for_model('poa_swin') == poa_hf.PoaSwinConfig()\n"
        "assert 'poa_hf' not in auto.AutoConfig.from_pretrained.__func__.__code__.co_filename"
    )


def test_our_models_are_registered_here():
    assert AutoModel._model_mapping[poa_hf.PoaViTConfig] is poa_hf.PoaViTModel
