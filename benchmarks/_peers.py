"""Other serving programs around the release's SavedModel, each in an environment of its own, installed on request."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MODEL = """
import base64, sys
import numpy as np, tensorflow as tf

infer = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
name = next(iter(infer.structured_input_signature[1]))

def answers(instances):
    clips = [base64.b64decode(i["audio_bytes"]["b64"]) for i in instances]
    found = infer(**{name: tf.constant(clips)})
    found = {key: value.numpy() for key, value in found.items() if value.dtype != tf.string}
    return [{key: value[i].tolist() for key, value in found.items()} for i in range(len(clips))]
"""
PEERS = {
    "litserve": (
        "LitServe, batching",
        ["litserve"],
        """
import litserve

class Api(litserve.LitAPI):
    def setup(self, device):
        pass
    def decode_request(self, request):
        return request["instances"][0]
    def batch(self, inputs):
        return inputs
    def predict(self, inputs):
        return answers(inputs)
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return {"predictions": [output]}

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
""",
    ),
    "bentoml": (
        "BentoML",
        ["bentoml"],
        """
import bentoml, os

@bentoml.service(workers=os.cpu_count())
class Service:
    @bentoml.api(route="/predict")
    def predict(self, instances: list[dict]) -> dict:
        return {"predictions": answers(instances)}

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    os.environ["BENCHMARK_RELEASE"] = sys.argv[1]
    os.execvp(sys.executable, [sys.executable, "-m", "bentoml", "serve", "bentoml_peer:Service", "--port", sys.argv[2]])
""",
    ),
    "kserve": (
        "KServe's server",
        ["kserve"],
        """
import kserve

class Model(kserve.Model):
    def __init__(self):
        super().__init__("m")
        self.ready = True
    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": answers(payload["instances"])}

if __name__ == "__main__":
    kserve.ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1).start([Model()])
""",
    ),
}
"""Name, packages beside TensorFlow, and program of each."""


def installed(name: str, release: Path) -> list[str] | None:
    """The command of a peer of `PEERS`, put into an environment of its own first; None where it cannot be had."""
    title, packages, program = PEERS[name]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twophase-benchmarks" / name
    python = home / "bin" / "python"
    if not (home / "ready").is_file():
        uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
        for command in (
            [uv or "uv", "venv", "--quiet", "--clear", "--python", "3.11", str(home)],
            [uv or "uv", "pip", "install", "--quiet", "--python", str(python), "tensorflow-cpu>=2.20", *packages],
        ):
            try:
                subprocess.run(command, capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
                print(f"{title} cannot be installed: left out ({reason})", file=sys.stderr)
                return None
        (home / "ready").touch()
    script = home / f"{name}_peer.py"
    model = MODEL.replace("sys.argv[1]", 'os.environ.get("BENCHMARK_RELEASE") or sys.argv[1]')
    script.write_text("import os" + model + program)
    return [str(python), str(script), str(release), "PORT"]
