from collections import Counter

from sdzero.method.graded import Graded
from sdzero.method.question_sampling import SolveRates
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict

QUESTIONS = [
    Question(f"{kind}{number}", f"{kind} {number}?", "1", kind)
    for kind in ("easy", "middle", "hard")
    for number in range(20)
]


def graded(question: Question, outcome: Outcome) -> Graded:
    return Graded(question, 0, (1,), (2,), Verdict(outcome), 1)


def rates_after(verdicts: dict[str, list[Outcome]]) -> SolveRates:
    """Of every kind the first question was answered, with these outcomes."""
    rates = SolveRates(QUESTIONS)
    for kind, outcomes in verdicts.items():
        first = next(question for question in QUESTIONS if question.kind == kind)
        rates.note(graded(first, outcome) for outcome in outcomes)
    return rates


RIGHT, WRONG = Outcome.CORRECT, Outcome.WRONG
SEEN = {"easy": [RIGHT] * 30, "middle": [RIGHT, WRONG] * 15, "hard": [WRONG] * 30}


def test_rates_by_hand() -> None:
    rates = SolveRates(QUESTIONS)
    first, second = QUESTIONS[:2]
    assert rates.rate(first) == 0.5
    rates.note([graded(first, RIGHT)])
    # Of the kind (1 + 1) / (1 + 2) = 2/3; of the question itself (1 + 2 * 2/3) / (1 + 2).
    assert abs(rates.rate(second) - 2 / 3) < 1e-12
    assert abs(rates.rate(first) - 7 / 9) < 1e-12
    rates.note([graded(second, Outcome.ERROR)])  # ours: says nothing of the model
    assert abs(rates.rate(second) - 2 / 3) < 1e-12


def test_what_is_solved_half_of_the_time_is_asked_most() -> None:
    rates = rates_after(SEEN)
    asked = Counter(question.kind for step in range(300) for question in rates.choose(6, 0, step))
    assert asked["middle"] > 1.8 * asked["easy"]
    assert asked["middle"] > 1.8 * asked["hard"]
    assert min(asked["easy"], asked["hard"]) > 100  # none is given up


def test_a_step_asks_no_question_twice_and_repeats_itself_exactly() -> None:
    rates = rates_after(SEEN)
    chosen = rates.choose(32, 0, 5)
    assert len({question.id for question in chosen}) == 32
    assert [q.id for q in rates.choose(32, 0, 5)] == [q.id for q in chosen]
    assert [q.id for q in rates.choose(32, 0, 6)] != [q.id for q in chosen]
    assert [q.id for q in rates.choose(32, 1, 5)] != [q.id for q in chosen]


def test_what_was_learnt_of_rates_is_restored() -> None:
    rates = rates_after(SEEN)
    again = SolveRates(QUESTIONS)
    again.restore(rates.to_json())
    assert [again.rate(q) for q in QUESTIONS] == [rates.rate(q) for q in QUESTIONS]
    again.note([graded(QUESTIONS[0], WRONG)])
    assert again.rate(QUESTIONS[0]) < rates.rate(QUESTIONS[0])
