"""kill -9 at random moments of real training runs, again and again, until nothing can be left to chance.

    python experiments/chaos.py --kills=500 --processes=1,4 --seed=0 --workdir=runs/chaos

For every number of processes one run is left alone; it is the reference. Other runs of the same config are killed (one process
or all of them) and started again until they end. A kill waits for a phase of the run, which shows in the run's own files, and
strikes at a random moment of it:

    import   until the run holds its workdir          save   while a checkpoint is written beside the steps
    restore  until it says where it goes on           eval   while a step of an evaluation has no record yet
    compile  until it has claimed its workdir         end    after the last step: last save, ledger, report
    step     any other moment of training

After every kill each checkpoint must be whole. A run that went on must have begun at its newest checkpoint. A run that ended
must have one record for each step, equal to the reference's but for the clock (so the losses and the digest of all batches are
the same to the bit), and a last checkpoint whose every array has the reference's digest.

Where a kill shall hit the import, the processes are `maxagent train` commands. Elsewhere they are forked from a server that has
imported the same modules and nothing more, which makes a kill half as dear. Every process has XLA and its backend to itself.

WORKDIR/kills.jsonl keeps every kill and every verdict; the same command goes on where it stopped. Exits with 1 if anything
was violated; the workdirs of such runs stay. CPU; about 2 processor seconds a kill and process.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports jax

import xxhash

from maxagent.checkpoint import saved_steps, verify
from maxagent.checkpoint.restore import read_record
from maxagent.errors import ConfigError, MaxagentError
from maxagent.tracking.writers import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("import", "restore", "compile", "step", "save", "eval", "end")
IN_TRAINING = ("step", "save", "eval")
STEPS, SAVE_EVERY, EVAL_EVERY = 60, 5, 7  # 5 and 7 meet once, so that saves and evaluations can be told apart
DEVICES = 4  # of all processes together: every number of processes has the same mesh
CLOCK = ("seconds", "train/tokens_per_second")  # what two equal runs may differ in
POLL_SECONDS = 0.002
LIMIT_SECONDS = 600  # no start of these runs takes so long: it hangs
PATIENCE = f"--xla_cpu_collective_call_terminate_timeout_seconds={LIMIT_SECONDS}"
GRACE_SECONDS = 1.5  # survivors of a killed process live up to this much longer, as they would in a real job


class Violation(Exception):
  """The run broke a promise; the message says which."""


class Process(Protocol):
  """What is needed of a process, started or forked."""

  pid: int

  def poll(self) -> int | None:
    """Its exit code, once it has one."""

  def wait(self) -> Any:
    """Returns when it has ended."""


class Forked:
  """`maxagent ARGUMENTS...` in a process of the fork server."""

  def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    self._process = _SERVER.Process(target=_maxagent, args=(arguments, environment, log))
    self._process.start()
    assert self._process.pid is not None
    self.pid = self._process.pid

  def poll(self) -> int | None:
    """Its exit code, once it has one."""
    return self._process.exitcode

  def wait(self) -> None:
    """Returns when it has ended."""
    self._process.join()


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["maxagent.cli.main", "maxagent.evals.runner", "maxagent.training.loop", "tensorboardX"])


def _die_with_parent() -> None:
  """A harness that is killed leaves no run behind that would hold its workdir."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _maxagent(arguments: list[str], environment: dict[str, str], log: Path) -> None:
  _die_with_parent()
  with open(log, "ab") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  os.environ.update(environment)
  os.chdir(ROOT)
  from maxagent.cli.main import main

  sys.exit(main(arguments))


@dataclasses.dataclass
class Run:
  """One workdir and the processes that train in it, watched from outside through its files."""

  workdir: Path
  arguments: list[str]
  processes: int
  started: list[Process] = dataclasses.field(default_factory=list)

  @property
  def checkpoints(self) -> Path:
    """The folder of saved steps."""
    return self.workdir / "checkpoints"

  @property
  def newest(self) -> int:
    """The newest step that was saved; 0 when there is none."""
    return max(saved_steps(self.checkpoints), default=0)

  @property
  def last_record(self) -> int:
    """The step of the last whole line of the metrics; 0 when there is none."""
    try:
      with open(self.workdir / METRICS_FILE, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        lines = file.read().split(b"\n")[:-1]
      return int(json.loads(lines[-1])["step"]) if lines else 0
    except (FileNotFoundError, ValueError):
      return 0  # the writer is about to replace it

  def start(self, *, fresh: bool = False) -> None:
    """Starts all processes as a launcher would, forked or `fresh`."""
    self.workdir.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // self.processes} {PATIENCE}"}
    if self.processes > 1:
      own |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(self.processes)}
    self._unfinished, self._newest_at_start = self._unfinished_saves(), self.newest
    self._began, self._said = time.time(), self._log(0).stat().st_size if self._log(0).exists() else 0
    start = self._start_fresh if fresh else Forked
    arguments = ["train", f"--workdir={self.workdir}", *self.arguments]
    self.started = [start(arguments, own | {"JAX_PROCESS_ID": str(i)}, self._log(i)) for i in range(self.processes)]

  @staticmethod
  def _start_fresh(arguments: list[str], environment: dict[str, str], log: Path) -> Process:
    with open(log, "ab") as file:
      command = [sys.executable, "-m", "maxagent.cli.main", *arguments]
      own = os.environ | environment
      return subprocess.Popen(command, cwd=ROOT, env=own, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent)

  @property
  def phase(self) -> str:
    """What the run is doing, or was doing when it died."""
    if f"process {self.started[0].pid} on " not in _text(self.workdir / "lock"):
      return "import"
    claimed = self.workdir / "config.json"
    if not (claimed.exists() and claimed.stat().st_mtime >= self._began):
      return "compile" if not self._newest_at_start or self.went_on_from else "restore"
    if self._unfinished_saves() - self._unfinished:
      return "save"
    last = self.last_record
    if last == STEPS:
      return "end"
    return "eval" if (last + 1) % EVAL_EVERY == 0 or last + 1 == STEPS else "step"

  @property
  def went_on_from(self) -> int | None:
    """The step that this start said it goes on from."""
    _, found, rest = self.said.partition("going on from step ")
    return int(rest.split()[0]) if found and "\n" in rest else None

  @property
  def said(self) -> str:
    """What the first process printed since it was started."""
    with open(self._log(0), "rb") as file:
      file.seek(self._said)
      return file.read().decode(errors="replace")

  def phases(self) -> Iterator[tuple[str, float]]:
    """The phase, and for how many seconds it has lasted, at every look, until all processes have ended."""
    began, now = time.monotonic(), ""
    since = began
    while any(process.poll() is None for process in self.started):
      if (phase := self.phase) != now:
        now, since = phase, time.monotonic()
      yield now, time.monotonic() - since
      if time.monotonic() - began > LIMIT_SECONDS:
        self.kill(range(self.processes))
        raise Violation(f"the run hung for {LIMIT_SECONDS} s in phase {now}")
      time.sleep(POLL_SECONDS)

  def kill(self, victims: Any) -> None:
    """kill -9, and returns when they are gone."""
    for victim in victims:
      if self.started[victim].poll() is None:
        os.kill(self.started[victim].pid, signal.SIGKILL)
    for victim in victims:
      self.started[victim].wait()

  def require_whole(self) -> None:
    """Raises Violation if a checkpoint is torn, or if the run began elsewhere than at its newest."""
    for found in verify(self.checkpoints):
      if not found.good:
        raise Violation(f"torn checkpoint: step {found.step}: {found.reason}")
    if (self.checkpoints / "damaged").exists() or "set aside" in self.said:
      raise Violation(f"the run found a torn checkpoint: {self.said}")
    if self.went_on_from not in (None, self._newest_at_start):
      raise Violation(f"it went on from step {self.went_on_from}; step {self._newest_at_start} was there")

  def _unfinished_saves(self) -> set[tuple[str, int]]:
    found = set()
    for path in self.checkpoints.glob("*.orbax-checkpoint-tmp*"):
      try:
        found.add((path.name, path.stat().st_ino))
      except FileNotFoundError:
        pass  # it was finished between the two
    return found

  def _log(self, process: int) -> Path:
    return self.workdir / f"output-{process}.txt"


def _text(path: Path) -> str:
  return path.read_text() if path.exists() else ""


class Log:
  """kills.jsonl: what was asked, what was hit, what came of it."""

  def __init__(self, path: Path) -> None:
    self._path = path
    whole = _text(path).rpartition("\n")[0]  # the harness too may have been killed
    self.entries = [json.loads(line) for line in whole.splitlines()]
    if path.exists():
      path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

  def add(self, **entry: Any) -> None:
    """Appends one entry."""
    self.entries.append(entry)
    with open(self._path, "a", encoding="utf-8") as file:
      file.write(json.dumps(entry) + "\n")

  def of(self, kind: str, processes: int) -> list[dict[str, Any]]:
    """Entries of a kind that belong to runs of so many processes."""
    return [entry for entry in self.entries if entry["kind"] == kind and entry.get("processes") == processes]


class Chaos:
  """The reference and the killed runs of one number of processes."""

  def __init__(self, folder: Path, log: Log, arguments: list[str], *, processes: int, seed: int) -> None:
    self._folder, self._log, self._arguments = folder / f"processes-{processes}", log, arguments
    self._processes, self._seed = processes, seed

  @property
  def kills(self) -> list[dict[str, Any]]:
    """Entries of all kills so far."""
    return self._log.of("kill", self._processes)

  def until(self, kills: int) -> None:
    """Kills until `kills` are done, and lets the last run end."""
    self._seconds = self._reference()
    while len(self.kills) < kills or self._current.newest:
      struck = len(self.kills)
      try:
        self._end_run() if struck == kills else self._kill(struck)
      except Violation as error:  # it hung
        self._log.add(kind="run", processes=self._processes, run=self._current.workdir.name, violation=str(error))

  @property
  def _current(self) -> Run:
    return self._run(f"run-{len(self._log.of('run', self._processes)):04d}")

  def _run(self, name: str) -> Run:
    return Run(self._folder / name, self._arguments, self._processes)

  def _reference(self) -> dict[str, float]:
    """Lets the reference end, once, and starts it once more; how long each phase lasts, on average."""
    if measured := self._log.of("reference", self._processes):
      return dict(measured[-1]["seconds"])
    shutil.rmtree(self._folder, ignore_errors=True)
    # The first start fills the compilation cache, so its times are not those to come; the last adds nothing to a finished run.
    self._seconds = {}
    for name in ("warm", "reference", "reference"):
      (run := self._run(name)).start(fresh=True)
      for _ in self._watch(run):
        pass
      if any(process.poll() for process in run.started):
        raise Violation(f"the reference failed: {run.said}")
    self._require_same(self._run("warm"))
    self._log.add(kind="reference", processes=self._processes, seconds=self._seconds)
    return self._seconds

  def _watch(self, run: Run) -> Iterator[tuple[str, bool]]:
    """The phase of the run at every look, and whether it has just begun; learns how long a phase lasts at present."""
    before, lasted = "", 0.0
    for phase, seconds in run.phases():
      if phase != before and before:
        self._seconds[before] = lasted
      yield phase, phase != before
      before, lasted = phase, seconds
    self._seconds[before] = lasted

  def _kill(self, number: int) -> None:
    chance = random.Random(f"{self._seed}/{self._processes}/{number}")
    run = self._current
    asked = self._ask(run, chance)
    if asked is None:
      return self._end_run()
    victims = list(range(self._processes)) if chance.random() < 0.5 else [chance.randrange(self._processes)]
    skipped = chance.randrange(2) if asked in IN_TRAINING else 0  # stretches of the phase that pass before
    after = chance.uniform(0, 1.2) * self._seconds[asked]
    run.start(fresh=asked == "import")
    entry = {"kind": "kill", "processes": self._processes, "number": number, "seed": self._seed, "run": run.workdir.name}
    if not self._wait(run, asked, skipped, after):
      return self._end_run(run)  # it ended before its time came
    run.kill(victims)
    entry |= {"asked": asked, "hit": run.phase, "after": round(after, 4), "victims": victims, "step": run.last_record}
    if len(victims) < self._processes:
      time.sleep(chance.uniform(0, GRACE_SECONDS))
      entry["survivors"] = [process.poll() for i, process in enumerate(run.started) if i not in victims]
      run.kill(range(self._processes))
    self._judge(run, entry | {"newest": run.newest}, run.require_whole)

  def _ask(self, run: Run, chance: random.Random) -> str | None:
    """The phase that was hit least so far, of those still to come; None if only a new run can bring what is missing."""
    hits = collections.Counter(entry["hit"] for entry in self.kills)
    order = sorted(PHASES, key=lambda phase: (hits[phase], chance.random()))
    if run.newest == STEPS:
      return None if order[0] in IN_TRAINING else order[0]
    return next(phase for phase in order if phase != "end" and (run.newest or phase != "restore"))

  def _wait(self, run: Run, asked: str, skipped: int, after: float) -> bool:
    """Whether the moment came while the run lived: `after` seconds into stretch number `skipped` of the phase."""
    due = float("inf")
    for phase, begins in self._watch(run):
      if time.monotonic() >= due:
        return True
      if begins and phase == asked:
        due = min(due, time.monotonic() + after) if skipped <= 0 else due
        skipped -= 1
    return False

  def _end_run(self, run: Run | None = None) -> None:
    """Lets the run end (unless it has) and holds it against the reference."""
    if run is None:
      (run := self._current).start()
    for _ in self._watch(run):
      pass
    name = run.workdir.name
    if any(process.poll() for process in run.started):
      tail = run.said[-2000:]
      verdict: Callable[[], None] = lambda: _violate(f"the run failed: {tail}")  # noqa: E731
    else:
      verdict = lambda: self._require_same(run)  # noqa: E731
    self._judge(run, {"kind": "run", "processes": self._processes, "run": name, "sum": len(self.kills)}, verdict)

  def _judge(self, run: Run, entry: dict[str, Any], check: Callable[[], None]) -> None:
    try:
      check()
      entry["violation"] = None
    except (Violation, MaxagentError) as error:
      entry["violation"] = str(error)
    self._log.add(**entry)
    print(_line(entry), flush=True)
    if entry["violation"] and entry["kind"] == "kill":
      self._log.add(kind="run", processes=self._processes, run=run.workdir.name, violation="left off at the kill before")
    elif entry["kind"] == "run" and not entry["violation"]:
      shutil.rmtree(run.workdir)

  def _require_same(self, run: Run) -> None:
    """Raises Violation unless the finished run is the reference, but for the clock."""
    reference = self._run("reference")
    if run.started:
      run.require_whole()
    ours, theirs = (_records(one.workdir) for one in (run, reference))
    if (steps := [record["step"] for record in ours]) != list(range(1, STEPS + 1)):
      raise Violation(f"its records are of steps {steps}")
    for one, other in zip(ours, theirs, strict=True):
      if one != other:
        differing = {name: (one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)}
        raise Violation(f"step {one['step']} differs from the reference: {differing}")
    saved, expected = (read_record(one.checkpoints / str(STEPS), STEPS).arrays for one in (run, reference))
    if arrays := [name for name in saved | expected if saved.get(name) != expected.get(name)]:
      raise Violation(f"after the last step these arrays differ from the reference: {arrays}")


def _violate(message: str) -> None:
  raise Violation(message)


def _records(workdir: Path) -> list[dict[str, Any]]:
  return [{k: v for k, v in record.items() if k not in CLOCK} for record in read_metrics(workdir / METRICS_FILE)]


def _line(entry: dict[str, Any]) -> str:
  head = f"{entry['processes']} processes, {entry['run']}: "
  if entry["kind"] == "run":
    text = f"ended after {entry['sum']} kills in all"
  else:
    text = f"kill {entry['number']} (seed {entry['seed']}) of {entry['victims']} in {entry['hit']} (asked: {entry['asked']}), "
    text += f"step {entry['step']}, newest checkpoint {entry['newest']}"
  return head + text + (f"  VIOLATED: {entry['violation']}" if entry["violation"] else ": good")


def table(log: Log) -> str:
  """What was hit, by phase and number of processes, and what it did."""
  counts = sorted({entry["processes"] for entry in log.entries if entry["kind"] == "kill"})
  lines = [f"{'processes':>9}" + "".join(f"{name:>9}" for name in (*PHASES, "kills", "runs", "violated"))]
  for count in counts:
    kills, runs = log.of("kill", count), log.of("run", count)
    hits = collections.Counter(kill["hit"] for kill in kills)
    violated = sum(bool(entry["violation"]) for entry in kills + runs)
    row = (count, *(hits[phase] for phase in PHASES), len(kills), len(runs), violated)
    lines.append("".join(f"{number:>9}" for number in row))
  return "\n".join(lines)


def build_data(folder: Path) -> Path:
  """A tokenizer of 512 ids, web shards of Python's own modules, trace shards of generated episodes; built once."""
  import abc

  from maxagent.data.build import BuildOptions, build
  from maxagent.environments.generate import generate
  from maxagent.tokenizer import train

  if folder.exists():
    return folder
  making = folder.with_name(folder.name + ".making")
  shutil.rmtree(making, ignore_errors=True)
  (making / "text").mkdir(parents=True)
  modules = sorted(Path(abc.__file__).parent.glob("[a-c]*.py"))
  texts = [module.read_text(encoding="utf-8", errors="replace")[:20_000] for module in modules]
  for module, text in zip(modules, texts, strict=True):
    (making / "text" / f"{module.stem}.txt").write_text(text, encoding="utf-8")
  generate(making / "episodes", episodes=300, seed=0)
  tokenizer = train(texts, making / "tokenizer.model", vocab_size=512)
  options = BuildOptions(streams=8, heldout_per_mille=100)
  for kind, source in (("web", "text"), ("trace", "episodes")):
    build(kind, making / kind, [making / source], tokenizer=tokenizer, options=options)
  return making.rename(folder)


def train_arguments(data: Path) -> list[str]:
  """The smoke config with one layer, so that a start costs little."""
  from maxagent.tokenizer import Tokenizer

  fields = {
    "model.vocab_size": Tokenizer.load(data / "tokenizer.model").vocab_size,
    "model.pattern": "('local',)",
    "training.steps": STEPS,
    "checkpoint.every_steps": SAVE_EVERY,
    "evaluation.every_steps": EVAL_EVERY,
  }
  return [f"--config=configs/smoke.py:{data}", *(f"--config.{name}={value}" for name, value in fields.items())]


def _code_digest() -> str:
  digest = xxhash.xxh3_64()
  for path in sorted([*ROOT.glob("maxagent/**/*.py"), *ROOT.glob("kernels/**/*.py"), ROOT / "configs/smoke.py"]):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _open_log(workdir: Path, seed: int) -> Log:
  """The log of the workdir.

  Raises:
    ConfigError: it was begun with other code or another seed, so its reference proves nothing here.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  log, begun = Log(workdir / "kills.jsonl"), {"kind": "begun", "seed": seed, "code": _code_digest()}
  if not log.entries:
    log.add(**begun)
  if log.entries[0] != begun:
    raise ConfigError(f"{workdir} was begun with {log.entries[0]}, and this is {begun}; name another --workdir.")
  return log


def _counts(text: str) -> list[int]:
  counts = [int(part) for part in text.split(",")]
  if any(count < 1 or DEVICES % count for count in counts):
    raise argparse.ArgumentTypeError(f"{text}: expected divisors of {DEVICES}, such as 1,2,4")
  return counts


def main() -> int:
  """Kills and compares; 0 if every promise was kept, 1 if not."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=500, help="of all numbers of processes together (default 500)")
  parser.add_argument("--processes", type=_counts, default=[1, 4], metavar="N,N", help="processes of a run (default 1,4)")
  parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims (default 0)")
  parser.add_argument("--workdir", type=Path, required=True, help="for the runs, their data and the log")
  parser.add_argument("--data", type=Path, help="a folder with tokenizer.model, web and trace (default: one is built)")
  given = parser.parse_args()
  workdir = given.workdir.absolute()
  # Inherited by the fork server and by every process.
  os.environ["PYTHONPATH"], os.environ["PYTHONUNBUFFERED"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "1"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "compiled"))
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
  try:
    log = _open_log(workdir, given.seed)
    arguments = train_arguments(given.data.absolute() if given.data else build_data(workdir / "data"))
    for i, count in enumerate(given.processes):
      share = (given.kills + len(given.processes) - 1 - i) // len(given.processes)
      Chaos(workdir, log, arguments, processes=count, seed=given.seed).until(share)
  except (MaxagentError, Violation) as error:
    print(f"chaos: {error}", file=sys.stderr)
    return 1
  print(table(log))
  return int(any(entry.get("violation") for entry in log.entries))


if __name__ == "__main__":
  sys.exit(main())
