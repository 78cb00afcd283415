"""Everything maxagent raises on purpose, in one tree.

    MaxagentError
    ├── ConfigError              a field, a key or a file of a run's configuration
    ├── MeshError                a mesh that does not fit the devices or the model
    ├── TraceError               a trace that breaks the schema
    ├── TokenizerError           a tokenizer file, or text it cannot encode
    │   └── TokenizerMismatchError   shards or weights made with another tokenizer
    ├── DataError                documents, shards, mixtures
    │   ├── EmptySourceError         a source with no document in it
    │   ├── UndecodableError         bytes that are not the text they claim to be
    │   └── DamagedShardError        a shard whose bytes changed after it was written
    ├── CheckpointError          saving and restoring
    │   ├── DamagedCheckpointError   an array whose digest does not match
    │   ├── WorkdirMismatchError     a workdir that holds another config's run
    │   ├── WorkdirBusyError         a workdir that another process writes to
    │   └── DiskFullError            not enough room for the next save
    ├── StorageError             a place in a bucket that cannot be reached or read
    ├── PlanError                a plan that cannot be made: a topology nobody knows, a compiler that is not there
    ├── EnvironmentFault         an environment used against its own protocol
    └── NonFiniteError           a loss or gradient that is not a number

Every message says what was given, what was expected and what to do. The command line prints the message and exits with 2; a
traceback alone means a defect of maxagent.
"""


class MaxagentError(Exception):
  """The root: catch this to catch all of them."""


class ConfigError(MaxagentError):
  """A field, a key or a file of a run's configuration is wrong."""


class MeshError(MaxagentError):
  """The mesh does not fit the devices or the model."""


class TraceError(MaxagentError):
  """A trace breaks the schema."""


class TokenizerError(MaxagentError):
  """A tokenizer file cannot be used, or a text cannot be encoded."""


class TokenizerMismatchError(TokenizerError):
  """Shards or weights were made with another tokenizer."""


class DataError(MaxagentError):
  """Documents, shards or mixtures are wrong."""


class EmptySourceError(DataError):
  """A source holds no document."""


class UndecodableError(DataError):
  """Bytes are not the text they claim to be."""


class DamagedShardError(DataError):
  """A shard's bytes changed after it was written."""


class CheckpointError(MaxagentError):
  """Saving or restoring failed."""


class DamagedCheckpointError(CheckpointError):
  """An array's digest does not match its bytes."""


class WorkdirMismatchError(CheckpointError):
  """The workdir holds another config's run."""


class WorkdirBusyError(CheckpointError):
  """Another process trains in the workdir."""


class DiskFullError(CheckpointError):
  """There is not enough room for the next save."""


class StorageError(MaxagentError):
  """A place in a bucket cannot be reached or read."""


class PlanError(MaxagentError):
  """A plan cannot be made: the topology is unknown, or the compiler for it is missing or failed."""


class EnvironmentFault(MaxagentError):
  """An environment was used against its own protocol."""


class NonFiniteError(MaxagentError):
  """A loss or gradient is not a number."""
