import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdzero.baselines.rft import rft_sequences
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.recipe import ChatSettings, PhraseSettings
from sdzero.verify.verdict import Outcome, Verdict

CORRECT, WRONG = Verdict(Outcome.CORRECT), Verdict(Outcome.WRONG)


@pytest.fixture(scope="module")
def roles() -> Roles:
    words = ["<pad>", "<end>", "<user>", "<assistant>", *"abcdefghijklmnopqrs"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template="{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    return Roles(tokenizer, PhraseSettings(correct="p", wrong="q"), ChatSettings())


def test_only_correct_responses_are_kept_each_once_a_question(roles):
    first, second = (2, 5, 1, 3), (2, 6, 1, 3)
    graded = [
        (first, (7, 8, 1), CORRECT),
        (first, (9, 1), WRONG),
        (first, (7, 8, 1), CORRECT),
        (second, (7, 8, 1), CORRECT),
        (first, (9, 10), Verdict(Outcome.TRUNCATED)),
        (first, (7, 1), Verdict(Outcome.ERROR)),
        (first, (10, 1), CORRECT),
    ]
    sequences = rft_sequences(graded, roles)
    assert [sequence.token_ids for sequence in sequences] == [
        (*first, 7, 8, 1),
        (*second, 7, 8, 1),
        (*first, 10, 1),
    ]
    assert sequences[0].weights == (0.0,) * 4 + (1.0,) * 3


@pytest.mark.parametrize("graded", [[], [((2, 3), (9, 1), WRONG)]])
def test_nothing_correct_is_an_error_for_people(roles, graded):
    with pytest.raises(UserError, match=f"none of the {len(graded)} sampled"):
        rft_sequences(graded, roles)
