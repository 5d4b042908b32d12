import pytest
import torch

from sdzero.method.token_factors import TokenFactors, clip_factors, entropy_factors


def test_a_clip_bounds_what_a_token_adds() -> None:
    divergence_T = torch.tensor([0.0, 0.5, 1.0, 4.0])
    scaled_T = clip_factors(divergence_T, 1.0, "scale")
    assert scaled_T.tolist() == [1.0, 1.0, 1.0, 0.25]
    assert (scaled_T * divergence_T).tolist() == [0.0, 0.5, 1.0, 1.0]
    assert clip_factors(divergence_T, 1.0, "stop").tolist() == [1.0, 1.0, 1.0, 0.0]


def test_tokens_are_chosen_by_entropy_in_each_response() -> None:
    entropy_T = torch.tensor([0.1, 0.9, 0.5, 0.3, 5.0, 4.0, 4.0])
    # Of four tokens two; of three, ceil(1.5) = 2, the earlier of the equal ones.
    assert entropy_factors(entropy_T, [4, 3], 0.5).tolist() == [0, 2, 2, 0, 1.5, 1.5, 0]


def test_a_response_weighs_what_it_weighed() -> None:
    entropy_T = torch.rand(20, generator=torch.Generator().manual_seed(0))
    for share in (0.05, 0.3, 0.99):
        factors_T = entropy_factors(entropy_T, [7, 13], share)
        assert factors_T[:7].sum() == pytest.approx(7)
        assert factors_T[7:].sum() == pytest.approx(13)


def test_the_choice_does_not_depend_on_the_batch() -> None:
    entropy_T = torch.rand(20, generator=torch.Generator().manual_seed(1))
    apart_T = torch.cat([entropy_factors(entropy_T[:7], [7], 0.4), entropy_factors(entropy_T[7:], [13], 0.4)])
    assert torch.equal(entropy_factors(entropy_T, [7, 13], 0.4), apart_T)


def test_clip_and_choice_multiply_and_nothing_asked_is_nothing() -> None:
    divergence_T, entropy_T = torch.tensor([4.0, 1.0]), torch.tensor([2.0, 1.0])
    assert TokenFactors()(divergence_T, entropy_T, [2]) is None
    both_T = TokenFactors(clip=1.0, token_share=0.5)(divergence_T, entropy_T, [2])
    assert both_T is not None
    assert both_T.tolist() == [0.5, 0.0]
