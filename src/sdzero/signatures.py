"""Signatures of a file by the user's own SSH key: `ssh-keygen -Y sign`, `-Y verify` (OpenSSH 8.2 or newer).

The namespace keeps a signature for this purpose from standing for another. `allowed_signers` is a file of
lines `name key`, as `man ssh-keygen` has it under ALLOWED SIGNERS. Imports no torch.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sdzero.errors import UserError

NAMESPACE = "sdzero-provenance"
SECONDS = 120
"""How long a person may take for the key's passphrase."""


@dataclass(frozen=True)
class Verified:
    """Whether a signature holds, and whose it is or what is wrong."""

    held: bool
    detail: str


def require_key(key: Path) -> None:
    """Raise UserError without the key, and without ssh-keygen: before anything else is done."""
    if not key.is_file():
        raise UserError("there is no key here", str(key), "name a private SSH key in --sign-key")
    _program()


def sign(file: Path, key: Path) -> Path:
    """Sign a file; the signature is written beside it, as `FILE.sig`, in place of an older one, which stays
    if there is no new one.

    Raises UserError without ssh-keygen, without the key, if ssh-keygen refuses, and if nothing can be written
    there.
    """
    require_key(key)
    signature = file.with_name(f"{file.name}.sig")
    done = _keygen("sign", "-f", str(key), "-n", NAMESPACE, given=file.read_bytes())
    if done.returncode or not done.stdout:
        raise UserError(
            f"the record could not be signed: {_last_line(done.stderr)}",
            str(key),
            "name a private SSH key that ssh-keygen can use; one with a passphrase needs a terminal or agent"
            " (then name the public key)",
        )
    beside = signature.with_name(f".{signature.name}.partial")
    try:
        beside.write_text(done.stdout, encoding="ascii")
        os.replace(beside, signature)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"the signature cannot be written ({error.strerror})", str(signature), "check the permissions"
        ) from error
    return signature


def verify(file: Path, signature: Path, allowed_signers: Path) -> Verified:
    """Whether one of the allowed signers signed this very file.

    Raises UserError without ssh-keygen, and without the list.
    """
    if not allowed_signers.is_file():
        raise UserError(
            "there is no list of signers here",
            str(allowed_signers),
            "one line each: `name ssh-ed25519 AAAA...`",
        )
    who = _keygen("find-principals", "-s", str(signature), "-f", str(allowed_signers))
    name = who.stdout.split("\n")[0].split(",")[0].strip()
    if who.returncode or not name:
        return Verified(False, "it is signed by none of the allowed signers, or the signature is damaged")
    done = _keygen(
        *("verify", "-f", str(allowed_signers), "-I", name, "-n", NAMESPACE, "-s", str(signature)),
        given=file.read_bytes(),
    )
    if done.returncode:
        return Verified(
            False, f"it is not the signature of this record: {_last_line(done.stdout or done.stderr)}"
        )
    return Verified(True, f"signed by {name}")


def _program() -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UserError(
            "ssh-keygen is not installed, and signatures are made and checked with it",
            "--sign-key, --allowed-signers",
            "install OpenSSH's client (Debian, Ubuntu: apt-get install openssh-client)",
        )
    return program


def _keygen(action: str, *arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            [_program(), "-Y", action, *arguments], input=given, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            "ssh-keygen did not answer", "--sign-key", "unlock the key with ssh-agent first"
        ) from None
    out, errors = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, errors)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "ssh-keygen gave no reason"
