"""Any text is a size of the model or one short sentence, for each family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poa_hf import PoaResNetConfig, PoaSwinConfig, PoaViTConfig
from poa_hf.sub_network import SubNetwork

SPACES = [
    PoaViTConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4).space,
    PoaSwinConfig(embed_dim=32, depths=[2, 2, 4, 2], image_size=224).space,
    PoaResNetConfig(depths=[1, 2, 3, 1], base_width=64).space,
]
NUMBERS = st.one_of(
    st.integers(-5, 100).map(str),
    st.sampled_from(["³84", "٣", "1e3", "9" * 5000, "0", "007", "", "１２", "0x10", "+5"]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.builds("{}x{}".format, NUMBERS, st.lists(NUMBERS, min_size=1, max_size=5).map("-".join)),
    st.sampled_from(["small", "Small", " base", "tiny", "101", "small ", "384X12", "384 x 12", "384x12\n", "\x1b[2J"]),
)


@pytest.mark.parametrize("space", SPACES, ids=["vit", "swin", "resnet"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_any_text_is_a_size_or_one_sentence(space, text):
    try:
        size = space.resolve(text)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert size in list(space) and text.strip() in (str(size), *space.named)


@pytest.mark.parametrize("space", SPACES, ids=["vit", "swin", "resnet"])
def test_every_size_is_read_from_its_text(space):
    assert all(space.resolve(str(size)) == size for size in space)
    assert all(space.resolve(name) == size for name, size in space.named.items())


@pytest.mark.parametrize("text", ["³84x12", "٣٢x2", "9" * 5000 + "x2", "-32x2", "32x-2", "32x2-", "32x2.5", ""])
def test_texts_that_are_no_sizes(text):
    with pytest.raises(ValueError, match="is not a size: write WIDTHxDEPTH") as error:
        SubNetwork.parse(text)
    assert len(str(error.value)) < 150
