"""Programs that run inside the sandbox: the host of a program's functions, the judge that calls them.

They are copied into the sandbox as files and use the standard library alone; nothing outside imports them
but tests.
"""
