"""Write the example of docs/method.md: both roles' token sequences with the embedded model's tokenizer.

    python docs/make_method_example.py

The question has the kind `a+b*c-d`: the wrong response goes left to right, the revision does not.
"""

from collections.abc import Sequence
from pathlib import Path

from sdzero.method.roles import Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings
from sdzero.tiny import MODEL_NAME
from sdzero.tiny.arithmetic import make_problem, solution

PAGE = Path(__file__).parent / "method.md"
BEGIN, END = "<!-- example:begin -->", "<!-- example:end -->"


def example() -> str:
    """The block between the marks, as Markdown."""
    tokenizer = load_tokenizer(MODEL_NAME)
    roles = Roles(tokenizer, PhraseSettings(), ChatSettings())
    problem = make_problem("a+b*c-d", (3, 4, 5, 2))

    def ids(text: str) -> list[int]:
        return [*tokenizer.encode(text, add_special_tokens=False), roles.end_token_id]

    def shown(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids))).replace("\n", "⏎")

    prompt = roles.generator_prompt(Question("example", problem.text, str(problem.answer)))
    initial, revised = ids(solution(problem, right=False)), ids(solution(problem))
    joint = roles.joint_sequence(prompt, initial, 0, revised)
    pair = roles.distillation_pair(prompt, initial, 0)
    lines = ["Phase 1, one trace of r = 0 (`srt.schedule_of_losses: joint`):", "", "```"]
    for name, start, end in joint.segments:
        text = shown(joint.token_ids[start:end])
        lines.append(f"{name:14}{end - start:3} tokens, weight {joint.weights[start]:g}  {text}")
    lines += ["```", "", "Phase 2, the same response y with r = 0:", "", "```"]
    for role, token_ids, places in (
        ("student", pair.student_ids, pair.student_logit_positions),
        ("teacher", pair.teacher_ids, pair.teacher_logit_positions),
    ):
        lines += [
            f"{role}: {len(token_ids)} tokens, the logits of y at positions {places[0]} to {places[-1]}",
            f"    {shown(token_ids)}",
        ]
    lines.append("```")
    return "\n".join(lines)


def with_example(text: str) -> str:
    """The page with the block between the marks made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{example()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_example(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
