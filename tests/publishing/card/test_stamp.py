from poa_hf.publishing.card.stamp import add_stamp, is_unedited

TEXT = "---\nlicense: mit\n---\n\n# poa-tiny é\n"
# published by version 0.1.0.dev0
OLD = f"{TEXT}\n<!-- poa push 638a45529de6d8edeafaf745056ca8d4 0abcf3a1f17f8522029ebb94a73e315a -->\n"


def stamped(folder, picture_data='["20-NN",[["16x1",0.5]]]') -> bytes:
    card = folder / "README.md"
    card.write_text(TEXT, encoding="utf-8")
    add_stamp(card, picture_data)
    return card.read_bytes()


def test_cards_of_the_first_version_are_recognised(tmp_path):
    assert is_unedited(OLD.encode()) and stamped(tmp_path) == OLD.encode()


def test_any_edit_shows(tmp_path):
    card = stamped(tmp_path)
    assert is_unedited(card)
    for edited in (card + b"\nMore.\n", card.replace(b"mit", b"gpl"), card.replace(b"\n", b"\r\n"), TEXT.encode(), b""):
        assert not is_unedited(edited)


def test_a_card_with_another_picture_is_another_card(tmp_path):
    assert stamped(tmp_path) != stamped(tmp_path, "[]") and is_unedited(stamped(tmp_path, "[]"))
