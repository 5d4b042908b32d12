"""The one error that is meant for people: what was wrong, where, and what to do about it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault in the user's input or surroundings; the command prints it without a traceback.

    `what` says what is wrong, `where` names the file, key or line, `todo` says how to mend it.
    """

    def __init__(self, what: str, where: str | None = None, todo: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  to do: {self.todo}")
        return "\n".join(lines)


def unknown_name(what: str, name: str, known: Iterable[str], where: str | None = None) -> UserError:
    """The error for a name that is none of the known ones; it names the nearest, or all."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    todo = f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(known)}"
    return UserError(f"there is no {what} `{name}`", where, todo)


class CollapseError(UserError):
    """Training collapsed and was stopped; the last good checkpoint is kept."""
