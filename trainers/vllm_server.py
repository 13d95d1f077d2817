"""Completions drawn by a vLLM server on another device or machine, which gets the weights over vLLM's own weight-transfer interface.

The server is vLLM's: `vllm serve CHECKPOINT` with the options that `START` names. Requests go over HTTP; weights over NCCL from a CUDA
device, and over gloo (`vllm_gloo`) from a CPU. Every wait has a limit. It must not know rewards or losses.
"""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from mr1_bench import images
from mr1_bench.errors import UserError
from mr1_bench.trainers import vllm_rollout
from mr1_bench.trainers.vllm_plugin import BACKEND, register
from mr1_bench.vllm_setup import limited

if TYPE_CHECKING:
    from torch import Tensor

    from mr1_bench.trainers.batches import Part
    from mr1_bench.trainers.config import GRPOConfig
    from mr1_bench.trainers.items import Item
    from mr1_bench.trainers.models import Loaded

START = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve CHECKPOINT --weight-transfer-config \'{{"backend":"{backend}"}}\' '
    "--logprobs-mode processed_logprobs --generation-config vllm --trust-request-mm-kwargs --host ADDRESS"
)
"""How a server is started."""
_CONNECT_S, _PUSH_LIMIT_S, _DRAW_LIMIT_S = 10.0, 300.0, 900.0


class Server:
    """A vLLM server."""

    def __init__(self, loaded: Loaded, config: GRPOConfig) -> None:
        """Connect, and join the server's workers for the transfer of weights.

        Raises:
            UserError: there is no such server, or it was started without what training needs.
        """
        self._loaded, self._config, self._url = loaded, config, config.vllm_url.rstrip("/")
        self._weights: Mapping[str, Tensor] = {}
        self._backend = "nccl" if loaded.device.type == "cuda" else BACKEND
        served = self._get("/v1/models", lambda answer: answer["data"][0])
        self._model = served["id"]
        needed, room = vllm_rollout.longest(loaded, config), served.get("max_model_len")
        if room is not None and room < needed:
            raise UserError(
                f"the vLLM server at {self._url} takes {room} tokens; training asks for up to {needed}: start it with "
                f"--max-model-len {needed}"
            )
        self._transfer = self._join(self._get("/get_world_size", lambda answer: int(answer["world_size"])))
        self._recover()

    def _join(self, workers: int) -> Any:
        with limited(
            f"joining the workers of the vLLM server at {self._url} (start it as: {START.format(backend=self._backend)})", _PUSH_LIMIT_S
        ):
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

            if self._backend == "nccl":
                from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo as InitInfo
            else:
                from mr1_bench.trainers.vllm_gloo import GlooTrainerInitInfo as InitInfo

                register()
            address, port = _reachable_address(self._url)
            information = InitInfo(master_address=address, master_port=port, world_size=1 + workers, rank=0)
            return WeightTransferTrainerFactory.trainer_init(information, client=_Control(self._post), source=self._source())

    def _recover(self) -> None:
        """End a transfer that a trainer before this one did not: the server would take no other, or keep half-loaded layers."""
        with contextlib.suppress(UserError):  # there is none
            self._post("/finish_weight_update")
        self._post("/start_weight_update")
        self._post("/finish_weight_update")

    def _source(self) -> Any:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

        server = self

        class Source(WeightSource):  # type: ignore[misc]
            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in server._weights.items()]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                return iter(server._weights.items())

        return Source()

    def push(self, weights: Mapping[str, Tensor]) -> None:
        """Send the weights, and empty the caches of what was computed with the old ones."""
        self._get("/v1/models", lambda answer: answer["data"])  # a transfer to a server that is gone cannot be ended in good order
        self._weights = weights
        with limited(f"sending weights to the vLLM server at {self._url}", _PUSH_LIMIT_S):
            self._transfer.send_weights()
        self._weights = {}
        if not self._post("/reset_prefix_cache").get("success"):
            raise UserError(f"the vLLM server at {self._url} could not empty its prefix cache; does somebody else use it?")
        self._post("/reset_encoder_cache")

    def sample(self, parts: Sequence[Part], step: int) -> list[vllm_rollout.Drawn]:
        """Draw; all prompts are asked at once."""
        items = [item for part in parts for item in part.items]
        with ThreadPoolExecutor(len(items)) as askers:
            groups = list(askers.map(self._ask, items, vllm_rollout.seeds(self._config, step, parts)))
        return vllm_rollout.collect(self._loaded, parts, groups)

    def _ask(self, item: Item, seed: int) -> list[vllm_rollout.Answer]:
        image = "data:image/png;base64," + base64.b64encode(images.encode_png(item.image.convert("RGB"))).decode()
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": item.prompt}]
        request = vllm_rollout.sampling(self._loaded, self._config) | {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "seed": seed,
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            "mm_processor_kwargs": vllm_rollout.image_sizes(self._loaded, self._config) or None,
        }
        answer = self._post("/v1/chat/completions", request, _DRAW_LIMIT_S)
        return [
            vllm_rollout.Answer(answer["prompt_token_ids"], one["token_ids"], [entry["logprob"] for entry in one["logprobs"]["content"]])
            for one in sorted(answer["choices"], key=lambda one: one["index"])
        ]

    def close(self) -> None:
        """Leave the server; it runs on."""
        with contextlib.suppress(UserError):  # it may be gone
            self._post("/shutdown_weight_transfer_engine", None, _CONNECT_S)
        self._transfer.shutdown()

    def _get(self, path: str, read: Callable[[Any], Any]) -> Any:
        answer = self._request("GET", path, None, _CONNECT_S)
        try:
            return read(answer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"--vllm-url {self._url}: what answers {path} there is no vLLM server ({type(error).__name__})") from error

    def _post(self, path: str, body: Any = None, limit: float = _PUSH_LIMIT_S) -> Any:
        return self._request("POST", path, body, limit)

    def _request(self, method: str, path: str, body: Any, limit: float) -> Any:
        import requests

        try:
            response = requests.request(method, self._url + path, json=body, timeout=(_CONNECT_S, limit))
        except requests.RequestException as error:
            raise UserError(
                f"no vLLM server answers at {self._url} ({type(error).__name__}); what was learned is kept. Start it "
                f"({START.format(backend=self._backend)}) and run the same command again"
            ) from error
        if response.status_code == 404:
            raise UserError(f"the vLLM server at {self._url} has no {path}; start it as: {START.format(backend=self._backend)}")
        if not response.ok:
            raise UserError(
                f"the vLLM server at {self._url} answers {path} with {response.status_code}: {' '.join(response.text.split())[:300]}"
            )
        try:
            return response.json() if response.content else {}
        except ValueError as error:
            raise UserError(f"--vllm-url {self._url}: what answers {path} there is no vLLM server; it sends no JSON") from error


class _Control:
    """The calls that vLLM's transfer of weights makes to the server; errors come back in the server's own words."""

    def __init__(self, post: Callable[..., Any]) -> None:
        self._post = post

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", {"weight_version": weight_version} if weight_version else None)


def _reachable_address(url: str) -> tuple[str, int]:
    """This machine's address as the server sees it, and a free port."""
    parsed = urlparse(url)
    with socket.create_connection((parsed.hostname or "", parsed.port or 80), timeout=_CONNECT_S) as connection:
        address = connection.getsockname()[0]
    with socket.socket() as listening:
        listening.bind((address, 0))
        return address, listening.getsockname()[1]
