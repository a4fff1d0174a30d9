import pytest

from poa_hf.cli.recipe import recipe_parser
from poa_hf.formatting import MOST_NAMES, format_duration, format_quantity, listed, one_line, suggest
from poa_hf.models.configuration_poa_vit import PoaViTConfig
from poa_hf.models.from_fields import field_names

OPTIONS = [name[2:] for name, action in recipe_parser()._known_options.items() if not name.startswith("--no_")]
FIELDS = sorted(field_names(PoaViTConfig))
COMMANDS = ["pretrain", "extract", "evaluate", "select", "report", "convert", "push"]


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("max_step", OPTIONS, "max_steps"),
        ("learnig_rate", OPTIONS, "learning_rate"),
        ("learningrate", OPTIONS, "learning_rate"),
        ("output", OPTIONS, "output_dir"),
        ("save_step", OPTIONS, "save_steps"),
        ("gradient_acumulation_steps", OPTIONS, "gradient_accumulation_steps"),
        ("batch_size", OPTIONS, "per_device_train_batch_size"),
        ("train_batch_size", OPTIONS, "per_device_train_batch_size"),
        ("dataset", OPTIONS, "datasets"),
        ("num_workers", OPTIONS, "dataloader_num_workers"),
        ("color_jiter", OPTIONS, "color_jitter"),
        ("init_frm", OPTIONS, "init_from"),
        ("hiden_size", FIELDS, "hidden_size"),
        ("num_layers", FIELDS, "num_hidden_layers"),
        ("patch_sise", FIELDS, "patch_size"),
        ("min_hidden", FIELDS, "min_hidden_size"),
        ("pretrian", COMMANDS, "pretrain"),
        ("evalute", COMMANDS, "evaluate"),
        ("exract", COMMANDS, "extract"),
        # nothing is near: no nonsense
        ("fp16", OPTIONS, None),
        ("optim", OPTIONS, None),
        ("neftune_noise_alpha", OPTIONS, None),
        ("lr_scheduler_type", OPTIONS, None),
        ("num_register_tokens", FIELDS, None),
        ("rope_theta", FIELDS, None),
        ("train", COMMANDS, None),
        ("run", COMMANDS, None),
        ("", COMMANDS, None),
    ],
)
def test_suggestions_of_realistic_mistakes(name, known, near):
    if near is None:
        many = f"none of the {len(known)} that exist is spelt alike (--help, or the documentation, lists them)."
        few = f"choose from {', '.join(sorted(known))}."
        assert suggest(name, known) == (many if len(known) > MOST_NAMES else few)
    else:
        assert suggest(name, known) == f"did you mean {near}?"


def test_prefixes_are_shown_where_they_help():
    assert suggest("max_step", OPTIONS, "--") == "did you mean --max_steps?"
    assert suggest("x", ["hidden_size"], "model.") == "choose from hidden_size."
    assert suggest("x", ["seed", "bf16"], "--") == "choose from --bf16, --seed."


def test_values_as_text():
    assert one_line(ValueError("a\n  b.")) == "a b" and one_line(KeyError()) == "KeyError"
    assert listed([1, 2]) == "1, 2" and listed(range(20)) == "0, 1, 2, ..., 19"
    assert [format_quantity(value) for value in (999, 999_600, 21_665_000)] == ["999", "1M", "21.7M"]
    assert [format_duration(value) for value in (5, 90, 5400, 7200)] == ["5 s", "2 min", "1 h 30 min", "2 h"]
