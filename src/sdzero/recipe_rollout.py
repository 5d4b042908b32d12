"""Which engine samples, and how it is set up: the part `rollout` of a recipe. Imports no torch."""

import ipaddress
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sdzero.recipe_base import Settings

SERVER_KEYS = ("weights_folder", "startup_seconds", "request_seconds")
"""What only a server has."""

OWN_SERVER_KEYS = (
    "tensor_parallel_size",
    "data_parallel_size",
    "gpu_memory_utilization",
    "kv_cache_gigabytes",
    "max_model_len",
    "enforce_eager",
    "sleep",
    "startup_seconds",
)
"""What a server that the user started has settled by itself."""


class VllmSettings(Settings):
    """How vLLM is run, with `rollout.engine: vllm`.

    `mode: colocated` runs it in this process; `mode: server` starts its server on this machine's loopback
    for the time of the run, or, with `url`, uses one that you started. `url` must be on the loopback
    unless `allow_remote` is set: prompts and weights go there unencrypted. Weights go to a server by way
    of `weights_folder`, which both must see (default: in the run's folder).

    `dtype` is the model's if it is not given; with `url` it says what that server computes in. Memory of the
    key-value cache: `gpu_memory_utilization` is vLLM's share of the device, weights included;
    `kv_cache_gigabytes` sets the cache itself. `sleep` gives the memory back while no responses are asked
    for; the CPU build cannot. After each push of weights the log-probs of a few fixed sequences are
    compared; `probe_tolerance` is the largest difference that passes
    (default: by dtype, see docs/rollouts.md).
    """

    mode: Literal["colocated", "server"] = "colocated"
    url: str | None = None
    allow_remote: bool = False
    weights_folder: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tensor_parallel_size: int = Field(default=1, ge=1)
    data_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    kv_cache_gigabytes: float | None = Field(default=None, gt=0)
    max_model_len: int | None = Field(default=None, ge=2)
    enforce_eager: bool = False
    sleep: bool = False
    probe_tolerance: float | None = Field(default=None, gt=0)
    startup_seconds: float = Field(default=900.0, gt=0)
    request_seconds: float = Field(default=3600.0, gt=0)

    @model_validator(mode="after")
    def _keys_go_with_mode(self) -> Self:
        if self.url is not None and self.mode != "server":
            raise ValueError("`url` names a server: set mode to server")
        if self.url is None and self.allow_remote:
            raise ValueError("`allow_remote` goes with `url`")
        fields = type(self).model_fields
        idle = [key for key in SERVER_KEYS if getattr(self, key) != fields[key].default]
        if self.mode == "colocated" and idle:
            raise ValueError(f"`{idle[0]}` goes with mode: server")
        if self.mode == "colocated" and self.data_parallel_size > 1:
            raise ValueError("data_parallel_size above 1 needs mode=server: one process holds one replica")
        if self.gpu_memory_utilization is not None and self.kv_cache_gigabytes is not None:
            raise ValueError("set gpu_memory_utilization or kv_cache_gigabytes, not both")
        if self.url is not None:
            self._check_url(self.url)
        return self

    def _check_url(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "`url` must hold no name, password or key: the recipe is kept in the run's folder and goes"
                " out with exported models"
            )
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"`url` must look like http://127.0.0.1:8000, not {url}")
        if not self.allow_remote and not is_loopback(parts.hostname):
            raise ValueError(
                f"`url` leads off this machine ({parts.hostname}): prompts and weights would go there"
                " unencrypted. Set allow_remote to true if that is meant"
            )
        settled = [
            key for key in OWN_SERVER_KEYS if getattr(self, key) != type(self).model_fields[key].default
        ]
        if settled:
            raise ValueError(f"a server named by `url` was started with its own `{settled[0]}`: leave it out")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class RolloutSettings(Settings):
    """The engine that samples. `batch_size` is how many responses it samples at one time.

    `transformers` samples with the model that is trained, in this process; `vllm` is sent its weights.
    `cuda_graphs` compiles the decoding step of `transformers` for a GPU (not measured yet; models with full
    attention).
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    batch_size: int = Field(default=512, ge=1)
    cuda_graphs: bool = False
    vllm: VllmSettings = VllmSettings()

    @model_validator(mode="after")
    def _vllm_goes_with_engine(self) -> Self:
        if self.engine != "vllm" and self.vllm != VllmSettings():
            raise ValueError("`vllm` goes with engine: vllm")
        if self.engine == "vllm" and self.cuda_graphs:
            raise ValueError("`cuda_graphs` goes with engine: transformers; vLLM has its own")
        return self
