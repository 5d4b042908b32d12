"""What a launcher may ask of DeepSpeed, told before anything else is done; needs no DeepSpeed."""

import importlib.util

import pytest

from sdzero import deepspeed_settings
from sdzero.errors import UserError

ZERO_2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO_3 = ZERO_2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    there = found("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: there if name == "deepspeed" else found(name)
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("variables", [{}, ZERO_2, ZERO_3, ZERO_3 | {"ACCELERATE_GRADIENT_CLIPPING": "auto"}])
def test_zero_2_and_3_may_be_asked_for(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    deepspeed_settings.check(processes=2)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("variables", "processes", "message", "where"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, 2, "ZeRO stage 1", "zero_stage"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "own.json"}, 2, "configuration file", "deepspeed_config_file"),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            2,
            "offload_optimizer_device: cpu",
            "offload_optimizer_device",
        ),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, 2, "max_grad_norm", "gradient_clipping"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, 2, "batch_size", "gradient_accumulation_steps"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, 2, "model.dtype", "mixed_precision"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 2, "loads whole models", "zero3_init_flag"),
        ({}, 1, "there is one", "num_processes"),
    ],
)
def test_the_rest_is_refused_with_the_key_that_says_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], processes: int, message: str, where: str
) -> None:
    for name, value in (ZERO_2 | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as found:
        deepspeed_settings.check(processes)
    assert where in str(found.value.where)
    assert found.value.todo


def test_without_deepspeed_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name)
    )
    for name, value in ZERO_2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="not installed") as told:
        deepspeed_settings.check(processes=2)
    assert "sdzero[deepspeed]" in (told.value.todo or "")
