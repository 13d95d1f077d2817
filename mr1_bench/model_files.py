"""Which folder a model name means: a path, the embedded tiny model, or the hub's copy; and whether what lies there can be a checkpoint.

It must not know what is done with the model, and does not import torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mr1_bench.errors import UserError

EMBEDDED = "tiny"
"""The name of the model that is shipped with the package."""


def embedded_model() -> Path:
    """Return the folder of the embedded tiny model.

    Raises:
        UserError: the installation is incomplete.
    """
    found = find_spec("mr1_bench.trainers")
    folder = Path(next(iter(found.submodule_search_locations or ()))) / "tiny_model" if found else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError("the embedded tiny model is missing: the installation is incomplete; reinstall mr1-bench")
    return folder


def resolve_model(name: str) -> Path:
    """Return the folder of a checkpoint: itself, the embedded one for `tiny`, or the hub's snapshot.

    Raises:
        UserError: there is no such folder, and the hub has none or cannot be reached; or it is no model folder, or its weights are pickled
            or damaged.
    """
    folder = embedded_model() if name == EMBEDDED and not Path(name).exists() else Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise UserError(f"--model {name}: no such folder")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise UserError(f"--model {name}: no such folder, and the hub gave none ({type(error).__name__})") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {name}: {folder} has no config.json, so it is no checkpoint; name the folder that save_pretrained wrote")
    _check_weights(folder)
    return folder.resolve()


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy"):
                continue
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or cut off ({error}); copy or save the checkpoint again") from None
