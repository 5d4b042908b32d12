"""The table of the plan's memory: what is off stands out, and is counted."""

import plan_memory


def test_a_ratio_that_is_off_is_in_bold() -> None:
    case = {"name": "a", "stage": "srt", "family": "qwen3", "micro": 8, "tokens": 128, "lora": True}
    case |= {"checkpointing": False, "predicted": 80e6, "kept": 120e6}
    cases = [case | {"measured": 100e6, "ratio": 0.8}, case | {"measured": 82e6, "ratio": 80 / 82}]
    machine = {"processor": "p", "torch": "1", "transformers": "2"}
    page = plan_memory.table({"machine": machine, "cases": cases})
    assert "| `a` | srt | qwen3 | 8 | 128 | lora | 80 | 100 | **0.80** | 120 |" in page
    assert "| 0.98 |" in page
    assert "1 of 2 within 15%" in page


def test_cases_cover_what_is_turned() -> None:
    cases = plan_memory.CASES.values()
    assert {case.family for case in cases} == {"qwen3", "llama", "olmo3"}
    assert {case.stage for case in cases} == {"distill", "srt"}
    assert {case.micro for case in cases} == {1, 8}
    assert any(case.lora for case in cases)
    assert any(case.checkpointing for case in cases)
