# SPDX-License-Identifier: Apache-2.0
"""Rivals of `muntin serve`, each with the same predictor, written as their own guides do.

    python benchmarks/serve_rivals.py litserve|fastapi RUN|FILE PORT BATCH

Both answer POST /predict with {"image": base64} by a list of one result, and GET /health.
"""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

from PIL import Image

from muntin.prediction.from_run import load

try:
    import litserve
except ModuleNotFoundError:  # it may be in another environment
    litserve = None


def read(text: str) -> Image.Image:
    """Decode an image."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def run_fastapi(source: str, port: int, batch: int) -> None:
    """A plain handler, which FastAPI runs in its pool of threads, one image at a time."""
    import uvicorn
    from fastapi import Body, FastAPI

    app, predictor = FastAPI(), load(source)

    @app.post("/predict")
    def predict(image: str = Body(embed=True)) -> list[dict[str, Any]]:
        return [result.to_dict() for result in predictor([read(image)])]

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Api(litserve.LitAPI if litserve else object):  # type: ignore[misc]
    """LitServe with batching: its worker process makes an object of it."""

    source = ""

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self.predictor = load(self.source)

    def decode_request(self, request: dict[str, str]) -> Image.Image:
        """Decode an image."""
        return read(request["image"])

    def batch(self, inputs: list[Image.Image]) -> list[Image.Image]:
        """Keep images as they are: they differ in size."""
        return inputs

    def predict(self, images: list[Image.Image]) -> list[Any]:
        """Predict a batch, or one image."""
        return self.predictor(images)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Give each its own."""
        return output

    def encode_response(self, output: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (a result)
        """Answer as the others do."""
        return [output.to_dict()]


def run_litserve(source: str, port: int, batch: int) -> None:
    """LitServe with one worker process."""
    api = Api(max_batch_size=batch, batch_timeout=0.005)
    api.source = source
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=port, generate_client_file=False, log_level="error", num_api_servers=1)


if __name__ == "__main__":
    kind, source, port, batch = sys.argv[1:]
    {"fastapi": run_fastapi, "litserve": run_litserve}[kind](source, int(port), int(batch))
