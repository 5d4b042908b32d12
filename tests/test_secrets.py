"""Tokens of the user's surroundings stay there: none is found in what a run leaves behind."""

from pathlib import Path

import pytest

from sdzero.errors import UserError
from sdzero.recipe_io import load_recipe
from support import SECRETS, micro_recipe


def test_a_run_leaves_no_token_in_its_folder(micro_run: Path) -> None:
    """The run was made with them in its environment."""
    assert {"HF_TOKEN", "WANDB_API_KEY"} <= set(SECRETS)
    files = [file for file in micro_run.parent.rglob("*") if file.is_file()]
    assert len(files) > 30
    for file in files:
        content = file.read_bytes()
        for name, value in SECRETS.items():
            assert value.encode() not in content, f"{name} stands in {file}"


@pytest.mark.parametrize("url", ["http://me:word@127.0.0.1:8000", "http://127.0.0.1:8000?api_key=abc"])
def test_a_url_with_a_key_is_refused_before_it_is_kept(tmp_path: Path, url: str) -> None:
    vllm = {"mode": "server", "url": url}
    recipe = micro_recipe(tmp_path, {"rollout": {"engine": "vllm", "vllm": vllm}})
    with pytest.raises(UserError, match="must hold no name, password or key") as error:
        load_recipe(recipe)
    assert "word" not in str(error.value).replace("password", "")
    assert "abc" not in str(error.value)
