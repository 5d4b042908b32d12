"""The tables of docs/speed.md, from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from entries import Entry, Found

WHOLES = ("step", "rollout", "update")
"""What a step's seconds also have beside its parts."""
UNITS = {"T": "tokens of a response", "V": "vocabulary", "B": "questions"}


def blocks(found: Found) -> dict[str, str]:
    """The page's blocks by name."""
    details = found.details
    return {
        "speed": ratios(found.entries),
        "speed-seconds": seconds(details),
        "speed-split": splits(details),
        "speed-memory": memory(details["memory"]),
        "speed-growth": growth(details["growth"], details["processes"]),
    }


def ratios(entries: Sequence[Entry]) -> str:
    """Every figure with its target, and whether that is reached."""
    lines = ["| figure | ratio | better | target | reached |", "|---|---|---|---|---|"]
    for entry in entries:
        bound = "at least" if entry.better == "higher" else "at most"
        target = "" if entry.target is None else f"{bound} {entry.target:g}"
        reached = {None: "", True: "yes", False: "**no**"}[entry.reached]
        lines.append(f"| `{entry.name}` | {entry.ratio:.2f} | {entry.better} | {target} | {reached} |")
    machine = entries[0].machine
    shown = (
        f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}, TRL {machine['trl']}"
    )
    return "\n".join([*lines, "", f"Measured on {shown}."])


def seconds(details: Mapping[str, Any]) -> str:
    """Seconds behind the ratios of updates and steps."""
    lines = ["| part | who | rollout | update | step |", "|---|---|---|---|---|"]
    for name, part in details.items():
        if name.startswith("update-"):
            lines += [f"| `{name}` | {who} | | {own:.2f} | |" for who, own in part["seconds"].items()]
        elif name.startswith("apart-"):
            lines += [
                f"| `{name}` | {who} | | {own['update']:.2f} | {own['step']:.2f} |"
                for who, own in part["seconds"].items()
            ]
        elif name.startswith("step-"):
            lines += [_step_row(name, who, own) for who, own in part["seconds"].items() if "step" in own]
    return "\n".join(lines)


def _step_row(name: str, who: str, own: Mapping[str, float]) -> str:
    return f"| `{name}` | {who} | {own['rollout']:.2f} | {own['update']:.2f} | {own['step']:.2f} |"


def splits(details: Mapping[str, Any]) -> str:
    """Seconds, and shares, of each part of our steps."""
    steps = {name: part["seconds"]["ours"] for name, part in details.items() if name.startswith("step-")}
    lines = ["| | " + " | ".join(f"`{name}`" for name in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for part in (name for name in next(iter(steps.values())) if name not in WHOLES):
        cells = [f"{own[part]:.3f} s ({100 * own[part] / own['step']:.0f}%)" for own in steps.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory(found: Mapping[str, Any]) -> str:
    """Gigabytes of the loss and of the step."""
    head = f"V = 152K, one response of {found['tokens']} tokens"
    if found["tokens"] < found["wanted"]:
        head += f" (the dense path with {found['wanted']} did not fit this machine's free memory)"
    lines = [f"{head}:", "", "| | ours | dense | TRL |", "|---|---|---|---|"]
    for what, own in found["bytes"].items():
        cells = [f"{own[who] / 2**30:.2f} GB" for who in ("ours", "dense", "trl")]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def growth(found: Mapping[str, Any], processes: Mapping[str, Any]) -> str:
    """Seconds at each size."""
    lines = []
    for axis, rows in found.items():
        lines.append(f"| {UNITS[axis]} | " + " | ".join(f"{row['size']:,}" for row in rows) + " |")
        if len(lines) == 1:
            lines.append("|---" * (len(rows) + 1) + "|")
        lines.append("| seconds | " + " | ".join(f"{row['seconds']:.2f}" for row in rows) + " |")
    took = ", ".join(f"{row['seconds']:.2f} s with {row['size']}" for row in processes["sizes"])
    line = f"Processes of one thread each, one batch: {took}."
    if not processes["same weights"]:
        line += " The two did not end with the same weights, so there is no ratio."
    return "\n".join([*lines, "", line])
