"""The pre-training corpus: its side of the split, and phrases that always fit the attempt before them."""

import hashlib
import itertools

import pytest

from sdzero.recipe import PhraseSettings
from sdzero.tiny import corpus
from sdzero.tiny.corpus import Document, documents, joined_phrase
from sdzero.tiny.problem import is_pretraining
from sdzero.tiny.worlds import WORLDS, World

SAMPLE = 4_000
STREAMS = {
    "pretraining": "dbe54e2d917936451adc541531225f8c71f242fda25da1ad7904b3d97dfd1a26",
    "tuning": "427c2b81654cc357ad2a7249f15a6fb4bb3250e77c65aa66e2396dab9ced4394",
}


@pytest.fixture(scope="module", params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture(scope="module")
def sample(world: World) -> list[Document]:
    return list(itertools.islice(documents(11, "tuning", world), SAMPLE))


def test_the_phrases_are_those_of_the_recipes() -> None:
    assert PhraseSettings(correct=corpus.PHRASE_CORRECT, wrong=corpus.PHRASE_WRONG) == PhraseSettings()


def test_documents_come_from_the_pretraining_side_only(sample: list[Document]) -> None:
    assert all(is_pretraining(document.problem.text) for document in sample)


def test_a_phrase_fits_the_attempt_before_it(sample: list[Document], world: World) -> None:
    fitting = {True: joined_phrase(corpus.PHRASE_CORRECT), False: joined_phrase(corpus.PHRASE_WRONG)}
    seen = {True: 0, False: 0}
    for document in sample:
        attempts, phrases = document.pieces[::2], document.pieces[1::2]
        assert len(attempts) == len(phrases) + 1
        for attempt, phrase in zip(attempts, phrases, strict=False):
            is_right = world.is_right(document.problem, attempt)
            assert phrase == fitting[is_right]
            seen[is_right] += 1
    assert min(seen.values()) > 20, "both phrases must stand in the corpus"


def test_a_right_attempt_is_followed_by_the_same_one_told_again(sample: list[Document], world: World) -> None:
    for document in sample:
        attempts = document.pieces[::2]
        for attempt, following in itertools.pairwise(attempts):
            if world.is_right(document.problem, attempt):
                assert following == world.rephrased(attempt)
                assert world.is_right(document.problem, following)


def test_shares_are_what_the_module_says(sample: list[Document], world: World) -> None:
    plain = [d for d in sample if not d.hinted]
    revised = [d for d in plain if len(d.pieces) > 1]
    assert len(revised) / len(plain) == pytest.approx(corpus.SHARE_WITH_REVISIONS, abs=0.03)
    after_wrong = [
        world.is_right(d.problem, following)
        for d in revised
        for attempt, following in itertools.pairwise(d.pieces[::2])
        if not world.is_right(d.problem, attempt) and world.is_hard(d.problem.kind)
    ]
    assert sum(after_wrong) / len(after_wrong) == pytest.approx(corpus.SHARE_REVISED_RIGHT, abs=0.06)
    for kind, share_right in world.share_right.items():
        own = [world.is_right(d.problem, d.pieces[0]) for d in plain if d.problem.kind == kind]
        assert sum(own) / len(own) == pytest.approx(share_right, abs=0.08), kind


def test_only_the_worlds_with_hints_have_hinted_documents(sample: list[Document], world: World) -> None:
    hinted = [d for d in sample if d.hinted]
    assert len(hinted) / len(sample) == pytest.approx(world.hint_share, abs=0.02)
    for document in hinted:
        question, answer = document.problem.text, document.problem.answer
        assert document.prompt == f"{question}\n\nThe answer is {answer}."
    assert all(d.prompt == d.problem.text for d in sample if not d.hinted)


@pytest.mark.parametrize("name", ["spelling", "walks", "edits", "starts"])
def test_with_a_hint_every_attempt_of_a_hard_kind_is_right_in_six_of_ten(name: str) -> None:
    world = WORLDS[name]
    for part in ("pretraining", "tuning"):
        hinted = [
            d
            for d in itertools.islice(documents(5, part, world), 2 * SAMPLE)
            if d.hinted and world.is_hard(d.problem.kind)
        ]
        first = [world.is_right(d.problem, d.pieces[0]) for d in hinted]
        assert sum(first) / len(first) == pytest.approx(corpus.SHARE_RIGHT_WITH_HINT, abs=0.08)


def test_the_same_seed_gives_the_same_corpus(world: World) -> None:
    first, second, other = (
        list(itertools.islice(documents(seed, "tuning", world), 50)) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_the_stream_of_arithmetic_is_the_one_that_the_shipped_model_was_made_from() -> None:
    """The hash was taken before there were other worlds."""
    for part, digest in STREAMS.items():
        told = hashlib.sha256()
        for document in itertools.islice(documents(7, part, WORLDS["arithmetic"]), 2_000):
            told.update("\x1f".join((document.prompt, *document.pieces, "\n")).encode())
        assert told.hexdigest() == digest, part


def test_in_pretraining_the_easy_kinds_are_never_wrong(world: World) -> None:
    easy = 0
    for document in itertools.islice(documents(11, "pretraining", world), SAMPLE):
        if not world.is_hard(document.problem.kind):
            assert all(world.is_right(document.problem, piece) for piece in document.pieces[::2])
            easy += 1
    assert easy > SAMPLE / 4


def test_both_parts_hold_wrong_attempts_of_the_hard_kinds_that_are_wrong(world: World) -> None:
    for part in ("pretraining", "tuning"):
        hard = [
            d
            for d in itertools.islice(documents(11, part, world), SAMPLE)
            if world.is_hard(d.problem.kind) and not d.hinted
        ]
        first_right = sum(world.is_right(d.problem, d.pieces[0]) for d in hard) / len(hard)
        assert 0 < first_right < 0.2
