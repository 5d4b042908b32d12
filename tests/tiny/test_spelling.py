"""The world of spelling: reasoning-gym's questions, misconceptions worked by hand, and its own scorer."""

import pytest
from reasoning_gym.factory import create_dataset

from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings
from sdzero.tiny.problem import boxed_text
from sdzero.tiny.spelling import (
    KINDS,
    QUESTION,
    WORD_LENGTHS,
    all_problems,
    kind_of,
    make_problem,
    solution,
    words,
)
from sdzero.verify.puzzle import PuzzleVerifier
from sdzero.verify.verdict import Outcome

BY_HAND = {
    "bother": ("th, sh, ch, ph or ck", "rethob"),
    "checking": ("th, sh, ch, ph or ck", "gnickech"),
    "summer": ("doubled letter", "remus"),
    "baker": ("ends with ing, er or ed", "erkab"),
    "making": ("ends with ing, er or ed", "ingkam"),
    "united": ("ends with ing, er or ed", "edtinu"),
    "orbit": ("begins with a vowel", "otibr"),
    "stone": ("ends with e", "nots"),
    "candy": ("ends with y", "idnac"),
    "words": ("ends with s", "drow"),
    "market": ("ends with n, t or l", "ttekram"),
    "pardon": ("ends with n, t or l", "nnodrap"),
    "cardamom": ("other, even length", "momdarac"),
    "jumbo": ("other, odd length", "obuj"),
}


@pytest.mark.parametrize("word", BY_HAND)
def test_kinds_and_misconceptions_worked_by_hand(word: str) -> None:
    kind, misspelt = BY_HAND[word]
    assert kind_of(word) == kind
    assert solution(make_problem(kind, word), right=False) == f"\\boxed{{{misspelt}}}"


def test_the_middle_of_an_even_word_is_kept() -> None:
    """Backward `victim` is `mitciv`; the middle pair `ct` stays as it is."""
    assert kind_of("victim") == "other, even length"
    assert solution(make_problem("other, even length", "victim"), right=False) == "\\boxed{mictiv}"


def test_misconceptions_are_never_right_and_solutions_always() -> None:
    for kind in KINDS:
        for problem in all_problems(kind):
            (word,) = problem.operands
            assert kind_of(word) == kind
            assert boxed_text(solution(problem)) == problem.answer == "".join(reversed(word))
            assert boxed_text(solution(problem, right=False)) != problem.answer


def test_questions_are_letter_by_letter_those_of_reasoning_gym() -> None:
    dataset = create_dataset("spell_backward", size=200, seed=3)
    assert (dataset.config.min_word_len, dataset.config.max_word_len) == WORD_LENGTHS
    for entry in dataset:
        word = entry["metadata"]["word"]
        assert entry["question"] == QUESTION + word
    assert {word for column in words().values() for word in column} <= set(dataset.words)


def test_words_have_five_to_eight_lower_case_letters() -> None:
    for column in words().values():
        assert len(set(column)) == len(column) >= 1_200
        assert all(word.isascii() and word.isalpha() and word.islower() for word in column)
        assert all(5 <= len(word) <= 8 for word in column)


def test_the_puzzle_verifier_grades_the_sources_questions() -> None:
    questions = load_questions(DataSettings(source="spelling", n1=1, n2=1, test=1))
    verifier = PuzzleVerifier()
    entry = create_dataset("spell_backward", size=1, seed=0)[0]
    for kind in KINDS:
        for question in [question for question in questions if question.kind == kind][:20]:
            own = question.metadata["entry"]
            assert own.keys() == entry.keys()
            assert own["metadata"].keys() == entry["metadata"].keys()
            problem = make_problem(kind, own["metadata"]["word"])
            assert question.answer == problem.answer
            assert question.solution == solution(problem)
            assert verifier.grade(question, question.solution).outcome is Outcome.CORRECT
            assert verifier.grade(question, solution(problem, right=False)).outcome is Outcome.WRONG
