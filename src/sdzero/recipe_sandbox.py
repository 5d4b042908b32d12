"""How programs that a model wrote are run: the sandbox's part of a recipe. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sdzero.recipe_base import Settings

WALL_SECONDS = 10.0
CPU_SECONDS = 10.0
MEMORY_MEGABYTES = 1024
PROCESSES = 64
OPEN_FILES = 256
FILE_MEGABYTES = 16
DISK_MEGABYTES = 64
OUTPUT_MEGABYTES = 16
COMPILE_SECONDS = 30.0
COMPILE_MEMORY_MEGABYTES = 2048


class SandboxSettings(Settings):
    """The sandbox of the verifier `code`, and the limits of one test of one program.

    `backend` is `bubblewrap`, `docker` or `podman` (both need `image`), or `unsafe`: no isolation at all,
    with your own rights, for tests of sdzero itself. Limits: `wall_seconds` and `cpu_seconds` (a question's
    own time limit, times `time_factor`, takes the place of both); `memory_megabytes` in total where the
    machine has control groups, else for each process; `processes` counts threads; `file_megabytes` is the
    largest file, `disk_megabytes` the private folder, `output_megabytes` standard output and error together.
    Compiling has limits of its own. `python` is the interpreter (default: the one that runs sdzero, without
    its packages); `packages` a folder whose packages programs may import. `compiler` and `compiler_options`
    are for C++. `cache`: a program that was graded on the same tests is not run again.
    """

    backend: Literal["bubblewrap", "docker", "podman", "unsafe"] = "bubblewrap"
    image: str | None = None
    wall_seconds: float = Field(default=WALL_SECONDS, gt=0)
    cpu_seconds: float = Field(default=CPU_SECONDS, gt=0)
    time_factor: float = Field(default=1.0, gt=0)
    memory_megabytes: int = Field(default=MEMORY_MEGABYTES, ge=32)
    processes: int = Field(default=PROCESSES, ge=1)
    open_files: int = Field(default=OPEN_FILES, ge=16)
    file_megabytes: int = Field(default=FILE_MEGABYTES, ge=1)
    disk_megabytes: int = Field(default=DISK_MEGABYTES, ge=1)
    output_megabytes: int = Field(default=OUTPUT_MEGABYTES, ge=1)
    compile_seconds: float = Field(default=COMPILE_SECONDS, gt=0)
    compile_memory_megabytes: int = Field(default=COMPILE_MEMORY_MEGABYTES, ge=256)
    python: str | None = None
    packages: str | None = None
    compiler: str = "g++"
    compiler_options: list[str] = Field(default=["-std=c++20", "-O2"])
    cache: bool = True

    @model_validator(mode="after")
    def _image_goes_with_containers(self) -> Self:
        in_container = self.backend in ("docker", "podman")
        if in_container and not self.image:
            raise ValueError(
                f"backend `{self.backend}` needs `image`, an image with python3 (and g++ for C++)"
            )
        if self.image and not in_container:
            raise ValueError(f"`image` goes with docker and podman, not with `{self.backend}`")
        if in_container and (self.python or self.packages):
            raise ValueError("`python` and `packages` are the image's own with docker and podman")
        return self
