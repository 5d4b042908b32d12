"""The pre-training corpus: its side of the split, and phrases that always fit the attempt before them."""

import itertools

import pytest

from sdzero.recipe import PhraseSettings
from sdzero.tiny import corpus
from sdzero.tiny.corpus import Document, documents, joined_phrase
from sdzero.tiny.world import KINDS, boxed_value, is_pretraining

SAMPLE = 4_000


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(itertools.islice(documents(11, "tuning"), SAMPLE))


def test_the_phrases_are_those_of_the_recipes() -> None:
    assert PhraseSettings(correct=corpus.PHRASE_CORRECT, wrong=corpus.PHRASE_WRONG) == PhraseSettings()


def test_documents_come_from_the_pretraining_side_only(sample: list[Document]) -> None:
    assert all(is_pretraining(document.problem.text) for document in sample)


def test_a_phrase_fits_the_attempt_before_it(sample: list[Document]) -> None:
    fitting = {True: joined_phrase(corpus.PHRASE_CORRECT), False: joined_phrase(corpus.PHRASE_WRONG)}
    seen = {True: 0, False: 0}
    for document in sample:
        attempts, phrases = document.pieces[::2], document.pieces[1::2]
        assert len(attempts) == len(phrases) + 1
        for attempt, phrase in zip(attempts, phrases, strict=False):
            is_right = boxed_value(attempt) == document.problem.answer
            assert phrase == fitting[is_right]
            seen[is_right] += 1
    assert min(seen.values()) > 20, "both phrases must stand in the corpus"


def test_a_right_attempt_is_followed_by_the_same_one(sample: list[Document]) -> None:
    for document in sample:
        attempts = document.pieces[::2]
        for attempt, following in itertools.pairwise(attempts):
            if boxed_value(attempt) == document.problem.answer:
                assert following == attempt


def test_shares_are_what_the_module_says(sample: list[Document]) -> None:
    revised = [d for d in sample if len(d.pieces) > 1]
    assert len(revised) / len(sample) == pytest.approx(corpus.SHARE_WITH_REVISIONS, abs=0.03)
    after_wrong = [
        boxed_value(following) == d.problem.answer
        for d in revised
        for attempt, following in itertools.pairwise(d.pieces[::2])
        if boxed_value(attempt) != d.problem.answer and KINDS[d.problem.kind].share_right < 0.5
    ]
    assert sum(after_wrong) / len(after_wrong) == pytest.approx(corpus.SHARE_REVISED_RIGHT, abs=0.06)
    hard = [d for d in sample if KINDS[d.problem.kind].share_right < 0.5]
    first_right = sum(boxed_value(d.pieces[0]) == d.problem.answer for d in hard) / len(hard)
    assert first_right < 0.2, "six kinds are mostly done wrong"


def test_the_same_seed_gives_the_same_corpus() -> None:
    first, second, other = (list(itertools.islice(documents(seed, "tuning"), 50)) for seed in (1, 1, 2))
    assert first == second != other


def test_in_pretraining_the_easy_kinds_are_never_wrong() -> None:
    for document in itertools.islice(documents(11, "pretraining"), SAMPLE):
        if KINDS[document.problem.kind].share_right > 0.5:
            assert all(boxed_value(p) == document.problem.answer for p in document.pieces[::2])


def test_both_parts_hold_wrong_attempts_of_the_hard_kinds_that_are_wrong() -> None:
    for part in ("pretraining", "tuning"):
        hard = [
            d
            for d in itertools.islice(documents(11, part), SAMPLE)
            if KINDS[d.problem.kind].share_right < 0.5
        ]
        first_right = sum(boxed_value(d.pieces[0]) == d.problem.answer for d in hard) / len(hard)
        assert 0 < first_right < 0.2
