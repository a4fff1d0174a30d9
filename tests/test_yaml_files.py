"""YAML as users write it: nothing lost, nothing run, mistakes with their line."""

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poa_hf.yaml_files import located, parse_yaml, read_mapping, yaml_text


def bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3", "line 3 gives a again, which line 1 has given"),
        ("a: 1\n'a': 2", "line 2 gives a again, which line 1 has given"),
        ("a: {b: 1, b: 2}", "line 1 gives b twice: keep one"),
        ("a:\n  - x: {b: 1, c: 2,\n     b: 3}", "line 3 gives b again, which line 2 has given"),
        ("1: a\n1.0: b", "line 2 gives 1.0 again, which line 1 has given"),
        ("1: a\ntrue: b", "line 2 gives True again, which line 1 has given"),
        ("1: a\n'1': b", "line 2 gives 1 again"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "line 4 gives << again, which line 3 has given"),
        ("a: &a {x: 1}\nc: &c {x: 2}\nb: {<<: [*a, *c]}", "line 3 merges two mappings with the key x"),
        ("<<: 3", "line 1: << takes a mapping"),
        ("? [a]\n: b", "line 1 has a key that is a list"),
        ("a: !!python/object/apply:os.system [ls]", r"line 1 .*the tag !!python/object/apply:os.system is not read"),
        ("b: 1\na: !!timestamp never", "line 2 .*the tag !!timestamp is not read"),
        ("a: !mine {b: 1}", "the tag !mine is not read"),
        ("a: 1\n---\nb: 2", "line 2 .*a second document begins here"),
        ("a:\n\tb: 1", "line 2 .*indent with spaces"),
        ("a: &a [*a]", "line 1 .*an alias stands for what contains it"),
        (bomb(), "aliases stand for more than 100,000 values"),
        ("a: *b", "line 1 .*undefined alias"),
        ("a: [1, 2\nb: 3", "line 2 is not valid YAML"),
        ("a: 1\nb: \x00", r"line 2 holds a character that is no text, U\+0000"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text, "recipe.yaml")
    assert str(error.value).startswith("recipe.yaml") and "\n" not in str(error.value) and len(str(error.value)) < 200


def test_plain_values_are_those_of_yaml_1_2_and_the_rest_stays_text():
    text = "[yes, No, on, 010, 1:30, 2024-01-01, 1_000, 0x1F, '5', null, ~, true, -3, 0.5, 1e-3, .5, 1.0e-05, -.inf]"
    expected = ["yes", "No", "on", "010", "1:30", "2024-01-01", "1_000", "0x1F", "5", None, None, True, -3]
    assert parse_yaml(text) == [*expected, 0.5, 1e-3, 0.5, 1e-5, -float("inf")]
    assert str(parse_yaml("1.10")) == "1.10"  # the name of a version, where a text is wanted


def test_a_key_replaces_one_that_is_merged():
    content = parse_yaml("base: &base {x: 1, y: 2}\nmine:\n  <<: *base\n  x: 3")
    assert content["mine"] == {"x": 3, "y": 2} and content["base"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends_of_windows(tmp_path, encoding):
    path = tmp_path / "a.yaml"
    path.write_bytes("about: Bäume\r\nseed: 3\r\n".encode(encoding))
    content = read_mapping(path)
    assert content == {"about": "Bäume", "seed": 3} and content.lines == {"about": 1, "seed": 2}


@pytest.mark.parametrize(
    "data, message",
    [
        (b"a: \xff\xfe", "is not a text file: give a YAML file in UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "is not a text file"),
        (b"- a\n", "must hold `key: value` lines, not a list"),
        (b"5", "must hold `key: value` lines, not a int"),
        (b"a: 1\n" * 300_000, "has 1,500,000 bytes: give a YAML file of at most 1,000,000"),
    ],
)
def test_files_that_are_no_mapping(tmp_path, data, message):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_mapping(tmp_path / "a.yaml")


def test_an_empty_file_has_no_keys(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert read_mapping(tmp_path / "a.yaml") == {}


def test_mistakes_in_a_value_have_the_line_of_its_key():
    section = parse_yaml("a: 1\nb: 2", "x.yaml")
    with pytest.raises(ValueError, match="x.yaml, line 2: b is wrong"), located(section):
        raise ValueError("b is wrong")
    with pytest.raises(ValueError, match="^a is wrong"), located(section.without({"a"})):
        raise ValueError("a is wrong")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values)
def test_what_is_written_is_read_back(value):
    assert yaml_text(parse_yaml(yaml_text(value))) == yaml_text(value)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(alphabet="ab:-?[]{},&*!|>'\"%@`#<=~ \n\t0123456789.e\x85\ufeff", max_size=40))
def test_any_text_is_a_value_or_one_sentence(text):
    try:
        parse_yaml(text, "x.yaml")
    except ValueError as error:
        assert str(error).startswith("x.yaml") and "\n" not in str(error)
