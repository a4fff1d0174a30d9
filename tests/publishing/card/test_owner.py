import pytest

from poa_hf.cli.main import main
from poa_hf.publishing.card.facts import CardFacts
from poa_hf.publishing.card.owner import OwnerFacts


def test_the_owner_adds_what_no_run_knows(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text("dataset_name: /data/copy\ndataset_config_name: a\n")
    (tmp_path / "card.yaml").write_text(
        "license: other\nlicense_name: my-licence\nlicense_link: LICENSE\ndataset: my/images\ncontact: me@example.org\n"
    )
    facts = CardFacts.read(tiny_model, tmp_path)
    assert (facts.run.dataset, facts.run.dataset_id, facts.run.dataset_config) == ("my/images", "my/images", None)
    assert (facts.owner.license_name, facts.owner.contact) == ("my-licence", "me@example.org")
    given = CardFacts.read(tiny_model, tmp_path, license="mit", contact=None).owner
    assert (given.license, given.license_name, given.license_link) == ("mit", None, None)
    assert given.contact == "me@example.org" and CardFacts.read(tiny_model, license="mit").owner == OwnerFacts("mit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence: mit", "card.yaml must hold `key: value` lines with keys of license,"),
        ("- mit", "must hold `key: value` lines"),
        ("license: [", "line 1 is not valid YAML"),
        ("license: Apache 2.0", "did you mean apache-2.0"),
        ("license: other", "needs a license_name"),
        ("license: mit\nlicense_link: LICENSE", "are for license other only"),
        ("license: other\nlicense_name: My Licence\nlicense_link: LICENSE", "lowercase"),
        ("license: other\nlicense_name: mine\nlicense_link: ftp://x", "web address"),
        ("dataset: /home/me/images", "not a Hub id"),
        ("contact: 17", "contact 17 is not text"),
    ],
)
def test_what_an_owner_may_not_say_is_one_sentence(tiny_model, tmp_path, text, message, capsys):
    tiny_model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "card.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        CardFacts.read(tiny_model, tmp_path / "run")
    output = tmp_path / "out"
    capsys.readouterr()
    assert main(["extract", str(tmp_path / "run"), "--size", "small", "--output", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not output.exists()
