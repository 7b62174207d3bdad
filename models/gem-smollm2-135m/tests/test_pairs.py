"""Pairs of glosses and of sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
from gem_smollm2.descriptions import description_pairs
from gem_smollm2.glosses import gloss_pairs, read_synsets
from gem_smollm2.sentences import sentence_pairs
from gem_tiny.texts import Text

NOUNS = """\
  1 This software and database is being provided to you under a license.
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived to have its own existence
00002000 03 n 02 big_dog 0 hound 0 001 @ 00001740 n 0000 | an animal that barks; "big dog"; "it"
00002100 03 n 01 cat 0 001 @ 00001740 n 0000 | an animal that purrs and sleeps all day
00002200 03 n 01 thing 0 000 | short one
"""
ADJECTIVES = "00005000 00 s 01 fond(p) 0 001 & 00005100 a 0000 | having a strong liking\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    for kind in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{kind}").write_text({"noun": NOUNS, "adj": ADJECTIVES}.get(kind, ""))
    return tmp_path


def test_synsets_are_read_as_wndb_says(wordnet: Path) -> None:
    entity, dog, *_, fond = read_synsets(wordnet)
    assert (entity.key, entity.words, entity.parent) == ("n00001740", ("entity",), None)
    assert dog.words == ("big dog", "hound")
    assert dog.definition == "an animal that barks"
    assert dog.examples == ("big dog", "it")
    assert dog.parent == "n00001740"
    assert (fond.key, fond.words, fond.parent) == ("a00005000", ("fond",), "a00005100")


def test_a_word_finds_its_gloss_beside_those_of_its_kind(wordnet: Path) -> None:
    pairs = list(gloss_pairs(wordnet, negatives=1))
    assert len(pairs) == 4  # "short one" defines nothing
    [dog] = [pair for pair in pairs if pair.section == "n00002000"]
    assert any(word in dog.query for word in ("big dog", "hound"))
    word = "big dog" if "big dog" in dog.query else "hound"
    assert dog.document.startswith("an animal that barks")
    assert word not in dog.document  # nothing to be found by its name
    assert dog.negatives == ("an animal that purrs and sleeps all day",)
    assert list(gloss_pairs(wordnet, negatives=1)) == pairs  # seeded


def text(body: str) -> Text:
    return Text("section", "some-doc", "page", "Name", "Guide > Name", body, held_out=False)


BODY = (
    "A server keeps one connection open for every client that it has. "
    "Idle connections are closed after the time that the operator has set. "
    "Clients are told about the closing by a message with a reason. " + "More words follow. " * 5
)


def test_a_sentence_finds_the_section_that_it_was_taken_out_of() -> None:
    pairs = list(sentence_pairs([text(BODY)] * 40))
    assert len(pairs) == 40
    assert {len(pair.query.split()) >= 6 for pair in pairs} == {True}
    assert all(pair.query in BODY for pair in pairs)
    assert all(pair.document.startswith("Guide > Name\n") for pair in pairs)
    without = sum(pair.query not in pair.document for pair in pairs)
    assert 25 < without < 40  # a few stay
    assert len({pair.query for pair in pairs}) == 3


def test_short_texts_and_code_have_no_pairs() -> None:
    code = "x = 1; y = [i for i in range(9)]; print(x, y, {}, (), 1 + 2)\n" * 8
    assert not list(sentence_pairs([text("One short sentence is all there is here."), text(code)]))


DESCRIPTIONS = """\
Package: 7zip
Description-md5: 302b8ff813071cfed09d7b23ac4a0cb3
Description-en: file archiver with a high compression ratio
 7-Zip packs and unpacks archives of many formats, among them ZIP, TAR and
 its own.
 .
 This package is made of the source package sevenzip, and holds the program 7zz,
 and what it needs.

Package: 7zip-doc
Description-en: file archiver with a high compression ratio (manual)
 7-Zip packs and unpacks archives of many formats, among them ZIP, TAR and
 its own.
 .
 These are its pages, which say how programs of it are called and what they do.

Package: tiny
Description-en: tiny
 A package whose short description has but one word, however long this one is.
"""


def test_a_short_description_finds_what_no_earlier_package_says(tmp_path: Path) -> None:
    (tmp_path / "debian_main_i18n_Translation-en").write_text(DESCRIPTIONS)
    (tmp_path / "debian_main_i18n_Translation-de").write_text("Description-de: Packer\n Packt.\n")
    first, second = description_pairs(tmp_path)
    assert first.query == "file archiver with a high compression ratio"
    assert first.document.startswith("7-Zip packs and unpacks archives of many formats, among them")
    assert first.document.endswith("and what it needs.")
    assert "\n\n" in first.document
    assert second.document == (
        "These are its pages, which say how programs of it are called and what they do."
    )
