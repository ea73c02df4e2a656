"""A process that has never seen a framework reads checkpoints; does it know one afterwards?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Self

FRAMEWORKS = frozenset(
    {
        *("torch", "tensorflow", "keras", "tf_keras", "jax", "jaxlib", "flax", "orbax", "sklearn", "joblib", "skops"),
        *("onnx", "onnxruntime", "gguf", "xgboost", "lightgbm", "safetensors", "msgpack", "transformers", "accelerate"),
        *("peft", "lightning", "pytorch_lightning", "deepspeed", "megatron", "google.protobuf", "pandas"),
    }
)
_ROOT = Path(__file__).parents[2]
_READ = """
import json, sys
from monitor.read.reader import ReadError
from monitor.read.registry import open_path
frameworks = set(json.loads(sys.stdin.readline()))
for line in sys.stdin:
    try:
        with open_path(json.loads(line)) as opened:
            for spec in opened.checkpoint.tensors:
                for chunk in opened.checkpoint.chunks(spec):
                    pass
            answer = opened.format
    except ReadError as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([answer, sorted(frameworks & set(sys.modules))]), flush=True)
"""


class CleanReader:
    """A process that reads whatever it is told to, and tells which frameworks it has imported so far."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> tuple[str, list[str]]:
        """Return the format of the checkpoint, or what was wrong, and the frameworks imported by now."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _READ],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._tell(sorted(FRAMEWORKS))
        self._tell(str(path))
        assert self._process.stdout is not None
        answer, imported = json.loads(self._process.stdout.readline())
        return answer, imported

    def _tell(self, document: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            self._process.communicate()
