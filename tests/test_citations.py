"""Words of an answer are found in its passages in any script and encoding."""

from __future__ import annotations

import unicodedata

import pytest

from gem_rag.documents.document import Chunk
from gem_rag.rag.citations import cite

JAPANESE = "保証期間は購入日から二十四か月であり、消耗品である電池は含まれません。"
CHINESE = "保修期为自购买之日起二十四个月，电池不在保修范围之内。"
THAI = "การรับประกันมีผลยี่สิบสี่เดือนนับจากวันที่ซื้อ"
KOREAN = "보증 기간은 구입일로부터 이십사 개월입니다."
CASES = {
    "Japanese": (JAPANESE, "購入日から二十四か月", "購入日から二十四か月"),
    "Chinese": (CHINESE, "二十四个月", "二十四个月"),
    "Chinese, cited": (CHINESE, "保修期是二十四个月。[1]", "二十四个月"),
    "Thai": (THAI, "ยี่สิบสี่เดือน", "ยี่สิบสี่เดือน"),
    "Korean": (KOREAN, "이십사 개월", "이십사 개월"),
    "Korean, decomposed": (unicodedata.normalize("NFD", KOREAN), "이십사 개월", None),
    "decomposed": (
        unicodedata.normalize("NFD", "Le café ferme à dix heures."),
        "Le café ferme à dix heures.",
        unicodedata.normalize("NFD", "Le café ferme à dix heures"),
    ),
    "soft hyphens": (
        "The con\u00adfig\u00adura\u00adtion lies in the repository.",
        "The configuration lies in the repository",
        "The con\u00adfig\u00adura\u00adtion lies in the repository",
    ),
    "emphasis": ("within **thirty** working **days** of it", "within thirty working days", None),
    "a link": (
        "See the [return form](https://x.org/f) before it",
        "See the return form before",
        None,
    ),
}


@pytest.mark.parametrize(("passage", "answer", "quote"), CASES.values(), ids=CASES)
def test_words_are_found_whatever_the_script(passage: str, answer: str, quote: str | None) -> None:
    (citation,) = cite(answer, [Chunk("s", "", 10, 10 + len(passage), passage)])
    start, stop = citation.span
    assert passage[start - 10 : stop - 10] == citation.quote
    if quote is not None:
        assert citation.quote == quote


def test_a_character_in_common_is_no_quote() -> None:
    assert cite("電話", [Chunk("s", "", 0, len(JAPANESE), JAPANESE)]) == []
