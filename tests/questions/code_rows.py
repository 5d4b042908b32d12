"""Rows of code data sets, one in each schema."""

import base64
import json
import pickle
import zlib
from typing import Any

OFFICIAL: dict[str, Any] = {
    "id": "1/A",
    "title": "Doubling",
    "description": "Double the number $n$.",
    "input_format": "One integer $n$.\r\nNothing else.",
    "output_format": "Print $2n$.",
    "interaction_format": None,
    "note": "The first example is easy.",
    "examples": [{"input": "1", "output": "2"}, {"input": "5\n", "output": "10\n"}],
    "time_limit": 1.5,
    "memory_limit": 256.0,
    "official_tests": [{"input": f"{number}\n", "output": f"{2 * number}\n"} for number in range(20)],
    "official_tests_complete": True,
    "input_mode": "stdio",
    "generated_checker": None,
    "executable": True,
    "generated_tests": 12,
}
"""A row with the columns of open-r1/codeforces."""

COTS = {
    **{name: OFFICIAL[name] for name in ("id", "title", "description", "input_format", "output_format")},
    "examples": [{"input": "1", "output": "2"}],
    "time_limit": 1.0,
    "memory_limit": 256,
    "generation": "<think>double it</think>\n```cpp\nint main() {}\n```",
    "public_tests": {"input": ["1"], "output": ["2"]},
    "private_tests": {"input": ["2", "3"], "output": ["4", "6"]},
    "generated_tests": {"input": ["4"], "output": ["8"]},
}
"""A row with the columns of codeforces-cots, subset solutions_py_decontaminated."""


def cases(testtype: str, *pairs: tuple[str, str]) -> str:
    return json.dumps([{"input": a, "output": b, "testtype": testtype} for a, b in pairs])


def packed(pickled: bytes) -> str:
    return base64.b64encode(zlib.compress(pickled)).decode()


STDIN: dict[str, Any] = {
    "question_title": "Doubling",
    "question_content": "Double the number.\n\nSample Input 1\n\n1\n",
    "question_id": "abc001_a",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": cases("stdin", ("1\n", "2\n")),
    "private_test_cases": packed(pickle.dumps(cases("stdin", ("2\n", "4\n"), ("3\n", "6\n")))),
    "metadata": "{}",
}
FUNCTIONAL: dict[str, Any] = {
    **STDIN,
    "question_id": "2727",
    "difficulty": "medium",
    "starter_code": "class Solution:\n    def countPairs(self, nums: List[int], name: str) -> int:\n        ",
    "public_test_cases": cases("functional", ('[1, 2]\n"a\u2028b"', "3")),
    "private_test_cases": cases("functional", ('[]\n""\n', "null"), ('[[1.5]]\n"x"', "[true]")),
    "metadata": '{"func_name": "countPairs"}',
}


HUMANEVAL: dict[str, Any] = {
    "task_id": "HumanEval/999",
    "prompt": (
        "import math\n\n\n"
        "def shift(text: str):\n    return ''.join(reversed(text))\n\n\n"
        '@staticmethod\ndef unshift(text: str):\n    """\n    Undo `shift`.\n    """\n'
    ),
    "canonical_solution": "    return text[::-1]\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(shift('abc')) == 'abc'\n\n",
    "entry_point": "unshift",
}
MBPP: dict[str, Any] = {
    "task_id": 126,
    "text": "Write a python function to find the sum of common divisors of two numbers.",
    "code": "def sum(a,b):\r\n    return a + b - 19",
    "test_list": ["assert sum(10,15) == 6", "assert sum(len('a' * 20), 12) == 13 "],
    "test_setup_code": "",
    "challenge_test_list": [],
}
SANITIZED: dict[str, Any] = {
    "source_file": "notebook",
    "task_id": 82,
    "prompt": "Write a function to find the volume of a sphere.",
    "code": "import math\ndef volume(r):\n    return 4 / 3 * math.pi * r ** 3",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(volume(10), 4188.79, rel_tol=0.001)", "assert volume(0) == 0"],
}
