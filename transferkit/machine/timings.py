"""What was measured on this machine for a backbone, remembered beside the features: precision, gain of compiling."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.core.errors import StorageError
from transferkit.core.files import write_json

__all__ = ["Memory"]


class Memory:
    """Small facts by key, a JSON file each. Forgetting one costs a measurement, so nothing here is an error.

    Args:
        root: The directory of the feature store.
        key: What the facts depend on: backbone, layers, device, library versions.
    """

    def __init__(self, root: Path, key: Mapping[str, Any]) -> None:
        text = json.dumps(dict(key), sort_keys=True)
        self.path = root / "measured" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        self.key = dict(key)

    def recall(self) -> dict[str, Any]:
        """Return the facts; empty where none are known or the file is damaged."""
        try:
            values = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) and values.get("key") == self.key else {}

    def remember(self, **facts: Any) -> None:
        """Add facts. On a store that cannot be written they are forgotten."""
        with contextlib.suppress(StorageError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self.recall(), **facts, "key": self.key})
