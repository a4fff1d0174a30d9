"""How commands read their arguments."""

import dataclasses

import pytest

from poa_hf.cli.fields import Reader, add_fields, headings, read_mapping_values
from poa_hf.cli.parser import CommandParser, decimal_number, numbers_in, whole_number, words
from poa_hf.cli.recipe import recipe_parser
from poa_hf.cli.select import select
from poa_hf.ranges import COUNT
from poa_hf.training.arguments import PoaTrainingArguments


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser("poa try", "Tries things.")
    parser.add_option("run", help="a run")
    parser.add_option("--size", several=True, type=words, help="sizes")
    parser.add_option("--k", several=True, type=numbers_in(COUNT), help="neighbours")
    parser.add_option("--batch_size", type=whole_number, default=8, help="images")
    parser.add_option("--share", type=decimal_number, help="a share")
    parser.add_option("--overwrite", action="store_true", help="replace")
    parser.add_option("--quality", choices=["knn", "linear"], help="which")
    return parser


@pytest.mark.parametrize(
    "line",
    [
        "run --size small base --overwrite",
        "run --size small,base --overwrite",
        "run --size small, base --overwrite",
        "run --size [small,base] --overwrite",
        "run --size=small,base --overwrite",
        "--overwrite --size small base run",
        "--size small base --overwrite run",
        "--size small,base run --overwrite",
        "--overwrite run --size small base",
    ],
)
def test_a_list_and_what_is_not_of_it(parser, line):
    args = parser.parse_args(line.split())
    assert (args.run, args.size, args.overwrite) == ("run", ["small", "base"], True)


def test_numbers(parser):
    args = parser.parse_args(["run", "--k", "10", "20", "--batch-size", "1e2", "--share", "-1e-3"])
    assert (args.k, args.batch_size, args.share) == ((10, 20), 100, -0.001)
    assert parser.parse_args(["--k=5", "run"]).k == (5,) and parser.parse_args(["run"]).batch_size == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run --siz small", "--siz is not an option of poa try: did you mean --size?"),
        ("run --nothing", "--nothing is not an option of poa try: choose from --batch_size, --k, --overwrite, "
         "--quality, --share, --size."),
        ("run --batch_size", "--batch_size needs a value."),
        ("run --batch_size --overwrite", "--batch_size needs a value."),
        ("run --batch_size 1.5", "--batch_size is '1.5': give a whole number."),
        ("run --batch_size inf", "--batch_size is 'inf': give a whole number."),
        ("run --share much", "--share is 'much': give a number."),
        ("run --k 5 many", "--k is '5,many': give whole numbers of at least 1, such as 10 20 or 10,20."),
        ("run --quality taste", "--quality is 'taste': choose from knn, linear."),
        ("run --overwrite=yes", "--overwrite takes no value."),
        ("run more", "'more' belongs to no option: see poa try --help."),
        ("", "Give RUN: see poa try --help."),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(parser, line, message):
    with pytest.raises(ValueError) as error:
        parser.parse_args(line.split())
    assert str(error.value) == message


@dataclasses.dataclass
class Arguments:
    """What is tried. And more about it."""

    name: str = "x"

    # Numbers
    count: int | None = 3
    shares: list[float] = dataclasses.field(default_factory=lambda: [0.5], metadata={"help": "Some: 100 %."})

    # Switches
    fast: bool = True


def test_fields_as_options(capsys):
    assert headings(Arguments) == {
        "name": "What is tried", "count": "Numbers", "shares": "Numbers", "fast": "Switches"
    }  # fmt: skip
    parser = CommandParser("poa try", "Tries things.")
    add_fields(parser, Arguments)
    assert vars(parser.parse_args([])) == {}
    given = vars(parser.parse_args(["--count", "null", "--shares", "1", "0.5", "--no_fast"]))
    assert given == {"count": None, "shares": [1.0, 0.5], "fast": False}
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    printed = capsys.readouterr().out
    assert "Some: 100 %. (default: 0.5)" in printed and "Switches:\n  --fast [true|false]" in printed


def test_fields_as_keys():
    content = {"count": "1e2", "shares": 1, "fast": "no", "other": 5}
    assert read_mapping_values(Arguments, content) == {"count": 100, "shares": [1.0], "fast": False}
    assert read_mapping_values(Arguments, {"count": None}) == {"count": None}
    for content, message in (
        ({"fast": None}, "fast is null: give it a value, or leave it out for the default."),
        ({"shares": [[1]]}, r"shares is \[\[1\]\]: give numbers, such as 0.5,1.0."),
        ({"name": ["a", "b"]}, r"name is \['a', 'b'\]: give a single text."),
    ):
        with pytest.raises(ValueError, match=message):
            read_mapping_values(Arguments, content)


def test_every_training_argument_has_a_reader_and_a_heading():
    titles = headings(PoaTrainingArguments)
    for field in dataclasses.fields(PoaTrainingArguments):
        assert Reader.of(PoaTrainingArguments, field.name).kind in (bool, int, float, str)
        assert field.metadata["help"] and titles[field.name]


def test_an_option_that_is_near_none_of_many_is_answered_by_help():
    with pytest.raises(ValueError, match="^--zzzz is not an option of poa pretrain: see poa pretrain --help.$"):
        recipe_parser().parse_args(["--zzzz", "3"])


def test_limits_are_read_before_the_run_is(tmp_path):
    with pytest.raises(ValueError, match="^--max_params 'many' is not understood"):
        select([str(tmp_path / "no run"), "--max_params", "many"])
