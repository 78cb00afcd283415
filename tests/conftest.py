"""What every test runs under: an 8-device CPU mesh, strict ranks, checked shapes, one compile cache, no network."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import socket
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook  # it loads jax only when asked for an array type

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Set before the first import of jax, and in the environment, so that the processes that tests start inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Eight devices share a few cores: a collective may wait long for the last of them, and XLA ends a process that waits too long.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600 "
  "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Shapes in signatures are checked at trace time; the hook must stand before the first import of these packages.
install_import_hook(["maxagent.models", "maxagent.objectives", "maxagent_kernels"], "beartype.beartype")

# The first example of a property may compile, and other tests share the cores: time is no property of the code here.
hypothesis.settings.register_profile(
  "maxagent", parent=hypothesis.settings.get_profile("ci" if os.environ.get("CI") else "default"), deadline=None
)
hypothesis.settings.load_profile("maxagent")


class NetworkBlockedError(RuntimeError):
  """A test tried to reach another machine."""


def _is_here(address: object) -> bool:
  """Whether a socket address is a path, or names this machine."""
  if not isinstance(address, tuple):
    return True
  host = address[0]
  if host in ("", "localhost", None):
    return True
  try:
    return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
  except ValueError:
    return host == socket.gethostname()


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
  def connect(self: socket.socket, address: object) -> object:
    if not _is_here(address):
      raise NetworkBlockedError(f"a test connects to {address!r}; tests reach nothing but this machine.")
    return method(self, address)

  return connect


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Any:
  """Python's sockets connect to this machine only."""
  with pytest.MonkeyPatch.context() as patch:
    for name in ("connect", "connect_ex"):
      patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
    yield


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
  """A port of this machine on which nothing listens."""

  def find() -> int:
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      return int(probe.getsockname()[1])

  return find


@pytest.fixture(scope="session")
def upload(free_port: Callable[[], int]) -> Any:
  """Puts bytes under a name into gs://bucket of an emulator on this machine, to which the environment points; the address."""
  import urllib.request

  from gcp_storage_emulator.server import create_server

  host = f"http://localhost:{free_port()}"
  server = create_server("localhost", int(host.rpartition(":")[2]), in_memory=True, default_bucket="bucket")
  server.start()

  def put(name: str, content: bytes) -> str:
    address = f"{host}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
    urllib.request.urlopen(urllib.request.Request(address, content, method="POST")).close()
    return f"gs://bucket/{name}"

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("STORAGE_EMULATOR_HOST", host)
    patch.setenv("NO_GCE_CHECK", "true")  # looking for credentials would ask a machine that is not there
    yield put
  server.stop()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder as `maxagent data` fills it: tokenizer.model (512 ids), web and trace, 8 streams each."""
  import abc

  from maxagent.data.build import BuildOptions, build
  from maxagent.environments.generate import generate
  from maxagent.tokenizer import train

  folder = tmp_path_factory.mktemp("small_data")
  modules = sorted(pathlib.Path(abc.__file__).parent.glob("[a-c]*.py"))
  texts = [module.read_text(encoding="utf-8", errors="replace")[:20_000] for module in modules]
  (folder / "text").mkdir()
  for module, text in zip(modules, texts, strict=True):
    (folder / "text" / f"{module.stem}.txt").write_text(text, encoding="utf-8")
  generate(folder / "episodes", episodes=300, seed=0)
  tokenizer = train(texts, folder / "tokenizer.model", vocab_size=512)
  options = BuildOptions(streams=8, heldout_per_mille=100)
  build("web", folder / "web", [folder / "text"], tokenizer=tokenizer, options=options)
  build("trace", folder / "trace", [folder / "episodes"], tokenizer=tokenizer, options=options)
  return folder
