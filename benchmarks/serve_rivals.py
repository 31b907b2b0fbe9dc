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


def run_litserve(source: str, port: int, batch: int) -> None:
    """LitServe with one worker process and its batching."""
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.predictor = load(source)

        def decode_request(self, request: dict[str, str]) -> Image.Image:
            return read(request["image"])

        def batch(self, inputs: list[Image.Image]) -> list[Image.Image]:
            return inputs

        def predict(self, images: list[Image.Image]) -> list[Any]:
            return self.predictor(images)

        def unbatch(self, output: list[Any]) -> list[Any]:
            return output

        def encode_response(self, output: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (a result)
            return [output.to_dict()]

    api = Api(max_batch_size=batch, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=port, generate_client_file=False, log_level="error", num_api_servers=1)


if __name__ == "__main__":
    kind, source, port, batch = sys.argv[1:]
    {"fastapi": run_fastapi, "litserve": run_litserve}[kind](source, int(port), int(batch))
