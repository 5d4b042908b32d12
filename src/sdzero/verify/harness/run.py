"""Runs a program as the interpreter itself would; runs in the sandbox, as the program's own process.

The interpreter is started without `site`, which takes a fifth of its start; what programs use of it is given
to them here. Arguments: the program's file.
"""


def main() -> None:
    """Run the file as the main module. What it raises ends the process as usual."""
    import builtins
    import sys

    del sys.argv[0]
    file = sys.argv[0]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    namespace = sys.modules["__main__"].__dict__
    del namespace["main"]
    namespace |= {"__file__": file, "__doc__": None}
    with open(file, "rb") as source:
        text = source.read()
    try:
        code = compile(text, file, "exec", dont_inherit=True)
    except SyntaxError as fault:
        sys.excepthook(type(fault), fault.with_traceback(None), None)  # it never ran: no traceback
        sys.exit(1)
    exec(code, namespace)


if __name__ == "__main__":
    main()
